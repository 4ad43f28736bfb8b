//! The registry of names and its gossip channel.

use std::collections::VecDeque;

use weave_dns::{CHANNEL, Registry, RegistryOutput};
use weave_mesh::{Channels, Mesh};
use weave_types::{Now, PeerName};

use crate::event::Event;
use crate::output::Output;

/// The registry, if names are enabled. Without it the gossip of the channel is forwarded for other peers.
pub(crate) struct Dns {
    pub(crate) registry: Option<Registry>,
    /// Whether the peers of the mesh may differ from those that the registry knows.
    pub(crate) peers_stale: bool,
}

impl Dns {
    pub(crate) fn new(registry: Option<Registry>) -> Dns {
        Dns { registry, peers_stale: true }
    }

    /// Updates the registry's view of the mesh, then processes one of its outputs. Returns `false` if there was none.
    pub(crate) fn process_output(
        &mut self,
        mesh: &mut Mesh,
        outputs: &mut VecDeque<Output>,
        now: Now,
    ) -> bool {
        let Some(registry) = &mut self.registry else { return false };
        if std::mem::take(&mut self.peers_stale) {
            registry.handle_topology_change(&mesh.peers().map(|(name, _)| name).collect(), now);
        }
        let Some(output) = registry.poll_output() else { return false };
        match output {
            RegistryOutput::Broadcast(payload) => {
                mesh.broadcast(CHANNEL, &payload, &mut DnsChannels { dns: self }, now);
            }
            RegistryOutput::Compare => mesh.sync_channel(CHANNEL, &mut DnsChannels { dns: self }, now),
            RegistryOutput::NamesChanged => outputs.push_back(Output::NamesChanged),
            RegistryOutput::Event(event) => outputs.push_back(Output::Event(Event::Dns(event))),
        }
        true
    }
}

/// The gossip channel of the registry, for the mesh.
pub(crate) struct DnsChannels<'a> {
    pub(crate) dns: &'a mut Dns,
}

impl Channels for DnsChannels<'_> {
    fn names(&self) -> &[&'static str] {
        if self.dns.registry.is_some() { &[CHANNEL] } else { &[] }
    }

    fn on_unicast(&mut self, _: &str, _: PeerName, _: &[u8], _: Now) -> Result<(), String> {
        // Not used on this channel.
        Ok(())
    }

    fn on_broadcast(
        &mut self,
        _: &str,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, String> {
        let Some(registry) = &mut self.dns.registry else { return Ok(None) };
        registry.handle_broadcast(src, payload, now).map_err(|e| e.to_string())
    }

    fn on_gossip(&mut self, _: &str, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, String> {
        let Some(registry) = &mut self.dns.registry else { return Ok(None) };
        registry.handle_gossip(payload, now).map_err(|e| e.to_string())
    }

    fn digest(&mut self, _: &str) -> Option<u64> {
        self.dns.registry.as_ref().map(Registry::digest)
    }

    fn state(&mut self, _: &str, now: Now) -> Option<Vec<u8>> {
        self.dns.registry.as_ref()?.state(now)
    }

    fn merge(&mut self, _: &str, queued: &mut Vec<u8>, more: &[u8]) {
        Registry::merge(queued, more);
    }
}
