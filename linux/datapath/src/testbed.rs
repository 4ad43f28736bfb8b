//! Hosts, containers and peers made of network namespaces, for tests.
//!
//! ```text
//!  container 1 - bridge - uplink      underlay        uplink - bridge - container 2
//!  10.32.0.1                 10.9.0.1 --- 10.9.0.2                      10.32.0.2
//!  fd32::1                                                              fd32::2
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weave_overlay::ForwarderEvent;
use weave_overlay::forward::{Neighbour, Overlay, Tables};
use weave_overlay::udp::{Session, SessionConfig, UdpPath};
use weave_switch::{ForwardingTable, MacConfig, MacTable, Routes};
use weave_types::{ConnectionId, ConnectionUid, PeerName};

use crate::datapath::{Datapath, DatapathConfig};
use crate::events::DatapathEvent;
use crate::namespace::Namespace;
use crate::stats::DeviceState;

/// A host with one container.
pub(crate) struct Site {
    /// The namespace of the host, with the bridge `weave`.
    pub(crate) host: Namespace,
    /// The namespace of the container, with `ethwe`.
    pub(crate) container: Namespace,
}

impl Site {
    /// Creates host and container number `n` with bridge, without uplink and underlay. `None` without the rights to do so.
    pub(crate) fn new(n: u8, mtu: u32) -> Option<Site> {
        let site = Site { host: Namespace::new()?, container: Namespace::new()? };
        site.host.sh(&format!(
            "sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip link add weave address 02:00:00:00:00:0{n} type bridge; ip link set weave up
             ip link add vethwepl1 mtu {mtu} type veth peer name ethwe mtu {mtu} netns {}
             ip link set vethwepl1 master weave up",
            site.container.path()
        ));
        site.container.sh(&format!(
            "ip addr add 10.32.0.{n}/12 dev ethwe; ip addr add fd32::{n}/64 dev ethwe nodad; ip link set ethwe up"
        ));
        site.wait_for_ports(1);
        Some(site)
    }

    /// A port forwards only after the kernel has detected its carrier, which may take a second.
    fn wait_for_ports(&self, count: usize) {
        eventually("all ports of the bridge forward", || {
            self.host.sh("bridge link").matches("state forwarding").count() == count
        });
    }

    /// Creates sites 1 and 2, whose hosts are connected by `wire` with an MTU of 1500.
    pub(crate) fn pair(mtu: u32) -> Option<[Site; 2]> {
        let sites = [Site::new(1, mtu)?, Site::new(2, mtu)?];
        let peer = sites[1].host.path();
        sites[0].host.sh(&format!("ip link add wire type veth peer name wire netns {peer}"));
        for (n, site) in (1..).zip(&sites) {
            site.host.sh(&format!("ip addr add 10.9.0.{n}/24 dev wire; ip link set wire up"));
        }
        Some(sites)
    }

    /// Adds the uplink to the host.
    pub(crate) fn add_uplink(&self, mtu: u32) {
        self.host.sh(&format!(
            "ip link add vethwe-bridge mtu {mtu} type veth peer name vethwe-datapath mtu {mtu}
             ip link set vethwe-bridge master weave up; ip link set vethwe-datapath up"
        ));
        self.wait_for_ports(2);
    }
}

/// Name of peer number `n`.
pub(crate) fn name(n: u8) -> PeerName {
    PeerName::from_bytes([2, 0, 0, 0, 0, n])
}

/// The session between peers `own` and `remote`, on the side of `own`.
pub(crate) fn session(own: u8, remote: u8, key: Option<[u8; 32]>) -> Arc<Session> {
    Session::new(SessionConfig {
        own: name(own),
        remote: name(remote),
        conn: ConnectionId(remote.into()),
        uid: ConnectionUid(1),
        outbound: own < remote,
        key,
    })
}

/// An established connection over a path of `mtu` bytes.
pub(crate) fn neighbour(session: Arc<Session>, remote: SocketAddr, mtu: usize) -> Neighbour {
    let local = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let path = UdpPath {
        local,
        remote: Some(remote),
        mtu: mtu - session.overhead(),
        max_payload: mtu - 28,
        stack_fragments: true,
        batched: true,
    };
    Neighbour { session, confirmed: true, path, warp: None, overlay: Overlay::Sleeve }
}

/// Constant routes.
pub(crate) struct StaticRoutes {
    pub(crate) own: PeerName,
    /// Next hop by destination.
    pub(crate) unicast: BTreeMap<PeerName, PeerName>,
    /// Next hops by source.
    pub(crate) broadcast: BTreeMap<PeerName, Vec<PeerName>>,
}

impl StaticRoutes {
    /// Routes of peer `own`, whose only neighbour is `remote`.
    pub(crate) fn direct(own: u8, remote: u8) -> StaticRoutes {
        let (own, remote) = (name(own), name(remote));
        StaticRoutes { own, unicast: [(remote, remote)].into(), broadcast: [(own, vec![remote])].into() }
    }
}

impl Routes for StaticRoutes {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        self.unicast.get(&dst).copied()
    }
    fn broadcast(&self, src: PeerName) -> &[PeerName] {
        self.broadcast.get(&src).map_or(&[], Vec::as_slice)
    }
    fn knows(&self, peer: PeerName) -> bool {
        peer == self.own || self.unicast.contains_key(&peer)
    }
}

/// A data path with a simple node that only learns MACs.
pub(crate) struct Peer {
    pub(crate) datapath: Arc<Datapath>,
    events: Arc<Mutex<Vec<DatapathEvent>>>,
    stopping: Arc<AtomicBool>,
    node: JoinHandle<()>,
}

impl Peer {
    /// Starts the peer in the namespace of a host, with the uplink if `device`, and waits until the uplink works.
    pub(crate) fn start(
        host: &Namespace,
        device: bool,
        routes: StaticRoutes,
        neighbours: Vec<Neighbour>,
    ) -> Peer {
        let mut macs = MacTable::new(MacConfig::new(routes.own));
        let own = routes.own;
        let routes: Arc<dyn Routes> = Arc::new(routes);
        let neighbours: Vec<Arc<Neighbour>> = neighbours.into_iter().map(Arc::new).collect();
        let tables = move |generation, macs: &MacTable| {
            let forwarding = ForwardingTable { own, macs: macs.snapshot(), routes: Arc::clone(&routes) };
            Arc::new(Tables::new(generation, forwarding, neighbours.clone()))
        };
        let mut config = DatapathConfig::default();
        config.device = config.device.filter(|_| device);
        let origin = config.origin;
        let first = tables(0, &macs);
        let (datapath, receiver) = host
            .run(|| -> Result<_, crate::StartError> {
                let (mut datapath, receiver) = Datapath::start(&config, first)?;
                datapath.start_device(None)?;
                Ok((datapath, receiver))
            })
            .expect("sockets and threads");
        let (datapath, stopping) = (Arc::new(datapath), Arc::new(AtomicBool::new(false)));
        let all_events = Arc::new(Mutex::new(Vec::new()));
        let node = std::thread::spawn({
            let (datapath, stopping, all) = (datapath.clone(), stopping.clone(), all_events.clone());
            move || {
                let mut generation = 0;
                while !stopping.load(Ordering::Relaxed) {
                    let events = receiver.recv_timeout(Duration::from_millis(100));
                    let now = weave_types::Instant::from_origin(origin.elapsed());
                    for event in &events {
                        match event {
                            DatapathEvent::Forwarder(ForwarderEvent::Switch(
                                weave_switch::SwitchEvent::LocalMac(mac),
                            )) => {
                                macs.learn_local(*mac, now);
                            }
                            DatapathEvent::Forwarder(ForwarderEvent::Switch(
                                weave_switch::SwitchEvent::RemoteMac { mac, peer },
                            )) => {
                                macs.learn_remote(*mac, *peer, now);
                            }
                            _ => {}
                        }
                    }
                    if !events.is_empty() {
                        generation += 1;
                        datapath.publish(tables(generation, &macs));
                    }
                    all.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
                }
            }
        });
        let peer = Peer { datapath, events: all_events, stopping, node };
        if device {
            eventually("the uplink is up", || peer.datapath.device_state() == DeviceState::Up);
        }
        peer
    }

    /// Whether the threads have reported such an event.
    pub(crate) fn has_reported(&self, matches: impl Fn(&DatapathEvent) -> bool) -> bool {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().any(matches)
    }

    /// Stops node and data path.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.node.join().expect("the node does not panic");
        Arc::into_inner(self.datapath).expect("the node has ended").stop();
    }
}

/// Two connected peers.
pub(crate) fn peers(sites: &[Site; 2], key: Option<[u8; 32]>, path_mtu: usize) -> [Peer; 2] {
    [(1, 2), (2, 1)].map(|(own, remote)| {
        let address = SocketAddr::from(([10, 9, 0, remote], 6783));
        let neighbour = neighbour(session(own, remote, key), address, path_mtu);
        let host = &sites[usize::from(own) - 1].host;
        Peer::start(host, true, StaticRoutes::direct(own, remote), vec![neighbour])
    })
}

/// Waits until a condition is true, for at most 10 s. It is checked every few milliseconds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
