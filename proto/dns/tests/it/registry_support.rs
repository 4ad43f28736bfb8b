//! Registries and their messages.

use std::net::Ipv4Addr;
use std::time::Duration;

use weave_dns::message::Message;
use weave_dns::{Entry, Registry, RegistryConfig, RegistryEvent, RegistryOutput};
use weave_types::{Instant, Now, PeerName};

use crate::support::host_name;

pub(crate) fn peer(n: u64) -> PeerName {
    PeerName::from_number(n).unwrap()
}

/// A time, with equal readings of both clocks.
pub(crate) fn at(seconds: u64) -> Now {
    let time = Duration::from_secs(seconds);
    Now { mono: Instant::from_origin(time), wall: time }
}

/// A registry for `weave.local` whose topology has these peers.
pub(crate) fn registry(own: PeerName, known: impl IntoIterator<Item = PeerName>, now: Now) -> Registry {
    let mut registry = Registry::new(RegistryConfig { own, domain: host_name("weave.local") });
    registry.handle_topology_change(&known.into_iter().collect(), now);
    // There is nothing to broadcast yet.
    registry.handle_timeout(Now { mono: now.mono + Duration::from_secs(1), ..now });
    registry
}

pub(crate) fn entry(hostname: &str, origin: PeerName, addr: u8, version: i64, tombstone: i64) -> Entry {
    let addr = Ipv4Addr::new(10, 32, 0, addr);
    Entry { hostname: hostname.into(), origin, container: "c1".into(), addr, version, tombstone }
}

pub(crate) fn message(now: Now, entries: &[Entry]) -> Vec<u8> {
    Message { timestamp: now.wall.as_secs() as i64, entries: entries.to_vec() }.encode()
}

pub(crate) fn entries_of(message: Option<Vec<u8>>) -> Vec<Entry> {
    message.map(|payload| Message::decode(&payload).unwrap().entries).unwrap_or_default()
}

/// The messages that a registry wants to broadcast. Whether the names have changed, and events.
pub(crate) fn drain(registry: &mut Registry) -> (Vec<Vec<Entry>>, bool, Vec<RegistryEvent>) {
    let (mut broadcasts, mut changed, mut events) = (Vec::new(), false, Vec::new());
    while let Some(output) = registry.poll_output() {
        match output {
            RegistryOutput::Broadcast(payload) => broadcasts.push(entries_of(Some(payload))),
            RegistryOutput::Compare => {}
            RegistryOutput::NamesChanged => changed = true,
            RegistryOutput::Event(event) => events.push(event),
        }
    }
    (broadcasts, changed, events)
}

pub(crate) fn all_entries(registry: &Registry) -> Vec<Entry> {
    registry.entries().cloned().collect()
}
