//! The allocator and its gossip channel.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use weave_ipam::{Allocator, Blame, CHANNEL, GossipError, Loaded, Policy};
use weave_mesh::{Channels, Mesh};
use weave_types::{Now, PeerName};

use crate::output::{Event, Output};

/// What the allocator is started with.
#[derive(Clone, Debug)]
pub struct IpamConfig {
    /// Range, default subnet, how the first owners are found. Name and nickname must be the mesh's.
    pub config: weave_ipam::Config,
    /// What was stored.
    pub loaded: Loaded,
}

/// The allocator, if there is one, and what it was told of the mesh. Without one the channel is passed on for others.
#[derive(Default)]
pub(crate) struct Ipam {
    pub(crate) allocator: Option<Allocator>,
    /// Outputs that need the mesh, in order.
    waiting: VecDeque<weave_ipam::Output>,
    /// Peers have come or gone since the allocator was told.
    pub(crate) peers_stale: bool,
    /// Direct peers have come or gone, or were found to be ourself.
    pub(crate) targets_stale: bool,
    reachable: BTreeMap<PeerName, String>,
    others: Option<u32>,
    policy: Policy,
}

impl Ipam {
    pub(crate) fn new(allocator: Option<Allocator>, policy: Policy) -> Ipam {
        Ipam { allocator, policy, peers_stale: true, targets_stale: true, ..Ipam::default() }
    }

    /// Moves what the allocator has put out. What is to be stored goes ahead of everything: of the bytes, too, that the mesh
    /// is about to be given.
    fn collect(&mut self, outputs: &mut VecDeque<Output>) {
        let Some(allocator) = &mut self.allocator else { return };
        while let Some(output) = allocator.poll_output() {
            let ahead = !self.policy.send_before_persist || self.waiting.is_empty();
            match output {
                weave_ipam::Output::Persist(persist) if ahead => {
                    outputs.push_back(Output::PersistIpam(persist))
                }
                other => self.waiting.push_back(other),
            }
        }
    }

    /// Tells the allocator about the mesh and the mesh about the allocator; false if there was nothing to do.
    pub(crate) fn settle(&mut self, mesh: &mut Mesh, outputs: &mut VecDeque<Output>, now: Now) -> bool {
        self.tell(mesh, now);
        self.collect(outputs);
        let Some(output) = self.waiting.pop_front() else { return false };
        match output {
            weave_ipam::Output::Persist(persist) => outputs.push_back(Output::PersistIpam(persist)),
            // The allocator asks again, or asks somebody else, if no answer comes.
            weave_ipam::Output::Unicast { to, payload } => drop(mesh.unicast(CHANNEL, to, &payload, now)),
            weave_ipam::Output::Broadcast(payload) => {
                mesh.broadcast(CHANNEL, &payload, &mut IpamChannels { ipam: self, outputs }, now);
            }
            weave_ipam::Output::Done(request, result) => outputs.push_back(Output::Done { request, result }),
            weave_ipam::Output::Event(event) => outputs.push_back(Output::Event(Event::Ipam(event))),
        }
        true
    }

    fn tell(&mut self, mesh: &Mesh, now: Now) {
        let Some(allocator) = &mut self.allocator else { return };
        if std::mem::take(&mut self.targets_stale) {
            let others = u32::try_from(mesh.direct_peers(true).len()).unwrap_or(u32::MAX);
            if self.others != Some(others) {
                self.others = Some(others);
                allocator.targets_changed(others, now);
            }
        }
        if std::mem::take(&mut self.peers_stale) {
            let reachable: BTreeMap<_, _> =
                mesh.peers().map(|(name, peer)| (name, peer.nickname.to_string())).collect();
            if reachable != self.reachable {
                allocator.topology_changed(&reachable, now);
                self.reachable = reachable;
            }
        }
    }
}

/// The channel as the mesh wants it.
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
            Err(error) if error.blame() == Blame::Conflict && !self.ipam.policy.disconnect_on_conflict => {
                Ok(R::default())
            }
            result => result.map_err(|e| e.to_string()),
        }
    }
}

impl Channels for IpamChannels<'_> {
    fn names(&self) -> &[&'static str] {
        if self.ipam.allocator.is_some() { &[CHANNEL] } else { &[] }
    }

    fn on_unicast(&mut self, _: &str, src: PeerName, payload: &[u8], now: Now) -> Result<(), String> {
        self.with(|allocator| allocator.on_unicast(src, payload, now))
    }

    fn on_broadcast(
        &mut self,
        _: &str,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, String> {
        self.with(|allocator| allocator.on_broadcast(src, payload, now))
    }

    fn on_gossip(&mut self, _: &str, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, String> {
        self.with(|allocator| allocator.on_gossip(payload, now))
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

/// A line for the log.
pub(crate) fn describe(event: &weave_ipam::Event, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use weave_ipam::Event as E;
    f.write_str("[allocator] ")?;
    let list = |items: Vec<String>| items.join(" ");
    match event {
        E::LoadedDiscarded(why) => write!(f, "{why}"),
        E::LoadedRing { owned } => write!(f, "initialising from persisted data, {owned} addresses are ours"),
        E::Electing { quorum: 0, source } => write!(f, "waiting for a ring from {source}"),
        E::Electing { quorum, source } => {
            write!(f, "assuming quorum size of {quorum}: more than half of {} ({source})", source.peers())
        }
        E::RingEstablished { seeds } => {
            let seeds = list(seeds.iter().map(ToString::to_string).collect());
            write!(f, "the range is divided; first among [{seeds}]")
        }
        E::QuorumTooSmall { quorum, known } => write!(
            f,
            "{known} peers elect, with a quorum of {quorum} two groups could decide differently: give all peers the same \
             larger count (--ipalloc-init consensus={known}) before the first address is used"
        ),
        E::Donated { to, range } => write!(f, "gave {range} to {to}"),
        E::Conflict { peer, conflict } => {
            write!(f, "conflict with {peer}: {conflict}; {}", conflict.remedy())
        }
        E::ConflictOver { peer } => write!(f, "the conflict with {peer} is over"),
        E::Yielded { addresses } => write!(f, "yielded {addresses} unused addresses to another peer"),
        E::PreclaimFailed { container, cidr, error } => {
            write!(
                f,
                "{cidr} is in use by {container} but cannot be claimed, it may be given out twice: {error}"
            )
        }
        E::Released { container, cidrs } => {
            let cidrs = list(cidrs.iter().map(ToString::to_string).collect());
            write!(f, "released [{cidrs}] of {container}, which is gone")
        }
        E::Waiting { request, waited } => {
            write!(
                f,
                "request {} has waited for {} s; 'weave status ipam' says why",
                request.0,
                waited.as_secs()
            )
        }
    }
}
