use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use weave_types::PeerName;

/// The longest name in wire format (RFC 1035 2.3.4).
const MAX_WIRE_LEN: usize = 255;
/// The longest label (RFC 1035 2.3.4).
const MAX_LABEL_LEN: usize = 63;
/// Into how many parts the names are divided. A change copies the part that it concerns if a snapshot of it is in use.
const SHARDS: usize = 256;

/// A fully qualified host name, as it was spelt.
///
/// Equality and order ignore the case of ASCII letters (RFC 4343).
#[derive(Clone, Debug)]
pub struct HostName {
    /// With the final dot.
    text: String,
    /// In wire format, in lower case.
    key: Box<[u8]>,
}

/// The text is not a host name that a query could ask for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// The text is empty, or it has an empty label.
    #[error("{0:?} is not a host name: it has an empty label")]
    EmptyLabel(String),
    /// A label has more than 63 bytes.
    #[error("{0:?} is not a host name: a label has more than 63 characters")]
    LongLabel(String),
    /// The name has more than 255 bytes in wire format.
    #[error("{0:?} is not a host name: it has more than 253 characters")]
    LongName(String),
    /// A control character, white space or backslash.
    #[error("{0:?} is not a host name: it contains {1:?}")]
    Character(String, char),
}

impl HostName {
    /// Reads a name with or without the final dot.
    pub fn parse(text: &str) -> Result<HostName, HostNameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if let Some(c) = text.chars().find(|c| c.is_control() || c.is_whitespace() || *c == '\\') {
            return Err(HostNameError::Character(text.to_owned(), c));
        }
        let mut key = Vec::with_capacity(text.len() + 2);
        for label in text.split('.') {
            match label.len() {
                0 => return Err(HostNameError::EmptyLabel(text.to_owned())),
                1..=MAX_LABEL_LEN => key.push(label.len() as u8),
                _ => return Err(HostNameError::LongLabel(text.to_owned())),
            }
            key.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
        }
        key.push(0);
        if key.len() > MAX_WIRE_LEN {
            return Err(HostNameError::LongName(text.to_owned()));
        }
        Ok(HostName { text: format!("{text}."), key: key.into() })
    }

    /// The name as it was spelt, with the final dot.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name in wire format (RFC 1035 3.1), in lower case.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Whether this name is `domain` or below it.
    pub fn is_within(&self, domain: &HostName) -> bool {
        is_within(&self.key, &domain.key)
    }
}

/// Whether a name is `domain` or below it, both in wire format and lower case.
pub(crate) fn is_within(name: &[u8], domain: &[u8]) -> bool {
    let mut rest = name;
    while rest.len() > domain.len() {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    *rest == *domain
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for HostName {
    fn eq(&self, other: &HostName) -> bool {
        self.key == other.key
    }
}

impl Eq for HostName {}

impl PartialOrd for HostName {
    fn partial_cmp(&self, other: &HostName) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HostName {
    /// The order of the texts in lower case, which is the order of 2.8.1's list (docs/spec/dns.md 3).
    fn cmp(&self, other: &HostName) -> std::cmp::Ordering {
        let [a, b] = [self, other].map(|name| name.text.bytes().map(|b| b.to_ascii_lowercase()));
        a.cmp(b)
    }
}

/// Who has registered an address, which makes it distinct from the same address of others.
type Source = (PeerName, Arc<str>);

type RegisteredNames = BTreeSet<(HostName, Source)>;

/// The live names and their addresses.
///
/// A clone is a snapshot: it costs little, and later changes do not affect it.
#[derive(Clone, Debug)]
pub struct Names {
    by_name: Vec<Arc<BTreeMap<Box<[u8]>, Addresses>>>,
    by_addr: Vec<Arc<BTreeMap<Ipv4Addr, RegisteredNames>>>,
}

/// The addresses of one name. One that was registered twice is there twice.
#[derive(Clone, Debug, Default)]
struct Addresses {
    sources: BTreeSet<(Ipv4Addr, Source)>,
    list: Vec<Ipv4Addr>,
}

impl Default for Names {
    fn default() -> Names {
        Names { by_name: vec![Arc::default(); SHARDS], by_addr: vec![Arc::default(); SHARDS] }
    }
}

impl Names {
    /// The addresses of the name in wire format, in lower case (see [`HostName::key`]). An address that was registered for
    /// two containers is there twice.
    pub fn addresses(&self, key: &[u8]) -> &[Ipv4Addr] {
        self.by_name[shard_of(key)].get(key).map_or(&[], |addresses| &addresses.list)
    }

    /// The first name of the address, in the order of the list of entries (docs/spec/dns.md 8.2).
    pub fn name_of(&self, addr: Ipv4Addr) -> Option<&HostName> {
        self.by_addr[shard_of(&addr.octets())].get(&addr)?.first().map(|(name, _)| name)
    }

    /// Adds an address of a name, for a container of a peer. It is there once, however often it is added.
    pub fn insert(&mut self, name: &HostName, origin: PeerName, container: &Arc<str>, addr: Ipv4Addr) {
        let source = (origin, container.clone());
        let names = Arc::make_mut(&mut self.by_name[shard_of(&name.key)]);
        let addresses = names.entry(name.key.clone()).or_default();
        if addresses.sources.insert((addr, source.clone())) {
            addresses.list.push(addr);
        }
        let addrs = Arc::make_mut(&mut self.by_addr[shard_of(&addr.octets())]);
        addrs.entry(addr).or_default().insert((name.clone(), source));
    }

    /// Removes what [`insert`](Names::insert) has added.
    pub fn remove(&mut self, name: &HostName, origin: PeerName, container: &Arc<str>, addr: Ipv4Addr) {
        let source = (origin, container.clone());
        let names = Arc::make_mut(&mut self.by_name[shard_of(&name.key)]);
        if let Some(addresses) = names.get_mut(&name.key) {
            if addresses.sources.remove(&(addr, source.clone()))
                && let Some(i) = addresses.list.iter().position(|a| *a == addr)
            {
                addresses.list.remove(i);
            }
            if addresses.list.is_empty() {
                names.remove(&name.key);
            }
        }
        let addrs = Arc::make_mut(&mut self.by_addr[shard_of(&addr.octets())]);
        if let Some(sources) = addrs.get_mut(&addr) {
            sources.remove(&(name.clone(), source));
            if sources.is_empty() {
                addrs.remove(&addr);
            }
        }
    }
}

/// FNV-1a: the parts need not resist an attacker, since each of them is a sorted map.
fn shard_of(key: &[u8]) -> usize {
    let hash =
        key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 32) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    #[test]
    fn host_names_are_compared_without_case() {
        assert_eq!(name("Foo.Weave.local").as_str(), "Foo.Weave.local.");
        assert_eq!(name("Foo.Weave.local").key(), b"\x03foo\x05weave\x05local\0");
        assert_eq!(name("Foo.weave.local"), name("foo.weave.LOCAL."));
        assert!(name("a-b.") < name("a.b."), "the order is that of the text, not of the labels");
        assert!(name("a.weave.local").is_within(&name("Weave.Local")));
        assert!(name("weave.local").is_within(&name("weave.local.")));
        assert!(!name("aweave.local").is_within(&name("weave.local.")));
        assert!(!name("local").is_within(&name("weave.local.")));
    }

    #[test]
    fn texts_that_are_no_host_names_are_refused() {
        let long = "a".repeat(64);
        assert!(matches!(HostName::parse(""), Err(HostNameError::EmptyLabel(_))));
        assert!(matches!(HostName::parse("."), Err(HostNameError::EmptyLabel(_))));
        assert!(matches!(HostName::parse("a..b"), Err(HostNameError::EmptyLabel(_))));
        assert!(matches!(HostName::parse(&long), Err(HostNameError::LongLabel(_))));
        assert!(matches!(HostName::parse(&"a.".repeat(128)), Err(HostNameError::LongName(_))));
        assert!(HostName::parse(&"a.".repeat(127)).is_ok());
        assert!(matches!(HostName::parse("a b"), Err(HostNameError::Character(_, ' '))));
    }

    #[test]
    fn snapshot_does_not_change() {
        let [own, other] = [1, 2].map(|n| PeerName::from_number(n).unwrap());
        let (c1, c2): (Arc<str>, Arc<str>) = ("c1".into(), "c2".into());
        let addr = Ipv4Addr::new(10, 32, 0, 1);
        let mut names = Names::default();
        names.insert(&name("b.weave.local"), own, &c1, addr);
        names.insert(&name("b.weave.local"), own, &c1, addr);
        names.insert(&name("B.weave.local"), own, &c2, addr);
        names.insert(&name("a.weave.local"), other, &c1, addr);
        let before = names.clone();
        assert_eq!(names.addresses(name("B.WEAVE.local").key()), [addr, addr]);
        assert_eq!(names.name_of(addr).unwrap().as_str(), "a.weave.local.");
        names.remove(&name("a.weave.local"), other, &c1, addr);
        names.remove(&name("b.weave.local"), own, &c1, addr);
        assert_eq!(names.name_of(addr).unwrap().as_str(), "B.weave.local.");
        assert_eq!(names.addresses(name("b.weave.local").key()), [addr]);
        names.remove(&name("b.weave.local"), own, &c2, addr);
        assert_eq!(names.name_of(addr), None);
        assert!(names.addresses(name("b.weave.local").key()).is_empty());
        assert_eq!(before.addresses(name("b.weave.local").key()), [addr, addr]);
        assert_eq!(before.name_of(addr).unwrap().as_str(), "a.weave.local.");
    }
}
