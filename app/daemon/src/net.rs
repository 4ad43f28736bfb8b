//! TCP for the mesh: the listener, one reader and one writer task per connection, dialling, name resolution.
//!
//! The tasks send [`Event`]s to the task that owns the node. That queue is bounded, so a peer that sends faster than the node
//! decides is not read any further. Bytes to write wait in the connection's own queue; each part that was written is reported,
//! so that the mesh can bound the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::socket::{Shutdown, setsockopt, sockopt::TcpUserTimeout};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use weave_host::NetworkMonitor;
use weave_mesh::StreamEnd;
use weave_types::ConnectionId;

const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Time to write the rest of the queue after the node has closed the connection.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed accept (no descriptors left, say).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// A connection that is being tested ends if something is not acknowledged for this time.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Duration of a test.
const PROBE_PERIOD: Duration = Duration::from_secs(2);
/// Most bytes taken from a connection at once.
const READ_SIZE: usize = 16 << 10;

/// An input for the node. `R` identifies a name resolution.
#[derive(Debug)]
pub(crate) enum Event<R> {
    /// The answer to `next` is the delay before the next connection is accepted.
    Accepted {
        stream: TcpStream,
        local: SocketAddr,
        remote: SocketAddr,
        next: oneshot::Sender<Duration>,
    },
    Dialled {
        conn: ConnectionId,
        stream: TcpStream,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// The error has Go's wording.
    DialFailed {
        conn: ConnectionId,
        error: String,
    },
    Received {
        conn: ConnectionId,
        bytes: Vec<u8>,
    },
    Written {
        conn: ConnectionId,
        bytes: usize,
    },
    /// The other side or the kernel closed it. The text has Go's wording.
    Closed {
        conn: ConnectionId,
        end: StreamEnd,
    },
    /// The addresses or routes of the host have changed; it has lost these addresses.
    NetworkChanged {
        lost: BTreeSet<IpAddr>,
    },
    Resolved {
        id: R,
        result: Result<Vec<IpAddr>, String>,
    },
}

struct Conn {
    /// Queue of bytes to write. When it is dropped, the writer task writes the rest and ends.
    writer: mpsc::UnboundedSender<Vec<u8>>,
    reader: AbortHandle,
    /// Belongs to the tasks, and is closed when they end.
    stream: Weak<TcpStream>,
}

pub(crate) struct Net<R> {
    events: mpsc::Sender<Event<R>>,
    /// Local address of outgoing connections.
    host: Option<IpAddr>,
    conns: BTreeMap<ConnectionId, Conn>,
    dialling: BTreeMap<ConnectionId, AbortHandle>,
    writers: JoinSet<()>,
}

/// Binds the listener for peers: `host`, or all addresses of IPv4, like the UDP sockets of the data path. `::` is all addresses
/// of both families.
pub(crate) fn listen(host: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let addr = SocketAddr::new(host.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port);
    weave_host::fault_injection::io_fail_point(&format_args!("listening on {addr}"))?;
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if addr.is_ipv6() {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &false)?;
    }
    socket.bind(addr)?;
    socket.listen(128)
}

/// Reports changes of the host's network until the receiver of the events is gone.
pub(crate) fn watch_network<R: Send + 'static>(events: mpsc::Sender<Event<R>>) -> io::Result<()> {
    let watch = move || {
        let result = NetworkMonitor::open().and_then(|mut monitor| {
            loop {
                let lost = monitor.wait()?;
                if events.blocking_send(Event::NetworkChanged { lost }).is_err() {
                    return Ok(());
                }
            }
        });
        if let Err(e) = result {
            tracing::warn!("connections are not made again as soon as addresses of this host change: {e}");
        }
    };
    std::thread::Builder::new().name("weave-network".to_owned()).spawn(watch).map(drop)
}

impl<R: Send + 'static> Net<R> {
    pub(crate) fn new(events: mpsc::Sender<Event<R>>, host: Option<IpAddr>) -> Net<R> {
        Net { events, host, conns: BTreeMap::new(), dialling: BTreeMap::new(), writers: JoinSet::new() }
    }

    /// The local address of outgoing connections, if it is configured.
    pub(crate) fn host(&self) -> Option<IpAddr> {
        self.host
    }

    /// Accepts connections one at a time, with the delay that each [`Event::Accepted`] is answered with.
    pub(crate) fn accept(&self, listener: TcpListener) {
        let events = self.events.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, remote)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                };
                let Ok(local) = stream.local_addr() else { continue };
                let (local, remote) = (canonical(local), canonical(remote));
                let (next, delay) = oneshot::channel();
                if events.send(Event::Accepted { stream, local, remote, next }).await.is_err() {
                    return;
                }
                tokio::time::sleep(delay.await.unwrap_or(ACCEPT_RETRY_DELAY)).await;
            }
        });
    }

    /// Starts the reader and the writer of an established connection.
    pub(crate) fn add(
        &mut self,
        conn: ConnectionId,
        stream: TcpStream,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        self.dialling.remove(&conn);
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let (writer, queue) = mpsc::unbounded_channel();
        let endpoints = Endpoints { conn, local, remote };
        let reader = tokio::spawn(read(stream.clone(), endpoints, self.events.clone())).abort_handle();
        while self.writers.try_join_next().is_some() {}
        let weak = Arc::downgrade(&stream);
        self.writers.spawn(write(stream, endpoints, queue, self.events.clone()));
        self.conns.insert(conn, Conn { writer, reader, stream: weak });
    }

    /// Ends the connection soon if the other host does not acknowledge what is written to it.
    pub(crate) fn probe(&self, conn: ConnectionId) {
        let Some(stream) = self.conns.get(&conn).map(|c| c.stream.clone()) else { return };
        tokio::spawn(async move {
            set_user_timeout(&stream, PROBE_TIMEOUT);
            tokio::time::sleep(PROBE_PERIOD).await;
            set_user_timeout(&stream, Duration::ZERO);
        });
    }

    pub(crate) fn write(&mut self, conn: ConnectionId, bytes: Vec<u8>) {
        if let Some(c) = self.conns.get(&conn) {
            // A writer that has failed has sent `Event::Closed`.
            let _ = c.writer.send(bytes);
        }
    }

    /// Closes a connection after its queue has been written, or aborts an attempt. `false` if there is none.
    pub(crate) fn close(&mut self, conn: ConnectionId) -> bool {
        if let Some(attempt) = self.dialling.remove(&conn) {
            attempt.abort();
            return true;
        }
        match self.conns.remove(&conn) {
            Some(c) => {
                c.reader.abort();
                true
            }
            None => false,
        }
    }

    /// Closes all connections and waits until their queues are written, for [`DRAIN_TIMEOUT`] at most.
    pub(crate) async fn shut_down(mut self, mut events: mpsc::Receiver<Event<R>>) {
        let conns: Vec<_> = self.conns.keys().copied().collect();
        for conn in conns {
            self.close(conn);
        }
        // Writers still send events. They are not needed, but a full queue would block the writers.
        let drained = async {
            loop {
                tokio::select! {
                    joined = self.writers.join_next() => if joined.is_none() { break },
                    Some(_) = events.recv() => {}
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
    }

    pub(crate) fn is_open(&self, conn: ConnectionId) -> bool {
        self.conns.contains_key(&conn)
    }

    pub(crate) fn is_dialling(&self, conn: ConnectionId) -> bool {
        self.dialling.contains_key(&conn)
    }

    /// Removes a failed attempt. `false` if it was aborted before.
    pub(crate) fn dial_failed(&mut self, conn: ConnectionId) -> bool {
        self.dialling.remove(&conn).is_some()
    }

    pub(crate) fn dial(&mut self, conn: ConnectionId, addr: SocketAddr) {
        let events = self.events.clone();
        let host = self.host.filter(|h| h.is_ipv4() == addr.is_ipv4());
        let listening = self.host.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let task = tokio::spawn(async move {
            let attempt = match speaks_to(listening, addr.ip()) {
                true => connect(host, addr).await,
                false => Err(other_family(listening)),
            };
            let event = match attempt {
                Ok((stream, local)) => Event::Dialled { conn, stream, local, remote: addr },
                Err(e) => {
                    let from = host.map(|h| h.to_string()).unwrap_or_default();
                    Event::DialFailed { conn, error: format!("dial tcp {from}:0->{addr}: {}", e) }
                }
            };
            let _ = events.send(event).await;
        });
        self.dialling.insert(conn, task.abort_handle());
    }

    pub(crate) fn resolve(&self, id: R, host: String) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let result = match tokio::net::lookup_host((host.as_str(), 0)).await {
                Ok(addrs) => {
                    let mut ips: Vec<_> = addrs.map(|a| canonical(a).ip()).collect();
                    ips.dedup();
                    Ok(ips)
                }
                Err(e) => Err(format!("lookup {host}: {}", lookup_text(&e))),
            };
            let _ = events.send(Event::Resolved { id, result }).await;
        });
    }
}

/// Whether a peer that listens on `listening` has datagrams for `remote`: a connection needs both protocols.
fn speaks_to(listening: IpAddr, remote: IpAddr) -> bool {
    listening.is_ipv4() == remote.is_ipv4() || listening == Ipv6Addr::UNSPECIFIED
}

fn other_family(listening: IpAddr) -> String {
    let family = if listening.is_ipv4() { "IPv4" } else { "IPv6" };
    format!("this peer listens on {listening}, which is {family} only ('--host ::' is IPv4 and IPv6)")
}

async fn connect(host: Option<IpAddr>, addr: SocketAddr) -> Result<(TcpStream, SocketAddr), String> {
    let attempt = async {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(|e| ("socket", e))?;
        if let Some(host) = host {
            socket.bind((host, 0).into()).map_err(|e| ("bind", e))?;
        }
        let stream = socket.connect(addr).await.map_err(|e| ("connect", e))?;
        let local = stream.local_addr().map_err(|e| ("getsockname", e))?;
        Ok((stream, canonical(local)))
    };
    match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
        Ok(result) => result.map_err(|(step, e): (_, io::Error)| format!("{step}: {}", errno_text(&e))),
        Err(_) => Err("i/o timeout".to_owned()),
    }
}

#[derive(Clone, Copy)]
struct Endpoints {
    conn: ConnectionId,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Endpoints {
    fn end(&self, what: &str, e: &io::Error) -> StreamEnd {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let text = format!("{what} tcp {}->{}: {what}: {}", self.local, self.remote, errno_text(e));
        match e.kind() {
            BrokenPipe | ConnectionReset => StreamEnd::ByRemote(text),
            _ => StreamEnd::Broken(text),
        }
    }
}

/// Sets for how long written data may stay unacknowledged; zero is the kernel's default of many minutes.
fn set_user_timeout(stream: &Weak<TcpStream>, timeout: Duration) {
    if let Some(stream) = stream.upgrade()
        && let Err(e) = setsockopt(&*stream, TcpUserTimeout, &(timeout.as_millis() as u32))
    {
        tracing::debug!("cannot set the timeout of a connection: {e}");
    }
}

async fn read<R>(from: Arc<TcpStream>, endpoints: Endpoints, events: mpsc::Sender<Event<R>>) {
    let conn = endpoints.conn;
    let end = loop {
        if let Err(e) = from.readable().await {
            break endpoints.end("read", &e);
        }
        match read_some(&from) {
            Ok(bytes) if bytes.is_empty() => break StreamEnd::ByRemote("EOF".to_owned()),
            Ok(bytes) => {
                if events.send(Event::Received { conn, bytes }).await.is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => break endpoints.end("read", &e),
        }
    };
    let _ = events.send(Event::Closed { conn, end }).await;
}

/// The buffer is on the stack, so that an idle connection holds none.
fn read_some(from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut buffer = [0; READ_SIZE];
    from.try_read(&mut buffer).map(|n| buffer[..n].to_vec())
}

async fn write<R>(
    to: Arc<TcpStream>,
    endpoints: Endpoints,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    events: mpsc::Sender<Event<R>>,
) {
    let conn = endpoints.conn;
    let mut last = None;
    while let Some(bytes) = queue.recv().await {
        // The queue is closed when the node has closed the connection.
        let result = if queue.is_closed() {
            let until = *last.get_or_insert_with(|| tokio::time::Instant::now() + DRAIN_TIMEOUT);
            match tokio::time::timeout_at(until, write_all(&to, &bytes)).await {
                Ok(result) => result,
                Err(_) => return,
            }
        } else {
            write_unless_closed(&to, &bytes, &queue).await
        };
        let event = match result {
            Ok(()) => Event::Written { conn, bytes: bytes.len() },
            Err(e) => Event::Closed { conn, end: endpoints.end("write", &e) },
        };
        let failed = matches!(event, Event::Closed { .. });
        if events.send(event).await.is_err() || failed {
            return;
        }
    }
    let _ = nix::sys::socket::shutdown(to.as_raw_fd(), Shutdown::Write);
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes everything, or as much as is possible in [`DRAIN_TIMEOUT`] after the node has closed the connection.
async fn write_unless_closed(
    to: &TcpStream,
    bytes: &[u8],
    queue: &mpsc::UnboundedReceiver<Vec<u8>>,
) -> io::Result<()> {
    let closed = async {
        while !queue.is_closed() {
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        }
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        result = write_all(to, bytes) => result,
        () = closed => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Turns an IPv4-mapped IPv6 address into an IPv4 address.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The kernel's error in Go's wording: `connection refused`.
pub(crate) fn errno_text(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_ascii_lowercase(),
        None => e.to_string(),
    }
}

/// The resolver's error without the prefix that the standard library adds.
fn lookup_text(e: &io::Error) -> String {
    let text = e.to_string();
    if text.contains("Name or service not known") || text.contains("No address associated") {
        return "no such host".to_owned();
    }
    text.rsplit_once(": ").map_or(text.clone(), |(_, tail)| tail.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_of_the_other_family_are_not_dialled() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (listening, v4, v6) in [
            ("0.0.0.0", true, false),
            ("10.0.0.1", true, false),
            ("::", true, true),
            ("fd00::1", false, true),
        ] {
            let reached = ["10.0.0.2", "fd00::2"].map(|remote| speaks_to(ip(listening), ip(remote)));
            assert_eq!(reached, [v4, v6], "{listening}");
        }
        assert_eq!(
            other_family(ip("0.0.0.0")),
            "this peer listens on 0.0.0.0, which is IPv4 only ('--host ::' is IPv4 and IPv6)"
        );
    }
}
