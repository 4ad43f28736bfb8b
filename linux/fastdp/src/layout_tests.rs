//! The layout in user space against the structures in the source of the programs. These have no padding that a compiler adds, so that they
//! are the same on every architecture with this byte order.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use weave_overlay::fastdp::KERNEL_FRAME_HEAD;
use weave_types::MacAddr;

use crate::layout::{
    self, COUNT_SIZE, GLOBALS_SIZE, Globals, IDS, LIMITS_SIZE, MAC_ENTRY_SIZE, MacValue, REMOTE_SIZE,
    TABLES_SIZE, TRAFFIC_SIZE,
};

const SOURCE: &str = include_str!("../bpf/fastdp.bpf.c");

#[derive(Debug, Default)]
struct Structure {
    size: usize,
    alignment: usize,
    /// Offset and size of each field.
    fields: BTreeMap<String, (usize, usize)>,
}

impl Structure {
    /// Adds `u16 first, count[4]`.
    fn add(&mut self, declaration: &str, known: &BTreeMap<String, Structure>) {
        let declaration = declaration.trim();
        let declaration = declaration.strip_prefix("struct ").unwrap_or(declaration);
        let (kind, names) = declaration.split_once(char::is_whitespace).expect("a type and names");
        let (size, alignment) = match kind {
            "u8" => (1, 1),
            "u16" => (2, 2),
            "u32" => (4, 4),
            "u64" => (8, 8),
            other => (known[other].size, known[other].alignment),
        };
        for name in names.split(',').map(str::trim) {
            let (name, length) = match name.split_once('[') {
                Some((name, length)) => (name, constant(length.trim_end_matches(']'))),
                None => (name, 1),
            };
            assert_eq!(self.size % alignment, 0, "{name} needs padding");
            self.fields.insert(name.to_owned(), (self.size, size * length));
            self.size += size * length;
        }
        self.alignment = self.alignment.max(alignment);
    }
}

/// A number, or the name of one in the source.
fn constant(text: &str) -> usize {
    let defined =
        SOURCE.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(text)?.strip_prefix(' '));
    defined.unwrap_or(text).parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

fn structures() -> BTreeMap<String, Structure> {
    let mut code = String::new();
    for (i, part) in SOURCE.split("/*").enumerate() {
        code.push_str(if i == 0 { part } else { part.split_once("*/").expect("the end of a comment").1 });
    }
    let mut found = BTreeMap::new();
    for definition in code.split("\nstruct ").skip(1) {
        let Some((name, body)) = definition.split_once(" {\n") else { continue };
        let mut structure = Structure::default();
        let body = body.split('}').next().expect("a body");
        for declaration in body.split(';').filter(|declaration| !declaration.trim().is_empty()) {
            structure.add(declaration, &found);
        }
        assert_eq!(structure.size % structure.alignment, 0, "struct {name} needs padding at its end");
        found.insert(name.to_owned(), structure);
    }
    found
}

#[test]
fn sizes_and_offsets_are_those_of_the_programs() {
    let found = structures();
    for (name, size) in [
        ("globals", GLOBALS_SIZE),
        ("peer", layout::PEER),
        ("neighbour", layout::NEIGHBOUR),
        ("tables", TABLES_SIZE),
        ("mac_entry", MAC_ENTRY_SIZE),
        ("count", COUNT_SIZE),
        ("limits", LIMITS_SIZE),
        ("traffic", TRAFFIC_SIZE),
        ("remote", REMOTE_SIZE),
        ("mac_event", 40),
        ("control_frame", 24 + KERNEL_FRAME_HEAD),
    ] {
        assert_eq!(found[name].size, size, "struct {name}");
    }
    assert_eq!(constant("IDS"), IDS);
    let tables = &found["tables"].fields;
    assert_eq!(tables["peers"].0, layout::HEADER);
    assert_eq!(tables["neighbours"].0, layout::NEIGHBOURS_AT);
    assert_eq!(tables["broadcast"], (layout::BROADCAST_AT, layout::BROADCAST_POOL * 2));
}

/// The value of a field in encoded bytes, in the byte order of this machine.
fn value(bytes: &[u8], found: &BTreeMap<String, Structure>, structure: &str, field: &str) -> u64 {
    let (offset, size) = found[structure].fields[field];
    let mut value = [0; 8];
    let at = if cfg!(target_endian = "little") { 0 } else { 8 - size };
    value[at..at + size].copy_from_slice(&bytes[offset..offset + size]);
    u64::from_ne_bytes(value)
}

#[test]
fn fields_are_encoded_where_the_programs_read_them() {
    let found = structures();
    let entry = MacValue {
        last_seen: 0x0102_0304_0506_0708,
        learnt: 2,
        reported: 3,
        conflict: 4,
        refused: 0x0a0b_0c0d,
        peer: 0x0e0f,
        pending: true,
    }
    .encode();
    for (field, expected) in [
        ("last_seen", 0x0102_0304_0506_0708),
        ("learnt", 2),
        ("reported", 3),
        ("conflict", 4),
        ("refused", 0x0a0b_0c0d),
        ("peer", 0x0e0f),
        ("pending", 1),
    ] {
        assert_eq!(value(&entry, &found, "mac_entry", field), expected, "{field}");
    }
    let remote = layout::remote_key(Ipv4Addr::new(10, 1, 2, 3), 7);
    assert_eq!(value(&remote, &found, "remote", "address"), 0x0a01_0203);
    assert_eq!(value(&remote, &found, "remote", "ifindex"), 7);
    let globals = Globals::new(true).encode();
    assert_eq!(value(&globals, &found, "globals", "version"), 1);
    assert_eq!(value(&globals, &found, "globals", "local_address"), 16);
    // The lowest byte of the number is the first on the wire.
    assert_eq!(layout::mac_key(MacAddr([1, 2, 3, 4, 5, 6])), 0x0605_0403_0201_u64.to_le_bytes());
}
