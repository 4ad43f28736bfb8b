//! The addresses of containers of this host (docs/spec/ipam.md 8.1).

use std::collections::BTreeMap;

use weave_types::Cidr;

use crate::address::ipv4;

/// A container id, a label such as `weave:expose`, or [`NO_ID`](crate::NO_ID).
pub type Container = String;

/// The addresses of one container.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// The death of the container releases the addresses; otherwise only an explicit request does.
    pub is_container: bool,
    /// Addresses with prefix lengths, in order of assignment.
    pub cidrs: Vec<Cidr>,
}

/// All records, and an index by address.
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

    /// All addresses in ascending order with their containers.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (u32, &Container)> + '_ {
        self.holders.iter().map(|(&addr, container)| (addr, container))
    }

    /// Adds an address that no container has.
    pub(crate) fn add(&mut self, container: &str, cidr: Cidr, is_container: bool) {
        let Some(addr) = ipv4(cidr) else { return };
        self.holders.insert(addr, container.to_owned());
        let record = self.records.entry(container.to_owned()).or_default();
        record.is_container = is_container;
        record.cidrs.push(cidr);
    }

    /// Removes one address of a container; returns whether the container had it.
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

    /// Removes all addresses of a container and returns them.
    pub(crate) fn remove_all(&mut self, container: &str) -> Option<Record> {
        let record = self.records.remove(container)?;
        for addr in record.cidrs.iter().filter_map(|&cidr| ipv4(cidr)) {
            self.holders.remove(&addr);
        }
        Some(record)
    }
}
