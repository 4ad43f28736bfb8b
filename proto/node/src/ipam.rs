//! The address allocator and its gossip channel.

use std::collections::{BTreeMap, VecDeque};

use weave_ipam::{Allocator, CHANNEL, GossipError, Loaded, Policy};
use weave_mesh::{Channels, Mesh};
use weave_types::{Now, PeerName};

use crate::event::Event;
use crate::output::Output;

/// Parameters of address allocation.
#[derive(Clone, Debug)]
pub struct IpamConfig {
    /// Parameters of the allocator. Name and nickname must be those of the mesh.
    pub config: weave_ipam::Config,
    /// State loaded from the data directory.
    pub loaded: Loaded,
}

/// The allocator, if address allocation is enabled, and the state of the mesh that it knows. Without an allocator the gossip
/// of the channel is forwarded for other peers.
#[derive(Default)]
pub(crate) struct Ipam {
    pub(crate) allocator: Option<Allocator>,
    /// Outputs that were not processed yet, in order.
    unprocessed: VecDeque<weave_ipam::Output>,
    /// Whether the peers of the mesh may differ from `reachable`.
    pub(crate) peers_stale: bool,
    /// Whether the number of direct peers may differ from `target_count`.
    pub(crate) targets_stale: bool,
    /// The peers that the allocator knows, with nicknames.
    reachable: BTreeMap<PeerName, String>,
    /// The number of direct peers, without this one, that the allocator knows.
    target_count: Option<u32>,
    policy: Policy,
}

impl Ipam {
    pub(crate) fn new(allocator: Option<Allocator>, policy: Policy) -> Ipam {
        Ipam { allocator, policy, peers_stale: true, targets_stale: true, ..Ipam::default() }
    }

    /// Moves the outputs of the allocator to `unprocessed`, except that `Persist` goes directly to `outputs`: before all bytes that
    /// the mesh is going to write.
    fn collect(&mut self, outputs: &mut VecDeque<Output>) {
        let Some(allocator) = &mut self.allocator else { return };
        while let Some(output) = allocator.poll_output() {
            let ahead = !self.policy.send_before_persist || self.unprocessed.is_empty();
            match output {
                weave_ipam::Output::Persist(persist) if ahead => {
                    outputs.push_back(Output::PersistIpam(persist))
                }
                other => self.unprocessed.push_back(other),
            }
        }
    }

    /// Updates the allocator's view of the mesh, then processes one of its outputs. Returns `false` if there was none.
    pub(crate) fn process_output(
        &mut self,
        mesh: &mut Mesh,
        outputs: &mut VecDeque<Output>,
        now: Now,
    ) -> bool {
        self.update_allocator(mesh, now);
        self.collect(outputs);
        let Some(output) = self.unprocessed.pop_front() else { return false };
        match output {
            weave_ipam::Output::Persist(persist) => outputs.push_back(Output::PersistIpam(persist)),
            // The allocator repeats the message, or asks another peer, if no answer arrives.
            weave_ipam::Output::Unicast { to, payload } => drop(mesh.unicast(CHANNEL, to, &payload, now)),
            weave_ipam::Output::Broadcast(payload) => {
                mesh.broadcast(CHANNEL, &payload, &mut IpamChannels { ipam: self, outputs }, now);
            }
            weave_ipam::Output::Done(request, result) => outputs.push_back(Output::Done { request, result }),
            weave_ipam::Output::Event(event) => outputs.push_back(Output::Event(Event::Ipam(event))),
        }
        true
    }

    fn update_allocator(&mut self, mesh: &Mesh, now: Now) {
        let Some(allocator) = &mut self.allocator else { return };
        if std::mem::take(&mut self.targets_stale) {
            let target_count = u32::try_from(mesh.active_direct_peers().len()).unwrap_or(u32::MAX);
            if self.target_count != Some(target_count) {
                self.target_count = Some(target_count);
                allocator.handle_target_count(target_count, now);
            }
        }
        if std::mem::take(&mut self.peers_stale) {
            // A peer that was stopped cannot answer, and may be removed.
            let peers = mesh.peers().filter(|(name, _)| !mesh.has_stopped(*name));
            let reachable: BTreeMap<_, _> =
                peers.map(|(name, peer)| (name, peer.nickname.to_string())).collect();
            if reachable != self.reachable {
                allocator.handle_topology_change(&reachable, now);
                self.reachable = reachable;
            }
        }
    }
}

/// The gossip channel of the allocator, for the mesh.
pub(crate) struct IpamChannels<'a> {
    pub(crate) ipam: &'a mut Ipam,
    pub(crate) outputs: &'a mut VecDeque<Output>,
}

impl IpamChannels<'_> {
    fn with<R: Default>(
        &mut self,
        input: impl FnOnce(&mut Allocator) -> Result<R, GossipError>,
    ) -> Result<R, String> {
        let Some(allocator) = &mut self.ipam.allocator else { return Ok(R::default()) };
        let result = input(allocator);
        self.ipam.collect(self.outputs);
        match result {
            // The status shows a conflict about addresses; it must not disconnect containers.
            Err(GossipError::Conflict(_)) if !self.ipam.policy.disconnect_on_conflict => Ok(R::default()),
            result => result.map_err(|e| e.to_string()),
        }
    }
}

impl Channels for IpamChannels<'_> {
    fn names(&self) -> &[&'static str] {
        if self.ipam.allocator.is_some() { &[CHANNEL] } else { &[] }
    }

    fn on_unicast(&mut self, _: &str, src: PeerName, payload: &[u8], now: Now) -> Result<(), String> {
        self.with(|allocator| allocator.handle_unicast(src, payload, now))
    }

    fn on_broadcast(
        &mut self,
        _: &str,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, String> {
        self.with(|allocator| allocator.handle_broadcast(src, payload, now))
    }

    fn on_gossip(&mut self, _: &str, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, String> {
        self.with(|allocator| allocator.handle_gossip(payload, now))
    }

    fn state(&mut self, _: &str, now: Now) -> Option<Vec<u8>> {
        let state = self.ipam.allocator.as_mut().map(|allocator| allocator.state(now));
        self.ipam.collect(self.outputs);
        state
    }

    fn merge(&mut self, _: &str, queued: &mut Vec<u8>, more: &[u8]) {
        Allocator::merge(queued, more);
    }
}
