//! The simulated network: which hosts reach each other, and delay, loss and duplication of packets, from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_types::Instant;

/// The port on which every simulated peer listens.
pub(crate) const PORT: u16 = 6783;
/// The port of VXLAN packets.
pub(crate) const VXLAN_PORT: u16 = PORT + 1;
/// Length of the IP and UDP headers of a datagram, bytes.
pub(crate) const IP_UDP_HEADERS: usize = 28;

/// The number of a simulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u16);

impl HostId {
    /// The host's address on the underlay.
    pub fn ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 1, (self.0 / 250) as u8, (self.0 % 250) as u8 + 1))
    }

    /// The host with this address, if it is one of the simulation's.
    pub fn from_ip(ip: IpAddr) -> Option<HostId> {
        match ip {
            IpAddr::V4(a) if a.octets()[..2] == [10, 1] => {
                let [_, _, high, low] = a.octets();
                Some(HostId(u16::from(high) * 250 + u16::from(low.checked_sub(1)?)))
            }
            _ => None,
        }
    }

    /// The address on which the host's peer listens.
    pub(crate) fn listener(self) -> SocketAddr {
        SocketAddr::new(self.ip(), PORT)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {}", self.0)
    }
}

/// Faults and delays of the network.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Chance that a datagram is lost, 0 to 1.
    pub loss: f64,
    /// Chance that a datagram arrives twice.
    pub duplication: f64,
    /// Shortest one-way delay.
    pub latency: Duration,
    /// Upper bound of the random delay that is added to it for each datagram, so that datagrams overtake each other.
    pub jitter: Duration,
    /// Chance that a datagram takes up to 15 s longer.
    pub stall: f64,
    /// Largest IP packet that passes with DF set, bytes; larger ones vanish (a black hole).
    pub mtu: usize,
    /// Whether received TCP bytes are delivered in pieces of random length.
    pub split_stream_randomly: bool,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            loss: 0.0,
            duplication: 0.0,
            latency: Duration::from_micros(300),
            jitter: Duration::from_micros(200),
            stall: 0.0,
            mtu: 1500,
            split_stream_randomly: false,
        }
    }
}

/// The underlay.
pub struct Net {
    pub faults: Faults,
    /// Pairs of hosts, the lower number first.
    cut: BTreeSet<(HostId, HostId)>,
    /// Pairs of which the first cannot open connections to the second, nor send it datagrams that are no answers.
    blocked: BTreeSet<(HostId, HostId)>,
    /// Pairs of which no packet of the first reaches the second.
    one_way_cuts: BTreeSet<(HostId, HostId)>,
    /// Time of the last datagram from the first to the second: a firewall lets answers pass for a while.
    last_passed: BTreeMap<(HostId, HostId), Instant>,
    /// Whether a firewall drops VXLAN packets.
    pub vxlan_blocked: bool,
    /// Hosts without power.
    powered_off: BTreeSet<HostId>,
    rng: ChaCha12Rng,
}

impl Net {
    pub fn new(faults: Faults, rng: ChaCha12Rng) -> Net {
        Net {
            faults,
            cut: BTreeSet::new(),
            blocked: BTreeSet::new(),
            one_way_cuts: BTreeSet::new(),
            last_passed: BTreeMap::new(),
            vxlan_blocked: false,
            powered_off: BTreeSet::new(),
            rng,
        }
    }

    /// Cuts or heals the link between two hosts, both directions.
    pub fn set_cut(&mut self, a: HostId, b: HostId, cut: bool) {
        let key = (a.min(b), a.max(b));
        if cut {
            self.cut.insert(key);
        } else {
            self.cut.remove(&key);
            self.one_way_cuts.remove(&(a, b));
            self.one_way_cuts.remove(&(b, a));
        }
    }

    /// Drops all packets from `a` to `b` until that link is healed. Streams stall in both directions, since acknowledgements are
    /// lost.
    pub fn cut_one_way(&mut self, a: HostId, b: HostId) {
        self.one_way_cuts.insert((a, b));
    }

    /// Whether a TCP stream between the two makes progress.
    pub(crate) fn streams_pass(&self, a: HostId, b: HostId) -> bool {
        self.connected(a, b) && !self.one_way_cuts.contains(&(a, b)) && !self.one_way_cuts.contains(&(b, a))
    }

    /// Heals every link. Firewalls stay.
    pub fn heal_all(&mut self) {
        self.cut.clear();
        self.one_way_cuts.clear();
    }

    /// Puts a firewall or NAT in front of `b`, which rejects connections of `a` and datagrams of `a` that are no answers. The other
    /// direction is open.
    pub fn block(&mut self, a: HostId, b: HostId) {
        if a != b {
            self.blocked.insert((a, b));
            self.blocked.remove(&(b, a));
        }
    }

    /// Whether there is a firewall.
    pub fn is_blocking(&self) -> bool {
        !self.blocked.is_empty()
    }

    pub(crate) fn set_power(&mut self, host: HostId, on: bool) {
        if on {
            self.powered_off.remove(&host);
        } else {
            self.powered_off.insert(host);
        }
    }

    /// Whether packets pass between the two.
    pub fn connected(&self, a: HostId, b: HostId) -> bool {
        let powered = !self.powered_off.contains(&a) && !self.powered_off.contains(&b);
        powered && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// Whether `a` can open a connection to `b`.
    pub fn dialable(&self, a: HostId, b: HostId) -> bool {
        self.streams_pass(a, b) && !self.blocked.contains(&(a, b))
    }

    /// How many of `len` bytes that have arrived are delivered at once.
    pub(crate) fn random_segment(&mut self, len: usize) -> usize {
        match self.rng.random_range(0..6) {
            0 => len.min(1),
            1..3 => self.rng.random_range(1..=len),
            _ => len,
        }
    }

    /// A one-way delay.
    pub(crate) fn random_delay(&mut self) -> Duration {
        let jitter = self.faults.jitter.as_nanos() as u64;
        let extra = if jitter == 0 { 0 } else { self.rng.random_range(0..jitter) };
        self.faults.latency + Duration::from_nanos(extra)
    }

    /// The delays of the copies of one datagram, of which there are none, one or two.
    pub(crate) fn datagram_delays(
        &mut self,
        a: HostId,
        b: HostId,
        payload: usize,
        df: bool,
        now: Instant,
    ) -> Vec<Duration> {
        /// Lifetime of a firewall's state: answers pass for so long.
        const FIREWALL_STATE_TIMEOUT: Duration = Duration::from_secs(60);
        let too_big = df && payload + IP_UDP_HEADERS > self.faults.mtu;
        if too_big || !self.connected(a, b) {
            return Vec::new();
        }
        if !self.blocked.is_empty() {
            let answer = self.last_passed.get(&(b, a)).is_some_and(|at| now - *at <= FIREWALL_STATE_TIMEOUT);
            if self.blocked.contains(&(a, b)) && !answer {
                return Vec::new();
            }
            self.last_passed.insert((a, b), now);
        }
        self.message_delays(a, b)
    }

    /// The delays of the copies of a message that other hosts may relay: of all cuts only one-way cuts stop it.
    pub(crate) fn message_delays(&mut self, a: HostId, b: HostId) -> Vec<Duration> {
        const MAX_STALL_MS: u64 = 15_000;
        if self.one_way_cuts.contains(&(a, b)) || self.rng.random_bool(self.faults.loss) {
            return Vec::new();
        }
        let copies = if self.rng.random_bool(self.faults.duplication) { 2 } else { 1 };
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let stalled = self.faults.stall > 0.0 && self.rng.random_bool(self.faults.stall);
            let stall = if stalled { self.rng.random_range(0..MAX_STALL_MS) } else { 0 };
            arrivals.push(self.random_delay() + Duration::from_millis(stall));
        }
        arrivals
    }
}
