//! Queries over TCP: each message has two bytes of length before it (RFC 1035 4.2.2).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use weave_dns::{ErrorCode, Responder, Transport, Verdict, answer_with_error};

use super::Shared;
use super::counters::{AnswerCounts, add};
use super::job::{Client, Job, with_length};

/// Connections in all.
const MAX_CONNECTIONS: usize = 256;
/// Connections of one address.
const MAX_CONNECTIONS_PER_CLIENT: usize = 32;
/// How long a connection may stay without a query.
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a query may take to arrive, and an answer to leave.
const IO_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest query. Those that programs send have less than 512 bytes.
const MAX_QUERY: u16 = 4096;
/// Pause after a failed accept (no descriptors left, say).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// The runtime closes a listener in this time unless it hangs.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything that connections share.
struct State {
    shared: Arc<Shared>,
    responder: Mutex<Responder>,
    connections: Mutex<BTreeMap<IpAddr, usize>>,
}

pub(super) struct TcpServer {
    state: Arc<State>,
    runtime: Handle,
}

/// A listening socket, whose connections outlive it.
pub(super) struct Listener {
    local: SocketAddr,
    task: AbortHandle,
    closed: mpsc::Receiver<()>,
}

impl Listener {
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Closes the socket before it returns.
    pub(super) fn close(self) {
        self.task.abort();
        // Nothing is sent: the receiver is disconnected when the task is dropped.
        let _ = self.closed.recv_timeout(CLOSE_TIMEOUT);
    }
}

impl TcpServer {
    pub(super) fn new(shared: &Arc<Shared>, runtime: Handle) -> io::Result<TcpServer> {
        let responder = Mutex::new(shared.responder()?);
        let state = State { shared: shared.clone(), responder, connections: Mutex::default() };
        Ok(TcpServer { state: Arc::new(state), runtime })
    }

    pub(super) fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM.nonblocking(),
            Some(socket2::Protocol::TCP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // Connections of an earlier listener do not keep the port; another listener does.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let local = socket.local_addr()?.as_socket().unwrap_or(address);
        let listener = {
            let _context = self.runtime.enter();
            TcpListener::from_std(socket.into())?
        };
        let (token, closed) = mpsc::channel();
        let state = self.state.clone();
        let task = self.runtime.spawn(async move {
            // Moved in here, so that it is dropped with the listener.
            let _token: mpsc::Sender<()> = token;
            accept(state, listener).await;
        });
        Ok(Listener { local, task: task.abort_handle(), closed })
    }
}

async fn accept(state: Arc<State>, listener: TcpListener) {
    loop {
        let Ok((stream, remote)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        let from = remote.ip().to_canonical();
        let Some(slot) = Slot::take(&state, from) else {
            add(&state.shared.counters.refused_connections, 1);
            continue;
        };
        tokio::spawn(async move {
            // A client that is slow or gone is nobody's fault.
            let _ = serve(&slot, stream).await;
        });
    }
}

/// A connection's share of the limits.
struct Slot {
    state: Arc<State>,
    from: IpAddr,
}

impl Slot {
    fn take(state: &Arc<State>, from: IpAddr) -> Option<Slot> {
        let mut connections = state.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        let of_client = connections.entry(from).or_insert(0);
        if *of_client >= MAX_CONNECTIONS_PER_CLIENT {
            return None;
        }
        *of_client += 1;
        Some(Slot { state: state.clone(), from })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut connections = self.state.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.from);
            }
        }
    }
}

/// Answers one query after the other until the client closes the connection or is too slow.
async fn serve(slot: &Slot, mut stream: TcpStream) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    loop {
        if timeout(IDLE_TIMEOUT, stream.peek(&mut [0])).await?? == 0 {
            return Ok(());
        }
        let query = timeout(IO_TIMEOUT, read_query(&mut stream)).await??;
        let Some(answer) = answer(slot, query).await else { return Ok(()) };
        timeout(IO_TIMEOUT, stream.write_all(&with_length(&answer))).await??;
    }
}

async fn read_query(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    if len > MAX_QUERY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; usize::from(len)];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

/// `None` if there is no answer, which ends the connection.
async fn answer(slot: &Slot, query: Vec<u8>) -> Option<Vec<u8>> {
    let Slot { state, from } = slot;
    let (shared, mut answer) = (&state.shared, Vec::new());
    let verdict = {
        let mut responder = state.responder.lock().unwrap_or_else(PoisonError::into_inner);
        responder.answer(&query, &shared.names.load(), Transport::Tcp, &mut answer)
    };
    match verdict {
        Verdict::Ignore => {
            add(&shared.counters.dropped, 1);
            None
        }
        Verdict::Answer(kind) => {
            let mut counts = AnswerCounts::default();
            counts.add(kind);
            shared.counters.add_answers(&counts);
            Some(answer)
        }
        Verdict::Forward if (shared.config.may_recurse)(*from) => {
            let (reply, received) = oneshot::channel();
            let job = Job { client: Client::Tcp { from: *from, reply }, query: query.clone() };
            if !shared.enqueue(job) {
                answer_with_error(&query, ErrorCode::ServerFailure, &mut answer);
                return Some(answer);
            }
            received.await.ok()
        }
        Verdict::Forward => {
            add(&shared.counters.not_allowed, 1);
            answer_with_error(&query, ErrorCode::Refused, &mut answer);
            Some(answer)
        }
    }
}
