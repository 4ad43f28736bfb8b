//! The DNS server (docs/spec/dns.md 8, 9): sockets for `weave_dns`, which decides.
//!
//! ```text
//!   UDP ── worker threads ──┬── local names: answered at once, in batches
//!   TCP ── tasks ───────────┤
//!                           └── other questions ── queue ── forwarding task ── a socket per question ── servers
//! ```
//!
//! The worker threads share nothing but the published names. TCP and forwarding run in a thread of their own, so that a flood of
//! queries delays neither the mesh nor local names.

mod counters;
mod forwarding;
mod holder;
mod job;
mod resolv_conf;
mod tcp;
mod worker;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use tokio::sync::{mpsc, oneshot};
use weave_datapath::ServerSocket;
use weave_dns::{AnswerConfig, ForwarderConfig, Names, Responder};

use counters::Counters;
pub use counters::DnsCounts;
use resolv_conf::ResolvConf;
use tcp::TcpServer;
use worker::{Worker, WorkerHandle};

/// Questions that wait for the forwarding task. Beyond this they are dropped, and clients ask again.
const FORWARD_QUEUE: usize = 1024;

/// Tells whether a client may have questions forwarded.
pub type MayRecurse = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// What the server needs to know.
#[derive(Clone)]
pub struct ServerConfig {
    /// The local domain, and the TTL of its records.
    pub answer: AnswerConfig,
    /// How long a server of the host has to answer.
    pub fallback_timeout: Duration,
    /// Lists the servers of the host; none if it is empty. Read again when it changes.
    pub resolv_conf: PathBuf,
    /// Clients whose other questions are forwarded.
    pub may_recurse: MayRecurse,
    /// Threads that answer over UDP.
    pub workers: usize,
}

impl ServerConfig {
    /// One worker thread on small machines, otherwise two.
    pub fn default_workers() -> usize {
        if std::thread::available_parallelism().map_or(1, usize::from) < 4 { 1 } else { 2 }
    }
}

/// An address cannot be listened on. The server goes on without it.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot answer DNS queries on {protocol} {address}: {}{}",
    crate::net::errno_text(source),
    hint(source, holder)
)]
pub struct ListenError {
    pub address: SocketAddr,
    pub protocol: &'static str,
    /// The program that uses the address, if it can be found out.
    pub holder: Option<String>,
    #[source]
    pub source: io::Error,
}

fn hint(error: &io::Error, holder: &Option<String>) -> String {
    match (error.kind(), holder) {
        (io::ErrorKind::AddrInUse, Some(holder)) => format!("; {holder} uses it"),
        (io::ErrorKind::AddrInUse, None) => "; another DNS server may use it".to_owned(),
        (io::ErrorKind::AddrNotAvailable, _) => "; no interface of this host has it".to_owned(),
        _ => String::new(),
    }
}

/// Shared by all threads.
struct Shared {
    config: ServerConfig,
    names: Arc<ArcSwap<Names>>,
    counters: Counters,
    resolv_conf: ResolvConf,
    forward: mpsc::Sender<job::Job>,
}

impl Shared {
    fn responder(&self) -> io::Result<Responder<ChaCha12Rng>> {
        Ok(Responder::new(self.config.answer.clone(), ChaCha12Rng::from_seed(random_seed()?)))
    }
}

fn random_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(seed)
}

/// The sockets of one address.
struct Listener {
    /// One for each worker.
    udp: Vec<Arc<ServerSocket>>,
    tcp: tcp::Listener,
}

/// Answers queries until it is dropped.
pub struct DnsServer {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    listeners: Mutex<Vec<Listener>>,
    tcp: TcpServer,
    /// Ends the thread for TCP and forwarding.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Starts the threads, without any address to listen on. They work in the network namespace of the calling thread.
    pub fn start(config: ServerConfig, names: Arc<ArcSwap<Names>>) -> io::Result<DnsServer> {
        let (forward, jobs) = mpsc::channel(FORWARD_QUEUE);
        let forwarder = ForwarderConfig { server_timeout: config.fallback_timeout, ..Default::default() };
        let workers = config.workers.max(1);
        let resolv_conf = ResolvConf::new(config.resolv_conf.clone());
        let counters = Counters::default();
        let shared = Arc::new(Shared { config, names, counters, resolv_conf, forward });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tcp = TcpServer::new(&shared, runtime.handle().clone())?;
        let (stop, stopped) = oneshot::channel();
        let forwarding = forwarding::run(shared.clone(), forwarder, random_seed()?, jobs);
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = forwarding => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("weave-dns".to_owned()).spawn(serve)?;
        let mut server = DnsServer {
            shared,
            workers: Vec::new(),
            listeners: Mutex::default(),
            tcp,
            stop: Some(stop),
            thread: Some(thread),
        };
        for n in 0..workers {
            server.workers.push(Worker::start(&server.shared, n)?);
        }
        Ok(server)
    }

    /// Listens on these addresses and no others. Those that stay are not disturbed; for the others the errors are returned, and
    /// calling this again tries again. Port 0 lets the kernel choose.
    pub fn set_listen_addresses(&self, addresses: &[SocketAddr]) -> Vec<ListenError> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let (stay, go): (Vec<_>, Vec<_>) =
            listeners.drain(..).partition(|listener| addresses.contains(&listener.tcp.local_addr()));
        *listeners = stay;
        if !go.is_empty() {
            self.publish(&listeners);
            for listener in go {
                listener.tcp.close();
            }
        }
        let mut errors = Vec::new();
        for address in addresses {
            if !listeners.iter().any(|listener| listener.tcp.local_addr() == *address) {
                match self.listen(*address) {
                    Ok(listener) => listeners.push(listener),
                    Err(error) => errors.push(error),
                }
            }
        }
        self.publish(&listeners);
        errors
    }

    /// The addresses that are listened on.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().map(|listener| listener.tcp.local_addr()).collect()
    }

    /// The servers of the host that questions are forwarded to.
    pub fn upstream(&self) -> Vec<SocketAddr> {
        self.shared.resolv_conf.servers()
    }

    /// Counters since the start.
    pub fn counts(&self) -> DnsCounts {
        self.shared.counters.read()
    }

    fn listen(&self, asked: SocketAddr) -> Result<Listener, ListenError> {
        let failed = |protocol| {
            move |source: io::Error| {
                let holder = matches!(source.kind(), io::ErrorKind::AddrInUse)
                    .then(|| holder::find(protocol, asked))
                    .flatten();
                ListenError { address: asked, protocol, holder, source }
            }
        };
        let tcp = self.tcp.listen(asked).map_err(failed("TCP"))?;
        let address = SocketAddr::new(asked.ip(), tcp.local_addr().port());
        let sockets = ServerSocket::bind(address, self.workers.len());
        match sockets {
            Ok(sockets) => Ok(Listener { udp: sockets.into_iter().map(Arc::new).collect(), tcp }),
            Err(error) => {
                tcp.close();
                Err(failed("UDP")(error))
            }
        }
    }

    /// Tells the workers what to listen on. Returns when they have closed all other sockets.
    fn publish(&self, listeners: &[Listener]) {
        let acknowledged: Vec<_> = self
            .workers
            .iter()
            .enumerate()
            .map(|(n, worker)| {
                worker.set_sockets(listeners.iter().map(|listener| listener.udp[n].clone()).collect())
            })
            .collect();
        acknowledged.into_iter().for_each(worker::Acknowledgement::wait);
        self.shared.resolv_conf.set_own(listeners.iter().map(|listener| listener.tcp.local_addr()).collect());
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.workers.clear();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for DNS over TCP and forwarding has panicked");
        }
    }
}
