//! The routes of address allocation over real sockets, with a node and its store.

use std::path::Path;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weave_ipam::{AddrRange, Init, Loaded, RequestId, Subnet};
use weave_node::{IpamConfig, Node, Output};
use weave_types::{Cidr, Instant, Now, PeerName, PeerUid};

use super::{Access, Listener};
use crate::allocation::{Allocation, AllocationRequest, AllocationResponse, Source, own_networks};
use crate::config::ListenAddr;
use crate::control::{AllocationInfo, Control, Request};
use crate::storage::AllocationStore;

struct Setup {
    range: Subnet,
    default_subnet: Subnet,
    init: Init,
    calls: usize,
}

impl Setup {
    fn of(range: &str, default_subnet: &str) -> Setup {
        Setup {
            range: range.parse().unwrap(),
            default_subnet: default_subnet.parse().unwrap(),
            init: Init::Consensus(None),
            calls: 100,
        }
    }
}

/// A peer without a network, driven as in `core`.
struct Peer {
    node: Node,
    allocation: Allocation,
    start: std::time::Instant,
}

impl Peer {
    fn new(dir: &Path, setup: &Setup) -> Peer {
        let name: PeerName = "01:00:00:00:00:0a".parse().unwrap();
        let store = AllocationStore::open(dir).unwrap();
        let loaded = store.load().unwrap();
        let allocation = Allocation::new(store, &loaded, "weave").with_max_waiting(setup.calls);
        let uid = PeerUid(7);
        let config = weave_ipam::Config {
            default_subnet: setup.default_subnet,
            init: setup.init.clone(),
            ..weave_ipam::Config::new(name, uid, "host-a", setup.range)
        };
        let mesh = weave_mesh::Config::new(name, "host-a".to_owned(), uid);
        let config = weave_node::Config { mesh, ipam: Some(IpamConfig { config, loaded }), dns: None };
        let now = Now { mono: Instant::ORIGIN, wall: Duration::from_secs(1_700_000_000) };
        let node = Node::new(config, ChaCha12Rng::seed_from_u64(1), now);
        Peer { node, allocation, start: std::time::Instant::now() }
    }

    fn now(&self) -> Now {
        let passed = self.start.elapsed();
        Now { mono: Instant::from_origin(passed), wall: Duration::from_secs(1_700_000_000) + passed }
    }

    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            let now = self.now();
            match output {
                Output::PersistIpam(persist) => self.allocation.persist(&persist, now),
                Output::Done { request, result } => {
                    self.allocation.sync_pending(now);
                    self.allocation.done(request, result, &mut self.node, now);
                }
                _ => {}
            }
        }
        let now = self.now();
        self.allocation.sync_pending(now);
    }

    fn handle(&mut self, request: Request) {
        let now = self.now();
        match request {
            Request::Allocate { id, request, source, answer } => {
                let ready = self.allocation.submit(id, request, source, answer, &mut self.node, now);
                self.drain();
                self.allocation.limit_waiting(id, &mut self.node, now);
                if let Some((answer, reply)) = ready {
                    let _ = answer.send(reply);
                }
            }
            Request::Abandon { id, request } => self.allocation.abandon(id, &request, &mut self.node, now),
            other => panic!("{other:?}"),
        }
        self.drain();
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut target_count_rx: mpsc::Receiver<u32>) {
        self.drain();
        loop {
            let at = self.node.poll_timeout().map_or(Duration::from_secs(1), |(at, _)| at - self.now().mono);
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.handle(request),
                    None => return,
                },
                Some(n) = target_count_rx.recv() => {
                    let now = self.now();
                    self.node.with_allocator(now, |a| a.handle_target_count(n, now));
                }
                () = tokio::time::sleep(at.min(Duration::from_millis(100))) => {
                    let now = self.now();
                    self.node.handle_timeout(now);
                    self.allocation.handle_timeout(&mut self.node, now);
                }
            }
            self.drain();
        }
    }
}

/// Returns the address of the server, and a sender for the number of other peers that the peer was started with.
async fn serve(dir: &Path, setup: &Setup) -> (std::net::SocketAddr, mpsc::Sender<u32>) {
    let (control, requests) = Control::new(64);
    let control = control.with_allocation(AllocationInfo::new(setup.default_subnet));
    let (target_count_tx, target_count_rx) = mpsc::channel(4);
    let peer = Peer::new(dir, setup);
    tokio::spawn(peer.run(requests, target_count_rx));
    (listen(control).await, target_count_tx)
}

async fn listen(control: Control) -> std::net::SocketAddr {
    let any = ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(&any, Access::Control).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(listener.serve(control));
    addr
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    content_type: String,
    body: String,
}

async fn send(addr: std::net::SocketAddr, method: &str, path: &str, form: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    let content =
        format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", form.len());
    stream.write_all(format!("{head}{content}\r\n{form}").as_bytes()).await.unwrap();
    stream
}

async fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes));
    end.await.expect("an answer").unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    let header = head.lines().filter_map(|l| l.split_once(": "));
    let mut content = header.filter(|(n, _)| n.eq_ignore_ascii_case("content-type"));
    Answer {
        status: head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0),
        content_type: content.next().map(|(_, v)| v.to_owned()).unwrap_or_default(),
        body: body.to_owned(),
    }
}

async fn call(addr: std::net::SocketAddr, method: &str, path: &str) -> Answer {
    read(send(addr, method, path, "").await).await
}

#[tokio::test]
async fn answers_match_the_recorded_exchanges() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/ipam/http.json");
    let vector: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (addr, _) = serve(dir.path(), &Setup::of("10.2.0.0/24", "10.2.0.0/25")).await;
    let steps = vector["steps"].as_array().unwrap();
    for step in steps {
        let text = |key: &str| step[key].as_str().unwrap_or_default();
        if text("note").starts_with("after shutdown") {
            let refused = call(addr, "DELETE", "/peer").await;
            assert!(refused.status == 409 && refused.body.contains("in use on this host"), "{refused:?}");
            let left = call(addr, "DELETE", "/peer?force=true").await;
            assert_eq!((left.status, left.body.as_str()), (204, ""));
        }
        let answer = read(send(addr, text("method"), text("path"), text("form")).await).await;
        let expected = Answer {
            status: u16::try_from(step["status"].as_u64().unwrap()).unwrap(),
            content_type: text("content_type").to_owned(),
            body: text("body").to_owned(),
        };
        // We sort by id; the order of 2.8.1 is random.
        let sorted = |a: &Answer| {
            let owned = weave_api::Owned::from_json(&a.body).ok().and_then(|o| o.owned);
            owned.map(|mut all| {
                all.sort_by(|a, b| a.container.cmp(&b.container));
                all
            })
        };
        let same = answer == expected || (sorted(&answer).is_some() && sorted(&answer) == sorted(&expected));
        assert!(same, "{}: {} {}: {answer:?}, not {expected:?}", text("note"), text("method"), text("path"));
    }
    assert!(steps.len() > 50);
}

/// The recorded exchanges are those of a peer without a tracker.
#[tokio::test]
async fn tracker_has_the_name_of_the_original() {
    let (control, _requests) = Control::new(1);
    let mut info = AllocationInfo::new("10.2.0.0/24".parse().unwrap());
    info.no_masq_local = true;
    let any = ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(&any, Access::Control).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(listener.serve(control.with_allocation(info)));
    let answer = call(addr, "GET", "/ipinfo/tracker").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "no-masq-local\n"));
}

#[test]
fn own_networks_are_those_of_the_ring() {
    let networks = |text: &str| text.split(' ').map(|n| n.parse().unwrap()).collect::<Vec<Cidr>>();
    let setup = Setup::of("10.2.0.0/24", "10.2.0.0/25");
    let dir = tempfile::tempdir().unwrap();
    let mut peer = Peer::new(dir.path(), &setup);
    assert_eq!(own_networks(&peer.node), []);
    let (answer, _) = tokio::sync::oneshot::channel();
    peer.handle(Request::Allocate {
        id: RequestId(1),
        request: AllocationRequest::Prime,
        source: Source::Tcp,
        answer,
    });
    assert_eq!(own_networks(&peer.node), networks("10.2.0.0/24"));

    let mut ring = peer.node.allocator().unwrap().ring().clone();
    ring.grant(AddrRange::new(0x0a02_00c0, 0x0a02_0100), "01:00:00:00:00:0b".parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let shared = Loaded { ring: Some(ring), ..Loaded::default() };
    AllocationStore::open(dir.path()).unwrap().replace(&shared).unwrap();
    let peer = Peer::new(dir.path(), &setup);
    assert_eq!(own_networks(&peer.node), networks("10.2.0.0/25 10.2.0.128/26"));

    let mesh = weave_mesh::Config::new(peer.node.name(), "host-a".to_owned(), PeerUid(7));
    let config = weave_node::Config { mesh, ipam: None, dns: None };
    let off = Node::new(config, ChaCha12Rng::seed_from_u64(1), peer.now());
    assert_eq!(own_networks(&off), [], "no addresses are allocated");
}

#[tokio::test]
async fn requests_of_disconnected_clients_are_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let (addr, target_count_tx) = serve(dir.path(), &Setup::of("10.2.0.0/24", "10.2.0.0/24")).await;
    target_count_tx.send(2).await.unwrap();
    let waiting = call(addr, "GET", "/ipinfo/waiting").await;
    assert_eq!((waiting.status, waiting.body.as_str()), (200, ""));
    let gone: Vec<_> = [
        send(addr, "POST", "/ip/gone", "").await,
        send(addr, "PUT", "/ip/gone/10.2.0.77/24", "").await,
        send(addr, "GET", "/ring", "").await,
    ]
    .into();
    let stays = send(addr, "POST", "/ip/stays", "").await;
    let wanted = |text: String| text.contains("2 of 3 peers must agree");
    while !wanted(call(addr, "GET", "/ipinfo/waiting").await.body) {}
    drop(gone);
    // The daemon cancels the requests when it sees the end of the connections. Then there is a ring.
    tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            // Abandoned requests are cancelled before this one is answered, because all go through one queue.
            tokio::task::yield_now().await;
            target_count_tx.send(0).await.unwrap();
            let ring = tokio::time::timeout(Duration::from_secs(6), call(addr, "GET", "/ring")).await;
            if ring.is_ok() {
                break;
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(read(stays).await.body, "10.2.0.1/24");
    let all = call(addr, "GET", "/ip").await.body;
    assert_eq!(all, "{\"owned\":[{\"containerid\":\"stays\",\"addrs\":[\"10.2.0.1/24\"]}]}\n");
}

#[tokio::test]
async fn concurrent_requests_get_distinct_addresses_that_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup { calls: 1024, ..Setup::of("10.2.0.0/20", "10.2.0.0/20") };
    let (addr, _) = serve(dir.path(), &setup).await;
    let calls: Vec<_> = (0..1000)
        .map(|n| tokio::spawn(async move { call(addr, "POST", &format!("/ip/c{n}")).await }))
        .collect();
    let mut addresses = std::collections::BTreeSet::new();
    for call in calls {
        let answer = call.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(addresses.insert(answer.body.clone()), "{} was allocated twice", answer.body);
    }
    // As after SIGKILL, only what has been written is read.
    let loaded = AllocationStore::open(dir.path()).unwrap().load().unwrap();
    let stored: std::collections::BTreeSet<String> =
        loaded.owned.values().flat_map(|r| r.cidrs.iter().map(ToString::to_string)).collect();
    assert_eq!(stored, addresses);
    assert!(loaded.ring.is_some_and(|r| !r.is_empty()));
}

#[tokio::test]
async fn waiting_requests_leave_room_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup { calls: 8, ..Setup::of("10.2.0.0/24", "10.2.0.0/30") };
    let (addr, _) = serve(dir.path(), &setup).await;
    for n in 1..3 {
        assert_eq!(call(addr, "POST", &format!("/ip/fill{n}")).await.body, format!("10.2.0.{n}/30"));
    }
    let mut waiting = Vec::new();
    // Of eight places, one subnet has six.
    let refused = loop {
        let owner = waiting.len();
        let stream = send(addr, "POST", &format!("/ip/w{owner}"), "").await;
        let shown = async {
            let line = format!("for w{owner},");
            while !call(addr, "GET", "/ipinfo/waiting").await.body.contains(&line) {}
        };
        let mut byte = [0];
        tokio::select! {
            () = shown => waiting.push(stream),
            _ = stream.peek(&mut byte) => break read(stream).await,
        }
    };
    assert_eq!(waiting.len(), 6);
    assert_eq!(
        (refused.status, refused.body.as_str()),
        (
            503,
            "too many calls wait already: 6 over TCP, 6 of them for an address of 10.2.0.0/30; try again later\n"
        )
    );
    for (method, path, status) in [
        ("GET", "/ip/fill1", 200),
        ("POST", "/ip/other/10.2.0.128/25", 200),
        ("PUT", "/ip/other/10.9.0.1/24", 204),
        ("POST", "/ip/fill1", 200),
    ] {
        assert_eq!(call(addr, method, path).await.status, status, "{method} {path} does not wait");
    }
    assert_eq!(call(addr, "DELETE", "/ip/fill1").await.status, 204);
    assert_eq!(read(waiting.remove(0)).await.body, "10.2.0.1/30");
}

/// The places are those of a source: what waits over TCP does not keep root's commands from waiting.
#[test]
fn waiting_requests_are_limited_by_source_and_container() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup { calls: 32, ..Setup::of("10.2.0.0/24", "10.2.0.0/24") };
    let mut peer = Peer::new(dir.path(), &setup);
    let now = peer.now();
    peer.node.with_allocator(now, |a| a.handle_target_count(4, now));
    let mut id = 0;
    let mut answers = Vec::new();
    let mut refused = |peer: &mut Peer, source, container: &str, subnet: &str| {
        id += 1;
        let (answer, mut result) = tokio::sync::oneshot::channel();
        let request = AllocationRequest::Allocate {
            container: container.to_owned(),
            subnet: subnet.parse().unwrap(),
            is_container: false,
        };
        peer.handle(Request::Allocate { id: RequestId(id), request, source, answer });
        let refused = matches!(result.try_recv(), Ok(AllocationResponse::Busy(_)));
        answers.push(result);
        refused
    };
    let subnets = ["10.2.0.0/25", "10.2.0.128/25"];
    for n in 0..32 {
        let (container, subnet) = (format!("c{}", n / 2), subnets[n / 24]);
        assert!(!refused(&mut peer, Source::Tcp, &container, subnet), "{n}");
        let full = peer.allocation.full();
        assert_eq!(full.is_empty(), n < 23, "{n}: {full:?}");
    }
    assert!(refused(&mut peer, Source::Tcp, "other", subnets[1]), "all places are taken");
    assert!(!refused(&mut peer, Source::Socket, "c1", subnets[0]));
    assert!(!refused(&mut peer, Source::Socket, "c1", subnets[0]));
    assert!(refused(&mut peer, Source::Socket, "c1", subnets[1]), "one container has two places");
    assert!(!refused(&mut peer, Source::Socket, "c2", subnets[1]));
    assert_eq!(
        peer.node.allocator().unwrap().status(now).pending.len(),
        35,
        "refused requests are cancelled"
    );
    let full = peer.allocation.full();
    assert_eq!(
        full,
        [
            "other calls to end: 32 over TCP, 24 of them for an address of 10.2.0.0/25 wait already, and further ones are refused"
        ]
    );
}

#[tokio::test]
async fn addresses_survive_a_restart_with_the_same_range() {
    let dir = tempfile::tempdir().unwrap();
    let (addr, _) = serve(dir.path(), &Setup::of("10.2.0.0/24", "10.2.0.0/24")).await;
    assert_eq!(call(addr, "POST", "/ip/c1").await.body, "10.2.0.1/24");
    assert_eq!(call(addr, "PUT", "/ip/c2/10.9.0.1/24").await.status, 204);
    let (again, _) = serve(dir.path(), &Setup::of("10.2.0.0/24", "10.2.0.0/24")).await;
    assert_eq!(call(again, "GET", "/ip/c1").await.body, "10.2.0.1/24");
    assert_eq!(call(again, "POST", "/ip/c1").await.body, "10.2.0.1/24");
    assert_eq!(call(again, "POST", "/ip/c3").await.body, "10.2.0.2/24");
    let taken = call(again, "PUT", "/ip/c3/10.9.0.1/24").await;
    assert_eq!(taken.body, "Unable to claim: address 10.9.0.1/24 already in use by c2\n");
    let (other, _) = serve(dir.path(), &Setup::of("10.3.0.0/24", "10.3.0.0/24")).await;
    assert_eq!(call(other, "GET", "/ip").await.body, "{\"owned\":null}\n");
    assert_eq!(call(other, "POST", "/ip/c1").await.body, "10.3.0.1/24");
}

/// A peer that answers removals only; it refuses `refusals` of them.
async fn removal_after(refusals: usize) -> Answer {
    let (control, mut requests) = Control::new(1);
    let control = control.with_allocation(AllocationInfo::new("10.32.0.0/12".parse().unwrap()));
    tokio::spawn(async move {
        let mut refused = 0;
        while let Some(Request::Allocate { answer, .. }) = requests.recv().await {
            refused += 1;
            let _ = answer.send(match refused > refusals {
                true => AllocationResponse::TakenOver(3),
                false => AllocationResponse::Refused("reachable".to_owned()),
            });
        }
    });
    call(listen(control).await, "DELETE", "/peer/h2").await
}

#[tokio::test]
async fn removal_of_a_peer_that_has_just_ended_waits_and_says_so() {
    let refused = removal_after(usize::MAX).await;
    assert_eq!((refused.status, refused.body.trim_end()), (409, "reachable"));
    let at_once = removal_after(0).await;
    assert_eq!((at_once.status, at_once.body.as_str()), (200, "3 IPs taken over from h2\n"));
    let later = removal_after(11).await;
    let (first, second) = later.body.split_once('\n').unwrap();
    assert_eq!((later.status, first), (200, "3 IPs taken over from h2"));
    assert!(second.starts_with("waited 1.") && second.contains("no other peer was connected"), "{second}");
}
