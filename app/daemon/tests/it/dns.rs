//! The DNS server over sockets of the loopback interface.

use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use weave_daemon::testing::{DnsServer, ListenError, ServerConfig};
use weave_dns::{AnswerConfig, HostName, Names};
use weave_types::PeerName;

const TIMEOUT: Duration = Duration::from_secs(20);
const NOERROR: u8 = 0;
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
const REFUSED: u8 = 5;

fn names(list: &[(&str, &str)]) -> Names {
    let mut names = Names::default();
    let peer = PeerName::from_number(1).unwrap();
    for (name, addr) in list {
        names.insert(&HostName::parse(name).unwrap(), peer, &"c1".into(), addr.parse().unwrap());
    }
    names
}

struct Server {
    server: DnsServer,
    names: Arc<ArcSwap<Names>>,
    dir: tempfile::TempDir,
}

impl Server {
    /// A server that forwards questions of 127.0.0.1 to `upstream`.
    fn start(upstream: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let resolv_conf = dir.path().join("resolv.conf");
        write_servers(&resolv_conf, upstream);
        let names = Arc::new(ArcSwap::from_pointee(names(&[("pingme.weave.local", "10.32.0.2")])));
        let config = ServerConfig {
            answer: AnswerConfig { domain: HostName::parse("weave.local").unwrap(), ttl: 1 },
            fallback_timeout: Duration::from_millis(300),
            resolv_conf,
            may_recurse: Arc::new(|addr| addr == IpAddr::V4(Ipv4Addr::LOCALHOST)),
            threads: 2,
        };
        let server = DnsServer::start(config, names.clone()).unwrap();
        Server { server, names, dir }
    }

    /// Listens on a port that the kernel chooses.
    fn listen(&self, address: &str) -> SocketAddr {
        let before = self.server.listen_addresses();
        let addresses: Vec<_> = before.iter().copied().chain([address.parse().unwrap()]).collect();
        // The port that the kernel chooses for TCP may be in use by another test for UDP.
        eventually("listens", || self.server.set_listen_addresses(&addresses).is_empty());
        *self.server.listen_addresses().iter().find(|addr| !before.contains(addr)).unwrap()
    }
}

fn write_servers(path: &Path, servers: &[&str]) {
    let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    // Replaced, as programs that manage this file do.
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend(b"\x01\0\0\x01\0\0\0\0\0\0");
    query.extend(HostName::parse(name).unwrap().key());
    query.extend([0, 1, 0, 1]);
    query
}

fn rcode(answer: &[u8]) -> u8 {
    answer[3] & 15
}

fn answers(answer: &[u8]) -> u16 {
    u16::from_be_bytes([answer[6], answer[7]])
}

fn client(from: &str) -> UdpSocket {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Receives a datagram, also if the end of a process of another test interrupts the wait.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

fn ask_from(from: &str, server: SocketAddr, name: &str) -> Vec<u8> {
    let socket = client(from);
    socket.connect(server).unwrap();
    socket.send(&query(7, name)).unwrap();
    let mut answer = [0; 4096];
    let (len, _) = receive(&socket, &mut answer);
    assert_eq!(answer[..2], [0, 7]);
    answer[..len].to_vec()
}

fn ask(server: SocketAddr, name: &str) -> Vec<u8> {
    ask_from("127.0.0.1", server, name)
}

fn tcp(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

fn send_over_tcp(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend(message);
    stream.write_all(&framed)
}

fn receive_over_tcp(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Waits until something holds.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Binds `address`, which was just closed. It is not always free at once: a process that another test starts has copies of all
/// sockets of this process until it executes its program.
fn bind_when_free(address: SocketAddr) -> (UdpSocket, TcpListener) {
    let bound = OnceCell::new();
    eventually("the port is free", || {
        UdpSocket::bind(address)
            .and_then(|udp| Ok((udp, TcpListener::bind(address)?)))
            .is_ok_and(|sockets| bound.set(sockets).is_ok())
    });
    bound.into_inner().unwrap()
}

#[test]
fn local_names_are_answered_over_udp_and_tcp() {
    let server = Server::start(&[]);
    let address = server.listen("127.0.0.1:0");
    let answer = ask(address, "pingme.weave.local");
    assert_eq!((rcode(&answer), answers(&answer)), (NOERROR, 1));
    assert_eq!(answer[answer.len() - 4..], [10, 32, 0, 2]);
    let mut stream = tcp(address);
    for _ in 0..3 {
        send_over_tcp(&mut stream, &query(7, "pingme.weave.local")).unwrap();
        assert_eq!(receive_over_tcp(&mut stream).unwrap(), answer);
    }
    server.names.store(Arc::new(Names::default()));
    assert_eq!(rcode(&ask(address, "pingme.weave.local")), NXDOMAIN);
    let counts = server.server.counts();
    assert_eq!((counts.addresses, counts.no_such_name, counts.dropped), (4, 1, 0));
}

/// A server for everything: answers each query with its own question, and NXDOMAIN over TCP.
struct Upstream {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Upstream {
    /// On port 53 of an address of the loopback interface, since files name no ports. Each test has another.
    fn bind(address: &str) -> Upstream {
        let udp = UdpSocket::bind((address, 53)).unwrap();
        udp.set_read_timeout(Some(TIMEOUT)).unwrap();
        Upstream { udp, tcp: TcpListener::bind((address, 53)).unwrap() }
    }

    fn answer_over_udp(&self) {
        let mut message = [0; 512];
        let (len, from) = receive(&self.udp, &mut message);
        message[2] |= 0x80;
        self.udp.send_to(&message[..len], from).unwrap();
    }

    fn answer_over_tcp(&self) {
        let (mut stream, _) = self.tcp.accept().unwrap();
        let mut message = receive_over_tcp(&mut stream).unwrap();
        message[2] |= 0x80;
        message[3] = NXDOMAIN;
        send_over_tcp(&mut stream, &message).unwrap();
    }
}

#[test]
fn other_questions_are_forwarded_by_the_protocol_of_the_client() {
    let upstream = Upstream::bind("127.10.1.1");
    let server = Server::start(&["127.10.1.1"]);
    let address = server.listen("127.0.0.1:0");
    assert_eq!(server.server.upstream(), ["127.10.1.1:53".parse().unwrap()]);
    std::thread::scope(|scope| {
        scope.spawn(|| upstream.answer_over_udp());
        assert_eq!(rcode(&ask(address, "www.example.com")), NOERROR);
        scope.spawn(|| upstream.answer_over_tcp());
        let mut stream = tcp(address);
        send_over_tcp(&mut stream, &query(9, "www.example.com")).unwrap();
        let answer = receive_over_tcp(&mut stream).unwrap();
        assert_eq!((rcode(&answer), &answer[..2]), (NXDOMAIN, &[0, 9][..]));
    });
    let counts = server.server.counts();
    assert_eq!((counts.forwarder.queries, counts.forwarder.exchanges), (2, 2));
}

#[test]
fn servers_that_do_not_answer_are_a_failure_and_do_not_delay_local_names() {
    // Nobody listens on the first; the second does not answer.
    let upstream = Upstream::bind("127.10.2.2");
    let server = Server::start(&["127.10.2.1", "127.10.2.2"]);
    let address = server.listen("127.0.0.1:0");
    let (slow, fast) = (client("127.0.0.1"), client("127.0.0.1"));
    for socket in [&slow, &fast] {
        socket.connect(address).unwrap();
    }
    let mut buffer = [0; 512];
    slow.send(&query(1, "www.example.com")).unwrap();
    receive(&upstream.udp, &mut buffer);
    fast.send(&query(2, "pingme.weave.local")).unwrap();
    receive(&fast, &mut buffer);
    assert_eq!(rcode(&buffer), NOERROR);
    receive(&slow, &mut buffer);
    assert_eq!(rcode(&buffer), SERVFAIL);
    assert_eq!(server.server.counts().forwarder.failed_exchanges, 2);
}

#[test]
fn questions_beyond_the_queue_are_answered_with_a_failure() {
    const QUEUE: usize = 1024;
    let server = Server::start(&[]);
    let address = server.listen("127.0.0.1:0");
    // The forwarding task reads this file until it is dropped.
    let fifo = server.dir.path().join("resolv.conf");
    std::fs::remove_file(&fifo).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR).unwrap();
    let writer = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let socket = client("127.0.0.1");
    socket.connect(address).unwrap();
    let mut answer = [0; 512];
    // Besides those in the queue, the task holds one, or none yet.
    let mut sent = 0;
    while rcode(&answer) != SERVFAIL {
        assert!(sent <= QUEUE + 1, "{sent} questions have no answer");
        socket.send(&query(sent as u16, "www.example.com")).unwrap();
        sent += 1;
        // The answer tells that the question before it was read.
        socket.send(&query(sent as u16, "pingme.weave.local")).unwrap();
        receive(&socket, &mut answer);
    }
    assert!(sent > QUEUE, "{sent}");
    assert_eq!(server.server.counts().queue_full, 1);
    drop(writer);
}

#[test]
fn only_clients_that_may_are_forwarded_for() {
    let server = Server::start(&[]);
    let address = server.listen("0.0.0.0:0");
    let address = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 9).into(), address.port());
    assert_eq!(rcode(&ask_from("127.0.0.2", address, "www.example.com")), REFUSED);
    assert_eq!(rcode(&ask_from("127.0.0.2", address, "pingme.weave.local")), NOERROR);
    assert_eq!(rcode(&ask_from("127.0.0.1", address, "www.example.com")), SERVFAIL);
    assert_eq!(server.server.counts().not_allowed, 1);
}

#[test]
fn changed_file_of_servers_is_read_again() {
    let server = Server::start(&["127.10.3.1"]);
    let address = server.listen("127.0.0.1:0");
    assert_eq!(server.server.upstream(), ["127.10.3.1:53".parse().unwrap()]);
    let upstream = Upstream::bind("127.10.3.2");
    let file = server.dir.path().join("resolv.conf");
    write_servers(&file, &["127.10.3.2"]);
    let new = ["127.10.3.2:53".parse().unwrap()];
    eventually("the new server is used", || server.server.upstream() == new);
    std::thread::scope(|scope| {
        scope.spawn(|| upstream.answer_over_udp());
        assert_eq!(rcode(&ask(address, "www.example.com")), NOERROR);
    });
    std::fs::remove_file(&file).unwrap();
    assert_eq!(server.server.upstream(), new, "the former servers stay");
    write_servers(&file, &["127.10.3.1", "127.0.0.1"]);
    eventually("the file is read again", || server.server.upstream().len() == 2);
}

#[test]
fn addresses_are_added_and_removed_without_disturbing_others() {
    let server = Server::start(&[]);
    let first = server.listen("127.0.0.1:0");
    let mut stream = tcp(first);
    send_over_tcp(&mut stream, &query(7, "pingme.weave.local")).unwrap();
    receive_over_tcp(&mut stream).unwrap();
    let second = server.listen("127.0.0.2:0");
    assert_eq!(rcode(&ask(first, "pingme.weave.local")), NOERROR);
    assert_eq!(rcode(&ask(second, "pingme.weave.local")), NOERROR);
    assert!(server.server.set_listen_addresses(&[second]).is_empty());
    assert_eq!(server.server.listen_addresses(), [second]);
    // The port is free, and a connection that was made before goes on.
    let (udp, listener) = bind_when_free(first);
    send_over_tcp(&mut stream, &query(7, "pingme.weave.local")).unwrap();
    assert_eq!(rcode(&receive_over_tcp(&mut stream).unwrap()), NOERROR);
    assert_eq!(rcode(&ask(second, "pingme.weave.local")), NOERROR);

    // What is in use or absent is an error that names it; the rest works, and it is tried again.
    let wanted = [second, first, "192.0.2.1:53".parse().unwrap()];
    let errors = server.server.set_listen_addresses(&wanted);
    let texts: Vec<_> = errors.iter().map(ListenError::to_string).collect();
    let this = format!("(pid {}) uses it", std::process::id());
    assert!(texts[0].contains(&first.to_string()) && texts[0].ends_with(&this), "{texts:?}");
    assert!(texts[1].contains("192.0.2.1:53") && texts[1].contains("no interface"), "{texts:?}");
    assert_eq!(server.server.listen_addresses(), [second]);
    drop(listener);
    eventually("only UDP is in use", || {
        server.server.set_listen_addresses(&wanted)[0].to_string().contains("UDP")
    });
    drop(udp);
    eventually("listens at all addresses that exist", || {
        server.server.set_listen_addresses(&wanted).len() == 1
    });
    assert_eq!(rcode(&ask(first, "pingme.weave.local")), NOERROR);
}

#[test]
fn ports_are_free_when_the_server_is_gone() {
    let server = Server::start(&[]);
    let address = server.listen("127.0.0.1:0");
    let _stream = tcp(address);
    drop(server);
    bind_when_free(address);
}

#[test]
fn connections_of_a_client_are_limited_in_number_and_time() {
    let server = Server::start(&[]);
    let address = server.listen("127.0.0.1:0");
    let mut streams: Vec<_> = (0..40).map(|_| tcp(address)).collect();
    eventually("connections are refused", || server.server.counts().refused_connections == 8);
    let works = |stream: &mut TcpStream| {
        send_over_tcp(stream, &query(7, "pingme.weave.local")).and_then(|()| receive_over_tcp(stream)).is_ok()
    };
    let idle_since = Instant::now();
    assert_eq!(streams.iter_mut().map(works).filter(|works| *works).count(), 32);
    // Half a query is given up after 2 s.
    let began = Instant::now();
    streams[0].write_all(&[0]).unwrap();
    assert_eq!(streams[0].read_to_end(&mut Vec::new()).unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    eventually("there is room for another", || works(&mut tcp(address)));
    // No query at all is given up after 8 s.
    assert_eq!(streams[1].read_to_end(&mut Vec::new()).unwrap(), 0);
    assert!(idle_since.elapsed() >= Duration::from_secs(8), "{:?}", idle_since.elapsed());
}

#[test]
fn many_clients_at_once_get_their_own_answers() {
    let server = Server::start(&[]);
    let address = server.listen("127.0.0.1:0");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let socket = client("127.0.0.1");
                socket.connect(address).unwrap();
                for id in 0..500u16 {
                    let name = if id % 2 == 0 { "pingme.weave.local" } else { "nosuch.weave.local" };
                    socket.send(&query(id, name)).unwrap();
                    let mut answer = [0; 512];
                    receive(&socket, &mut answer);
                    assert_eq!(answer[..2], id.to_be_bytes());
                    assert_eq!(rcode(&answer), if id % 2 == 0 { NOERROR } else { NXDOMAIN });
                }
            });
        }
    });
    let counts = server.server.counts();
    assert_eq!((counts.addresses, counts.no_such_name, counts.dropped), (1000, 1000, 0));
}
