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

/// Questions that wait for the forwarding task. Others are answered with SERVFAIL, so that clients ask their next server at once.
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
    /// Threads that answer over UDP, for each address.
    pub threads: usize,
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
    fn responder(&self) -> io::Result<Responder> {
        Ok(Responder::new(self.config.answer.clone(), ChaCha12Rng::from_seed(random_seed()?)))
    }

    /// Passes a question to the forwarding task. Returns whether its queue had room.
    fn enqueue(&self, job: job::Job) -> bool {
        let sent = self.forward.try_send(job).is_ok();
        counters::add(&self.counters.queue_full, u64::from(!sent));
        sent
    }
}

fn random_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(seed)
}

/// What serves one address.
struct Listener {
    _workers: Vec<WorkerHandle>,
    tcp: tcp::Listener,
}

impl Listener {
    /// Closes the sockets before it returns.
    fn close(self) {
        self.tcp.close();
    }
}

/// Answers queries until it is dropped.
pub struct DnsServer {
    shared: Arc<Shared>,
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
        Ok(DnsServer { shared, listeners: Mutex::default(), tcp, stop: Some(stop), thread: Some(thread) })
    }

    /// Listens on these addresses and no others. Those that stay are not disturbed; for the others the errors are returned, and
    /// calling this again tries again. Port 0 lets the kernel choose.
    pub fn set_listen_addresses(&self, addresses: &[SocketAddr]) -> Vec<ListenError> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let (stay, go): (Vec<_>, Vec<_>) =
            listeners.drain(..).partition(|listener| addresses.contains(&listener.tcp.local_addr()));
        *listeners = stay;
        go.into_iter().for_each(Listener::close);
        let mut errors = Vec::new();
        for address in addresses {
            if !listeners.iter().any(|listener| listener.tcp.local_addr() == *address) {
                match self.listen(*address) {
                    Ok(listener) => listeners.push(listener),
                    Err(error) => errors.push(error),
                }
            }
        }
        let own = listeners.iter().map(|listener| listener.tcp.local_addr()).collect();
        self.shared.resolv_conf.set_own(own);
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
                    .then(|| weave_host::port_holder(protocol, asked))
                    .flatten();
                ListenError { address: asked, protocol, holder, source }
            }
        };
        let tcp = self.tcp.listen(asked).map_err(failed("TCP"))?;
        let address = SocketAddr::new(asked.ip(), tcp.local_addr().port());
        let workers = ServerSocket::bind(address, self.shared.config.threads.max(1)).and_then(|sockets| {
            sockets.into_iter().map(|socket| Worker::start(&self.shared, socket)).collect()
        });
        match workers {
            Ok(workers) => Ok(Listener { _workers: workers, tcp }),
            Err(error) => {
                tcp.close();
                Err(failed("UDP")(error))
            }
        }
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for DNS over TCP and forwarding has panicked");
        }
    }
}
