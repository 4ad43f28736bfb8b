//! Listeners of the control API: unix socket and TCP, with bounds on what a client may cost.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::routes::{Access, Site};
use super::write_timeout::WriteTimeout;
use crate::config::ListenAddr;
use crate::control::Control;

/// Pause after a failed accept (no descriptors left, say).
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What one listener can be made to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time; more wait.
    pub connections: usize,
    /// Time for a request to arrive, and for each part of an answer to be taken.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 256 + crate::allocation::MAX_WAITING, timeout: Duration::from_secs(10) }
    }
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    access: Access,
    /// The host that the listener was given, which requests may name.
    host: String,
    limits: Limits,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, #[expect(dead_code, reason = "removes the file when dropped")] SocketFile),
    Tcp(TcpListener),
}

/// The file of a unix socket goes with its listener, unless another one has put its own there meanwhile.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> SocketFile {
        SocketFile { path: path.to_owned(), id: file_id(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Listener {
    /// Binds. A stale unix socket is replaced; a new one is for root only.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn bind(addr: &ListenAddr, access: Access) -> io::Result<Listener> {
        match addr {
            ListenAddr::Unix(path) => Listener::bind_unix(path, access),
            ListenAddr::Tcp { host, port } => {
                let name = if host.is_empty() { "0.0.0.0" } else { host };
                weave_host::fault_injection::io_fail_point(&format_args!("listening on {addr}"))?;
                let listener = TcpListener::bind((name, *port)).await?;
                let limits = Limits::default();
                Ok(Listener { socket: Socket::Tcp(listener), access, host: host.clone(), limits })
            }
        }
    }

    fn bind_unix(path: &Path, access: Access) -> io::Result<Listener> {
        weave_host::fault_injection::io_fail_point(&"removing a stale control socket")?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        weave_host::fault_injection::io_fail_point(&"making the control socket")?;
        // Made under another name and moved once its mode is right: nobody connects in between.
        let hidden = path.with_extension("new");
        let _ = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        // Goes if something fails before it has its name.
        let _unfinished = SocketFile::new(&hidden);
        weave_host::fault_injection::io_fail_point(&"moving the control socket")?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        weave_host::fault_injection::io_fail_point(&"naming the control socket")?;
        std::fs::rename(&hidden, path)?;
        let socket = Socket::Unix(listener, SocketFile::new(path));
        Ok(Listener { socket, access, host: String::new(), limits: Limits::default() })
    }

    /// The same with other limits.
    pub fn with_limits(self, limits: Limits) -> Listener {
        Listener { limits, ..self }
    }

    /// The TCP address it is bound to.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Answers until the future is dropped.
    pub async fn serve(self, control: Control) {
        let timeout = self.limits.timeout;
        let site = Arc::new(Site::new(control, self.access, self.host, timeout));
        let slots = Arc::new(Semaphore::new(self.limits.connections));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let site = site.clone();
            match &self.socket {
                Socket::Unix(listener, _) => match listener.accept().await {
                    Ok((stream, _)) => {
                        tokio::spawn(async move {
                            connection(stream, site, timeout).await;
                            drop(slot);
                        });
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
                },
                Socket::Tcp(listener) => match listener.accept().await {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        tokio::spawn(async move {
                            connection(stream, site, timeout).await;
                            drop(slot);
                        });
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
                },
            }
        }
    }
}

/// Answers on a connection that somebody else accepted, as [`Listener::serve`] does on its own. `host` is the name that
/// requests may give this listener.
pub async fn serve_connection<S>(stream: S, control: Control, access: Access, host: String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timeout = Limits::default().timeout;
    connection(stream, Arc::new(Site::new(control, access, host, timeout)), timeout).await;
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    site: Arc<Site>,
    timeout: Duration,
) {
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request).await) }
    });
    // A client that breaks off or stalls is its own problem.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, timeout)), service)
        .await;
}
