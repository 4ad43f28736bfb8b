//! Listeners of the control API, on unix sockets and TCP.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use weave_host::fault_injection::io_fail_point;

use super::connection_limits::ConnectionLimits;
use super::fd_stream::{FdStream, ReceivedFds};
use super::origin::Origin;
use super::routes::{Access, Site};
use super::write_timeout::WriteTimeout;
use crate::config::ListenAddr;
use crate::containers::Containers;
use crate::control::Control;
use crate::trace::Tracer;
use crate::unix_socket::{self, SocketFile};

/// Pause after a failed accept, for example when no descriptors are left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent connections of root, and of all others; further ones of root wait.
    pub connections: usize,
    /// Longest time for a request to arrive, and for the client to read each part of an answer.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 256 + crate::allocation::MAX_WAITING, timeout: Duration::from_secs(10) }
    }
}

#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    access: Access,
    /// The configured host, which requests may name.
    host: String,
    limits: Limits,
    /// `None` in tests without a host.
    containers: Option<Containers>,
    tracer: Option<Arc<Tracer>>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

impl Listener {
    /// Replaces a stale unix socket. Only root can connect to the new one.
    pub async fn bind(addr: &ListenAddr, access: Access) -> io::Result<Listener> {
        match addr {
            ListenAddr::Unix(path) => Listener::bind_unix(path, access),
            ListenAddr::Tcp { host, port } => {
                let name = if host.is_empty() { "0.0.0.0" } else { host };
                io_fail_point(&format_args!("listening on {addr}"))?;
                let listener = TcpListener::bind((name, *port)).await?;
                let limits = Limits::default();
                Ok(Listener {
                    socket: Socket::Tcp(listener),
                    access,
                    host: host.clone(),
                    limits,
                    containers: None,
                    tracer: None,
                })
            }
        }
    }

    fn bind_unix(path: &Path, access: Access) -> io::Result<Listener> {
        let restrict = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
        let (listener, file) = unix_socket::bind(path, "control socket", restrict)?;
        let socket = Socket::Unix(UnixListener::from_std(listener)?, file);
        let (host, limits) = (String::new(), Limits::default());
        Ok(Listener { socket, access, host, limits, containers: None, tracer: None })
    }

    pub fn with_limits(self, limits: Limits) -> Listener {
        Listener { limits, ..self }
    }

    /// The listener also accepts requests that change the host.
    pub(crate) fn with_containers(self, containers: Containers) -> Listener {
        Listener { containers: Some(containers), ..self }
    }

    /// The listener also accepts requests for traces.
    pub(crate) fn with_tracer(self, tracer: Arc<Tracer>) -> Listener {
        Listener { tracer: Some(tracer), ..self }
    }

    /// `None` for a unix socket.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Serves requests until the future is dropped.
    pub async fn serve(self, control: Control) {
        let timeout = self.limits.timeout;
        let site = Site::new(control, self.containers, self.access, self.host, timeout);
        let site = Arc::new(site.with_tracer(self.tracer));
        match self.socket {
            Socket::Unix(listener, _file) => {
                let slots = Arc::new(Semaphore::new(self.limits.connections));
                loop {
                    let Ok(slot) = slots.clone().acquire_owned().await else { return };
                    let Ok((stream, _)) = listener.accept().await else {
                        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                        continue;
                    };
                    let origin = Origin::of_unix(&stream);
                    let stream = FdStream::new(stream);
                    let (fds, site) = (stream.fds(), site.clone());
                    tokio::spawn(async move {
                        connection(stream, site, timeout, fds, origin).await;
                        drop(slot);
                    });
                }
            }
            Socket::Tcp(listener) => {
                let limits = ConnectionLimits::new(self.limits.connections);
                loop {
                    let Ok((stream, remote)) = listener.accept().await else {
                        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                        continue;
                    };
                    let Ok(local) = stream.local_addr() else { continue };
                    let _ = stream.set_nodelay(true);
                    let (limits, site) = (limits.clone(), site.clone());
                    tokio::spawn(async move {
                        let origin = Origin::Tcp { local, remote };
                        let Some(place) = limits.admit(origin.holder()).await else { return };
                        connection(stream, site, timeout, ReceivedFds::default(), origin).await;
                        drop(place);
                    });
                }
            }
        }
    }
}

/// Serves one connection of root as [`Listener::serve`] would. `host` is the configured host of the listener.
pub async fn serve_connection<S>(stream: S, control: Control, access: Access, host: String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timeout = Limits::default().timeout;
    let site = Arc::new(Site::new(control, None, access, host, timeout));
    let origin = Origin::Socket { uid: nix::unistd::geteuid().as_raw(), pid: None };
    connection(stream, site, timeout, ReceivedFds::default(), origin).await;
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    site: Arc<Site>,
    timeout: Duration,
    fds: ReceivedFds,
    origin: Origin,
) {
    let service = service_fn(move |request| {
        let (site, fds, origin) = (site.clone(), fds.clone(), origin.clone());
        async move { Ok::<_, Infallible>(site.answer(request, &fds, &origin).await) }
    });
    // An error means that the client disconnected, stalled, or did not send HTTP.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, timeout)), service)
        .await;
}
