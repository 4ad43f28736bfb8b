//! Hosts for tests: a namespace with a bridge, the kernel path and containers; all hosts are on one wire.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weave_overlay::Traffic;
use weave_overlay::fastdp::{
    FastdpPath, KernelEvent, KernelNeighbour, KernelPeer, KernelRoute, KernelTables,
};
use weave_switch::{MacConfig, MacTable, SwitchEvent};
use weave_types::{MacAddr, PeerName, ShortId};

use crate::namespace::Namespace;
use crate::{Counter, Error, EventReader, Fastdp, FastdpConfig};

pub(crate) const HOLD_DOWN: Duration = Duration::from_millis(500);
pub(crate) const PORT: u16 = 6784;

/// A bridge in a namespace of its own, to which hosts are attached.
pub(crate) struct Wire(Namespace);

impl Wire {
    /// `None`, with a message, without the rights to make one.
    pub(crate) fn new() -> Option<Wire> {
        let namespace = Namespace::new()?;
        namespace.sh("ip link add name hub type bridge mcast_snooping 0; ip link set hub up");
        Some(Wire(namespace))
    }

    pub(crate) fn sh(&self, script: &str) -> String {
        self.0.sh(script)
    }
}

/// A container: a namespace with an interface on the bridge of its host.
pub(crate) struct Container(pub(crate) Namespace);

impl Container {
    pub(crate) fn sh(&self, script: &str) -> String {
        self.0.sh(script)
    }

    /// Sends `count` pings, at most one per 10 ms. Returns how many were answered.
    pub(crate) fn ping(&self, to: &str, count: u32, options: &str) -> u32 {
        let out = self.sh(&format!("ping -n -c {count} -i 0.01 -W 2 {options} {to} || true"));
        let line = out.lines().find(|l| l.contains("received")).unwrap_or_else(|| panic!("{out}"));
        line.split(", ")
            .nth(1)
            .and_then(|part| part.split(' ').next())
            .and_then(|n| n.parse().ok())
            .expect("a number")
    }
}

/// A host: number `n` has the address 10.9.0.n, the short id 100 + n, and peer name n.
pub(crate) struct Host {
    pub(crate) number: u8,
    pub(crate) namespace: Namespace,
    pub(crate) origin: Instant,
}

/// The MAC of container `n`.
pub(crate) fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

pub(crate) fn name(number: u8) -> PeerName {
    PeerName::from_bytes([0, 0, 0, 0, 0, number])
}

pub(crate) fn id(number: u8) -> ShortId {
    ShortId::new(100 + u16::from(number)).expect("small")
}

pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, number)
}

impl Host {
    pub(crate) fn new(wire: &Wire, number: u8) -> Host {
        let namespace = Namespace::new().expect("the wire could be made");
        namespace.sh(&format!(
            "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null || true
             for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done
             ip link add eth0 type veth peer name h{number} netns {}
             ip addr add 10.9.0.{number}/24 dev eth0; ip link set eth0 up
             ip link add weave type bridge mcast_snooping 0; ip link set weave mtu 1376 up
             ip link add vethwe-bridge mtu 1376 type veth peer name vethwe-datapath mtu 1376
             ip link set vethwe-bridge master weave up; ip link set vethwe-datapath up
             echo 8 > /proc/sys/net/ipv4/conf/vethwe-datapath/arp_ignore",
            wire.0.path()
        ));
        wire.sh(&format!("ip link set h{number} master hub up"));
        Host { number, namespace, origin: Instant::now() }
    }

    pub(crate) fn sh(&self, script: &str) -> String {
        self.namespace.sh(script)
    }

    /// A container 10.32.0.`n`, with MAC 02:00:00:00:00:n.
    pub(crate) fn container(&self, n: u8) -> Container {
        self.container_with(n, mac(n))
    }

    /// The same with another MAC.
    pub(crate) fn container_with(&self, n: u8, mac: MacAddr) -> Container {
        let namespace = Namespace::new().expect("the wire could be made");
        namespace.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 2>/dev/null || true");
        self.sh(&format!(
            "ip link add c{n} mtu 1376 type veth peer name ethwe mtu 1376 address {mac} netns {}
             ip link set c{n} master weave up",
            namespace.path()
        ));
        namespace.sh(&format!("ip addr add 10.32.0.{n}/24 dev ethwe; ip link set ethwe up"));
        let container = Container(namespace);
        eventually("the port forwards", || {
            self.sh(&format!("bridge link show dev c{n}")).contains("forwarding")
        });
        container
    }

    pub(crate) fn config(&self) -> FastdpConfig {
        FastdpConfig::new("vethwe-datapath", PORT, self.origin)
    }

    pub(crate) fn try_start(&self) -> Result<(Fastdp, EventReader), Error> {
        self.namespace.run(|| Fastdp::start(&self.config()))
    }

    pub(crate) fn start(&self) -> Peer<'_> {
        let (fastdp, reader) = self.try_start().expect("the kernel has what is needed");
        let mut config = MacConfig::new(name(self.number));
        // Shorter than in practice, for tests that wait for it.
        config.hold_down = HOLD_DOWN;
        Peer {
            host: self,
            fastdp,
            reader,
            macs: MacTable::new(config),
            events: Vec::new(),
            traffic: Vec::new(),
        }
    }

    /// The neighbour `number` of this host.
    pub(crate) fn neighbour(&self, number: u8) -> KernelNeighbour {
        let path = FastdpPath { local: address(self.number), remote: address(number), port: PORT };
        KernelNeighbour { name: name(number), short_id: id(number), path, traffic: Arc::default() }
    }

    pub(crate) fn now(&self) -> weave_types::Instant {
        weave_types::Instant::from_origin(self.origin.elapsed())
    }
}

/// How frames reach another host in tests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reach {
    /// By this neighbour.
    Via(u8),
    User,
    Nothing,
}

/// A host whose kernel path runs, with what a daemon does: it learns MACs and publishes tables.
pub(crate) struct Peer<'h> {
    pub(crate) host: &'h Host,
    pub(crate) fastdp: Fastdp,
    pub(crate) reader: EventReader,
    pub(crate) macs: MacTable,
    pub(crate) events: Vec<KernelEvent>,
    /// Of the neighbours that were published last.
    pub(crate) traffic: Vec<Arc<Traffic>>,
}

impl Peer<'_> {
    /// Tables in which the other hosts are reached as given; broadcasts of `trees` go to these neighbours, and with 0 among them to user
    /// space.
    pub(crate) fn tables(&mut self, reach: &[(u8, Reach)], trees: &[(u8, &[u8])]) -> KernelTables {
        let own = self.host.number;
        let mut neighbours: Vec<u8> =
            reach.iter().filter_map(|(_, r)| if let Reach::Via(n) = r { Some(*n) } else { None }).collect();
        neighbours.extend(trees.iter().flat_map(|(_, to)| to.iter().copied()).filter(|n| *n != 0));
        neighbours.sort_unstable();
        neighbours.dedup();
        let position = |n: u8| neighbours.iter().position(|i| *i == n).expect("listed") as u16;
        let peers = std::iter::once((own, Reach::Nothing)).chain(reach.iter().copied());
        let peers = peers.map(|(number, reach)| {
            let tree = trees.iter().find(|(n, _)| *n == number).map_or(&[][..], |(_, to)| to);
            KernelPeer {
                short_id: id(number),
                name: name(number),
                route: match reach {
                    Reach::Via(n) => KernelRoute::Kernel(position(n)),
                    Reach::User => KernelRoute::User,
                    Reach::Nothing => KernelRoute::None,
                },
                broadcast: tree.iter().filter(|n| **n != 0).map(|n| position(*n)).collect(),
                broadcast_user: tree.contains(&0),
            }
        });
        let mut peers: Vec<KernelPeer> = peers.collect();
        peers.sort_by_key(|peer| peer.short_id);
        KernelTables {
            own: name(own),
            own_id: id(own),
            peers,
            neighbours: neighbours.iter().map(|n| self.host.neighbour(*n)).collect(),
            ports: vec![PORT],
            macs: self.macs.snapshot(),
        }
    }

    pub(crate) fn publish(&mut self, tables: &KernelTables) {
        let (host, fastdp) = (self.host, &mut self.fastdp);
        host.namespace.run(|| fastdp.publish(tables)).expect("published");
        self.traffic = tables.neighbours.iter().map(|neighbour| neighbour.traffic.clone()).collect();
    }

    /// Reads the events that are there, and learns what they say.
    pub(crate) fn read_events(&mut self) {
        while let Some(event) = self.reader.read() {
            if let KernelEvent::Switch { event, .. } = &event {
                let now = self.host.now();
                match event {
                    SwitchEvent::LocalMac(mac) => drop(self.macs.learn_local(*mac, now)),
                    SwitchEvent::RemoteMac { mac, peer } => drop(self.macs.learn_remote(*mac, *peer, now)),
                    _ => {}
                }
            }
            self.events.push(event);
        }
    }

    /// Waits until an event has arrived, and reads all that are there.
    pub(crate) fn wait_for(&mut self, what: &str, matches: impl Fn(&KernelEvent) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.read_events();
            if self.events.iter().any(&matches) {
                return;
            }
            assert!(Instant::now() < deadline, "timed out: {what}; {:?}", self.events);
            let mut fds = [PollFd::new(self.reader.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(200u16)).expect("polling");
        }
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        let all = self.fastdp.statistics().expect("counters");
        all.iter().find(|(c, _)| *c == counter).map_or(0, |(_, count)| count.frames)
    }

    /// Where the program has a MAC.
    pub(crate) fn place(&self, mac: MacAddr) -> Option<u16> {
        let all = self.fastdp.activity().expect("MACs");
        all.iter().find(|entry| entry.mac == mac).map(|entry| entry.peer.get())
    }
}

/// Full mesh of hosts 1 to `count`: publishes tables in which everybody reaches everybody directly.
pub(crate) fn publish_mesh(peers: &mut [Peer<'_>]) {
    let numbers: Vec<u8> = peers.iter().map(|peer| peer.host.number).collect();
    for peer in peers {
        let own = peer.host.number;
        let others: Vec<u8> = numbers.iter().copied().filter(|n| *n != own).collect();
        let reach: Vec<(u8, Reach)> = others.iter().map(|n| (*n, Reach::Via(*n))).collect();
        let tables = peer.tables(&reach, &[(own, &others)]);
        peer.publish(&tables);
    }
}

/// Waits until a condition is true, for at most 10 s. It is checked every few milliseconds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
