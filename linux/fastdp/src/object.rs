//! Reads the programs from the object file that clang has made of `bpf/fastdp.bpf.c`.
//!
//! The file is part of this binary and a test reads all of it, so that only programs and their references to maps are needed: there are
//! no calls between programs, no data and no types. The maps are not described there, but in `maps`.

use crate::error::Error;

static OBJECT: &[u8] = include_bytes!("../bpf/fastdp.bpf.o");
pub(crate) const LICENSE: &std::ffi::CStr = c"Dual BSD/GPL";

const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;
const RELOCATION: usize = 16;
const INSTRUCTION: usize = 8;
const SHT_REL: u32 = 9;
const SHT_SYMTAB: u32 = 2;
const R_BPF_64_64: u64 = 1;
/// `BPF_LD | BPF_IMM | BPF_DW`, with a map instead of a number.
const LOAD_WIDE: u8 = 0x18;
const BPF_PSEUDO_MAP_FD: u8 = 1;

/// The instructions of a program, with the descriptors of its maps.
pub(crate) fn program(name: &str, map_fd: impl Fn(&str) -> Option<i32>) -> Result<Vec<u8>, Error> {
    relocated(OBJECT, name, map_fd).ok_or_else(|| {
        let error = std::io::Error::other("the object file does not contain it in the expected form");
        Error::System { step: format!("reading the program {name}"), error }
    })
}

fn relocated(object: &[u8], name: &str, map_fd: impl Fn(&str) -> Option<i32>) -> Option<Vec<u8>> {
    let file = File { bytes: object };
    let (index, section) = file.section(&format!("tc/{name}"))?;
    let mut instructions = file.content(section)?.to_vec();
    let (_, symbols) = file.sections()?.find(|(_, s)| file.u32(s + 4) == Some(SHT_SYMTAB))?;
    let names = file.content(file.section_at(file.u32(symbols + 40)? as usize)?)?;
    let symbols = file.content(symbols)?;
    let applies = |s: usize| file.u32(s + 4) == Some(SHT_REL) && file.u32(s + 44) == Some(index as u32);
    for (_, relocations) in file.sections()?.filter(|(_, s)| applies(*s)) {
        for relocation in file.content(relocations)?.chunks_exact(RELOCATION) {
            let at = u64_in(relocation, 0)? as usize;
            let info = u64_in(relocation, 8)?;
            if info & 0xffff_ffff != R_BPF_64_64 {
                return None;
            }
            let symbol = symbols.chunks_exact(SYMBOL).nth((info >> 32) as usize)?;
            let fd = map_fd(text_in(names, u32_in(symbol, 0)? as usize)?)?;
            let instruction = instructions.get_mut(at..at + INSTRUCTION)?;
            if instruction[0] != LOAD_WIDE {
                return None;
            }
            instruction[1] = instruction[1] & 0x0f | BPF_PSEUDO_MAP_FD << 4;
            instruction[4..8].copy_from_slice(&fd.to_ne_bytes());
        }
    }
    Some(instructions)
}

/// An ELF file of 64 bits, little-endian.
struct File<'a> {
    bytes: &'a [u8],
}

impl<'a> File<'a> {
    fn u32(&self, at: usize) -> Option<u32> {
        u32_in(self.bytes, at)
    }

    /// Where the header of a section is.
    fn section_at(&self, index: usize) -> Option<usize> {
        Some(u64_in(self.bytes, 40)? as usize + index * SECTION_HEADER)
    }

    /// Numbers and headers of all sections.
    fn sections(&self) -> Option<impl Iterator<Item = (usize, usize)>> {
        let count = u32_in(self.bytes, 60)? & 0xffff;
        let start = u64_in(self.bytes, 40)? as usize;
        Some((0..count as usize).map(move |i| (i, start + i * SECTION_HEADER)))
    }

    fn content(&self, section: usize) -> Option<&'a [u8]> {
        let (start, len) =
            (u64_in(self.bytes, section + 24)? as usize, u64_in(self.bytes, section + 32)? as usize);
        self.bytes.get(start..start.checked_add(len)?)
    }

    fn section(&self, name: &str) -> Option<(usize, usize)> {
        let names = self.content(self.section_at((u32_in(self.bytes, 60)? >> 16) as usize)?)?;
        self.sections()?.find(|(_, s)| self.u32(*s).and_then(|at| text_in(names, at as usize)) == Some(name))
    }
}

fn u32_in(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_in(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn text_in(names: &[u8], at: usize) -> Option<&str> {
    let rest = names.get(at..)?;
    std::str::from_utf8(&rest[..rest.iter().position(|b| *b == 0)?]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_programs_and_maps_are_found() {
        for name in ["uplink", "tunnel", "port", "test", "probe"] {
            let known = crate::maps::NAMES;
            let program =
                relocated(OBJECT, name, |map| known.iter().position(|n| *n == map).map(|i| i as i32 + 77));
            let program = program.unwrap_or_else(|| panic!("{name}"));
            assert!(program.len() > 100 && program.len().is_multiple_of(8), "{name}");
            let exits = program.chunks_exact(INSTRUCTION).any(|i| i == [0x95, 0, 0, 0, 0, 0, 0, 0]);
            assert!(exits, "{name}");
        }
        assert!(relocated(OBJECT, "uplink", |_| None).is_none());
        assert!(relocated(OBJECT, "other", |_| Some(1)).is_none());
        let license = [LICENSE.to_bytes(), &[0]].concat();
        let file = File { bytes: OBJECT };
        let section = file.section("license").and_then(|(_, section)| file.content(section));
        assert_eq!(section, Some(&license[..]));
    }

    #[test]
    fn damaged_files_are_refused() {
        for end in (0..OBJECT.len()).step_by(61) {
            let _ = relocated(&OBJECT[..end], "tunnel", |_| Some(1));
        }
        assert!(relocated(&OBJECT[..OBJECT.len() / 2], "tunnel", |_| Some(1)).is_none());
    }
}
