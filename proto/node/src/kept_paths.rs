//! Paths of fastdp whose connections have ended (docs/spec/mesh.md 18.6).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weave_overlay::Traffic;
use weave_overlay::fastdp::FastdpPath;
use weave_types::{Instant, PeerName};

/// How long the kernel uses the path of the last connection after a new one was made.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The kernel goes on using these paths while their peers are expected back, and until a new connection uses fastdp.
#[derive(Default)]
pub(crate) struct KeptPaths(BTreeMap<PeerName, KeptPath>);

struct KeptPath {
    path: FastdpPath,
    traffic: Arc<Traffic>,
    /// The peer is back: a new connection has so much time to use fastdp.
    until: Option<Instant>,
}

impl KeptPaths {
    /// The connection that used this path has ended.
    pub(crate) fn insert(&mut self, peer: PeerName, path: FastdpPath, traffic: Arc<Traffic>) {
        self.0.insert(peer, KeptPath { path, traffic, until: None });
    }

    /// There is a new connection.
    pub(crate) fn confirm(&mut self, peer: PeerName, now: Instant) {
        if let Some(kept) = self.0.get_mut(&peer) {
            kept.until = Some(now + TIMEOUT);
        }
    }

    /// The new connection uses fastdp, or cannot.
    pub(crate) fn remove(&mut self, peer: PeerName) {
        self.0.remove(&peer);
    }

    /// Forgets the paths of peers to which there is no direct route any more.
    pub(crate) fn review(&mut self, is_direct: impl Fn(PeerName) -> bool) {
        self.0.retain(|peer, _| is_direct(*peer));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerName, FastdpPath, &Arc<Traffic>)> {
        self.0.iter().map(|(peer, kept)| (*peer, kept.path, &kept.traffic))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter_map(|kept| kept.until).min()
    }

    /// Forgets the paths whose time is over, and returns their peers.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<PeerName> {
        let timed_out = |kept: &KeptPath| kept.until.is_some_and(|until| until <= now);
        self.0.extract_if(.., |_, kept| timed_out(kept)).map(|(peer, _)| peer).collect()
    }
}
