//! The ways from one bridge to the other.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weave_datapath::{Datapath, DatapathConfig, DatapathStats, DeviceState, FactReceiver, Report};
use weave_overlay::forward::{Fact, Neighbour, Overlay, Tables};
use weave_overlay::sleeve;
use weave_switch::{ForwardingTable, MacConfig, MacTable, Routes};
use weave_types::{ConnectionId, ConnectionUid, PeerName};

use crate::Site;

/// What connects the two bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// A VXLAN device of the kernel as a port of each bridge.
    Vxlan,
    /// Sleeve.
    Plain,
    /// Sleeve with a session key.
    Encrypted,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Vxlan => "vxlan",
            Path::Plain => "plain",
            Path::Encrypted => "encrypted",
        })
    }
}

/// A path in use.
pub(crate) struct Running(Vec<Peer>);

impl Path {
    pub(crate) const ALL: [Path; 3] = [Path::Vxlan, Path::Plain, Path::Encrypted];

    pub(crate) fn parse(name: &str) -> Option<Path> {
        Path::ALL.into_iter().find(|path| path.to_string() == name)
    }

    pub(crate) fn start(self, sites: &[Site; 2]) -> Running {
        match self {
            Path::Vxlan => vxlan(sites),
            Path::Plain => Running(sleeve(sites, None)),
            Path::Encrypted => Running(sleeve(sites, Some([42; 32]))),
        }
    }
}

impl Running {
    /// The counters of both peers, if there are any.
    pub(crate) fn stop(self) -> Vec<DatapathStats> {
        self.0.into_iter().map(Peer::stop).collect()
    }
}

fn vxlan(sites: &[Site; 2]) -> Running {
    for (i, site) in sites.iter().enumerate() {
        let other = 2 - i;
        site.host.sh(&format!(
            "ip link add vxlan mtu 1376 type vxlan id 7 dev wire remote 10.9.0.{other} dstport 6784
             ip link set vxlan master weave up"
        ));
    }
    Running(Vec::new())
}

fn sleeve(sites: &[Site; 2], key: Option<[u8; 32]>) -> Vec<Peer> {
    let names = [1, 2].map(|i| PeerName::from_bytes([2, 0, 0, 0, 0, i]));
    let peers = [0, 1].map(|i| {
        let (site, other) = (&sites[i], 1 - i);
        site.host.sh("ip link add vethwe-bridge mtu 1376 type veth peer name vethwe-datapath mtu 1376
             ip link set vethwe-bridge master weave up; ip link set vethwe-datapath up");
        let session = sleeve::Session::new(sleeve::SessionConfig {
            own: names[i],
            remote: names[other],
            conn: ConnectionId(1),
            uid: ConnectionUid(1),
            outbound: i == 0,
            key,
        });
        let remote: SocketAddr = format!("10.9.0.{}:6783", other + 1).parse().expect("an address");
        let path = sleeve::Path {
            remote: Some(remote),
            mtu: 1500 - session.overhead(),
            max_payload: 1500 - 28,
            stack_fragments: true,
        };
        let neighbour = Neighbour { session, confirmed: true, path, overlay: Overlay::Sleeve };
        Peer::start(site, names[i], Arc::new(neighbour))
    });
    peers.into()
}

/// A full mesh of two.
struct Two {
    own: PeerName,
    other: [PeerName; 1],
}

impl Routes for Two {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        (dst == self.other[0]).then_some(dst)
    }
    fn broadcast(&self, src: PeerName) -> &[PeerName] {
        if src == self.own { &self.other } else { &[] }
    }
    fn knows(&self, peer: PeerName) -> bool {
        peer == self.own || peer == self.other[0]
    }
}

/// A data path with a node that only learns MACs.
struct Peer {
    stopping: Arc<AtomicBool>,
    node: JoinHandle<Datapath>,
}

impl Peer {
    fn start(site: &Site, own: PeerName, neighbour: Arc<Neighbour>) -> Peer {
        let mut macs = MacTable::new(MacConfig::new(own));
        let routes: Arc<dyn Routes> = Arc::new(Two { own, other: [neighbour.session.remote()] });
        let tables = move |generation, macs: &MacTable| {
            let forwarding = ForwardingTable { own, macs: macs.snapshot(), routes: Arc::clone(&routes) };
            Arc::new(Tables::new(generation, forwarding, vec![Arc::clone(&neighbour)]))
        };
        let config = DatapathConfig::default();
        let first = tables(0, &macs);
        let (datapath, facts) =
            site.host.run(|| Datapath::start(&config, first)).expect("sockets and threads");
        wait_until_up(&datapath, &facts);
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let node = std::thread::spawn(move || {
            let mut generation = 0;
            while !stop.load(Ordering::Relaxed) {
                let reports = facts.recv_timeout(Duration::from_millis(100));
                let now = weave_types::Instant::from_origin(config.origin.elapsed());
                for report in &reports {
                    match report {
                        Report::Fact(Fact::Switch(weave_switch::Fact::LocalMac(mac))) => {
                            macs.learn_local(*mac, now);
                        }
                        Report::Fact(Fact::Switch(weave_switch::Fact::RemoteMac { mac, peer })) => {
                            macs.learn_remote(*mac, *peer, now);
                        }
                        other => println!("{own}: {other:?}"),
                    }
                }
                if !reports.is_empty() {
                    generation += 1;
                    datapath.publish(tables(generation, &macs));
                }
            }
            datapath
        });
        Peer { stopping, node }
    }

    fn stop(self) -> DatapathStats {
        self.stopping.store(true, Ordering::Relaxed);
        let datapath = self.node.join().expect("the node does not panic");
        let stats = datapath.stats();
        datapath.stop();
        stats
    }
}

fn wait_until_up(datapath: &Datapath, facts: &FactReceiver) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while datapath.device_state() != DeviceState::Up {
        assert!(Instant::now() < deadline, "{:?}", datapath.device_state());
        facts.recv_timeout(Duration::from_millis(100));
    }
}
