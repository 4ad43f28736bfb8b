//! Who on this host has which addresses (docs/spec/ipam.md 8.1).

use std::collections::BTreeMap;

use weave_types::Cidr;

use crate::address::ipv4;
use crate::output::Container;

/// What one container has.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// It is a container, whose death releases its addresses; otherwise somebody releases them explicitly.
    pub is_container: bool,
    /// Its addresses in the order of assignment.
    pub cidrs: Vec<Cidr>,
}

/// All records, and who has an address.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Owned {
    records: BTreeMap<Container, Record>,
    holders: BTreeMap<u32, Container>,
}

impl Owned {
    pub(crate) fn records(&self) -> &BTreeMap<Container, Record> {
        &self.records
    }

    pub(crate) fn record(&self, container: &str) -> Option<&Record> {
        self.records.get(container)
    }

    pub(crate) fn holder(&self, addr: u32) -> Option<&Container> {
        self.holders.get(&addr)
    }

    /// All addresses, ascending, with their holders.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (u32, &Container)> + '_ {
        self.holders.iter().map(|(&addr, container)| (addr, container))
    }

    /// Files an address that nobody has.
    pub(crate) fn add(&mut self, container: &str, cidr: Cidr, is_container: bool) {
        let Some(addr) = ipv4(cidr) else { return };
        self.holders.insert(addr, container.to_owned());
        let record = self.records.entry(container.to_owned()).or_default();
        record.is_container = is_container;
        record.cidrs.push(cidr);
    }

    /// Takes one address of a container off the books; false if it does not have it.
    pub(crate) fn remove(&mut self, container: &str, addr: u32) -> bool {
        let Some(record) = self.records.get_mut(container) else { return false };
        let Some(at) = record.cidrs.iter().position(|&cidr| ipv4(cidr) == Some(addr)) else { return false };
        record.cidrs.remove(at);
        if record.cidrs.is_empty() {
            self.records.remove(container);
        }
        self.holders.remove(&addr);
        true
    }

    /// Takes all of a container off the books.
    pub(crate) fn remove_all(&mut self, container: &str) -> Option<Record> {
        let record = self.records.remove(container)?;
        for addr in record.cidrs.iter().filter_map(|&cidr| ipv4(cidr)) {
            self.holders.remove(&addr);
        }
        Some(record)
    }
}
