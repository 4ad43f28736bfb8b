//! How long pairs of containers hear nothing of each other after a cut under traffic.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_node::WarpConfig;
use weave_overlay::warp::{Cipher, KeyLimits};
use weave_types::{Instant, PeerName};

use crate::frames;
use crate::host::{Host, HostOptions};
use crate::net::{Faults, HostId};
use crate::world::World;

const HOSTS: u16 = 4;
/// Interval of the frames from each container to each other one.
const INTERVAL: Duration = Duration::from_millis(20);

/// Keys last for a moment only, so that they are replaced all the time.
const SHORT_LIMITS: KeyLimits = KeyLimits { datagrams: 200, time: Duration::from_secs(5) };

/// Which hosts have an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hosts {
    None,
    Some,
    All,
}

impl Hosts {
    fn choose(self, rng: &mut ChaCha12Rng) -> bool {
        self == Hosts::All || self == Hosts::Some && rng.random_bool(0.6)
    }
}

/// A full mesh with traffic between all pairs, of which a link is cut, in one direction or both; with fastdp a firewall may drop VXLAN
/// packets instead. Keys of warp last for a few hundred datagrams. Returns the longest silence of each ordered pair, in milliseconds, and panics if a frame arrives twice.
pub fn silences(seed: u64, fastdp: Hosts, warp: Hosts) -> Vec<u128> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let loss = f64::from(rng.random_range(0..3u8)) / 100.0;
    let latency = Duration::from_micros(rng.random_range(100..30_000));
    let mut world = World::new(seed, Faults { latency, ..Faults::default() });
    let options =
        HostOptions { password: rng.random_bool(0.5).then(|| "secret".to_owned()), ..HostOptions::default() };
    for n in 0..HOSTS {
        let targets: Vec<HostId> = n.checked_sub(1).map(HostId).into_iter().collect();
        let has_fastdp = fastdp.choose(&mut rng);
        let has_warp = warp.choose(&mut rng);
        let warp = has_warp.then(|| WarpConfig {
            preferred: if rng.random_bool(0.7) { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 },
            limits: SHORT_LIMITS,
        });
        world.add(HostId(n), HostOptions { fastdp: has_fastdp, warp, ..options.clone() }, &targets);
    }
    world.run_for(Duration::from_secs(30));
    world.net.faults.loss = loss;
    let mut traffic = Traffic::default();
    traffic.run(&mut world, Duration::from_secs(5));
    traffic.longest.clear();
    check_overlays(&world);
    let (a, b) = (rng.random_range(0..HOSTS), rng.random_range(1..HOSTS));
    let (a, b) = (HostId(a), HostId((a + b) % HOSTS));
    if fastdp != Hosts::None && rng.random_bool(0.3) {
        world.net.vxlan_blocked = true;
    } else if rng.random_bool(0.5) {
        world.net.set_cut(a, b, true)
    } else {
        world.net.cut_one_way(a, b)
    }
    traffic.run(&mut world, Duration::from_secs(5));
    traffic.longest.values().map(Duration::as_millis).collect()
}

/// Each connection uses the best overlay that both hosts have.
fn check_overlays(world: &World) {
    let names: BTreeMap<PeerName, HostId> = world.ids().into_iter().map(|id| (Host::name(id), id)).collect();
    for id in world.ids() {
        let host = world.host(id);
        let Some(node) = &host.node else { continue };
        let status = node.status(world.now());
        for connection in &status.mesh.connections {
            let Some(report) = status.connections.get(&connection.conn) else { continue };
            let other = &world.host(names[&connection.peer.name]).options;
            let encrypted = host.options.password.is_some();
            let expected = if !encrypted && host.options.fastdp && other.fastdp {
                "fastdp"
            } else if host.options.warp.is_some() && other.warp.is_some() {
                "warp"
            } else {
                "sleeve"
            };
            assert_eq!(report.overlay.as_deref(), Some(expected), "{id}: {report:?}");
        }
    }
}

#[derive(Default)]
pub(crate) struct Traffic {
    /// When each pair's last frame arrived.
    heard: BTreeMap<(HostId, HostId), Instant>,
    pub(crate) longest: BTreeMap<(HostId, HostId), Duration>,
    /// Frames may arrive twice: while peers disagree about the topology, floods do.
    pub(crate) may_repeat: bool,
}

impl Traffic {
    pub(crate) fn run(&mut self, world: &mut World, time: Duration) {
        let end = world.clock() + time;
        let ids = world.ids();
        while world.clock() < end {
            for &from in &ids {
                for &to in ids.iter().filter(|&&to| to != from) {
                    world.send_unicast(from, to, frames::MIN_LEN);
                }
            }
            world.run_for(INTERVAL);
            let now = world.clock();
            for &to in &ids {
                let mut frames: Vec<_> = std::mem::take(&mut world.host_mut(to).delivered)
                    .iter()
                    .filter_map(|f| frames::read(f))
                    .collect();
                let count = frames.len();
                frames.sort();
                frames.dedup();
                assert!(self.may_repeat || frames.len() == count, "frames arrived twice at {to}");
                for frame in frames.iter().filter(|frame| frame.from != to) {
                    self.heard.insert((frame.from, to), now);
                }
                for &from in ids.iter().filter(|&&from| from != to) {
                    let silence = now.saturating_since(*self.heard.entry((from, to)).or_insert(now));
                    let longest = self.longest.entry((from, to)).or_default();
                    *longest = silence.max(*longest);
                }
            }
        }
    }
}
