//! Where the proxy listens (docs/spec/containers.md A.2).
//!
//! All unix endpoints are one socket, which belongs to those who may use Docker's own socket; other paths are links to it.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use weave_http::{Endpoint, ServerTls, TlsError};
use weave_runtime::Docker;

use crate::config::{Config, ProxyEndpoint};
use crate::unix_socket::{self, SocketFile};

/// Why the proxy cannot listen. Text of 2.8.1 where it has one.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("Cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("Could not start proxy: {0}")]
    Tls(#[from] TlsError),
}

/// Sockets of the proxy.
#[derive(Debug)]
pub(crate) struct ProxyListeners {
    unix: Option<UnixListener>,
    tcp: Vec<TcpListener>,
    tls: Option<ServerTls>,
    files: ProxyFiles,
}

/// The sockets for the runtime that serves them.
pub(super) struct TokioListeners {
    pub(super) unix: Option<tokio::net::UnixListener>,
    pub(super) tcp: Vec<tokio::net::TcpListener>,
    pub(super) tls: Option<ServerTls>,
}

/// Removes the files of the sockets when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct ProxyFiles {
    socket: Option<(PathBuf, SocketFile)>,
    links: Vec<PathBuf>,
}

impl Drop for ProxyFiles {
    fn drop(&mut self) {
        let Some((socket, _)) = &self.socket else { return };
        for link in &self.links {
            if std::fs::read_link(link).is_ok_and(|target| target == *socket) {
                let _ = std::fs::remove_file(link);
            }
        }
    }
}

impl ProxyListeners {
    /// Opens all sockets.
    ///
    /// # Errors
    /// An address is taken, or a certificate cannot be used.
    pub(crate) fn bind(config: &Config, docker: &Docker) -> Result<ProxyListeners, ProxyError> {
        let tls = config.proxy.tls.as_ref().map(ServerTls::new).transpose()?;
        let mut listeners = ProxyListeners { unix: None, tcp: Vec::new(), tls, files: ProxyFiles::default() };
        let failed = |address: String| move |source| ProxyError::Listen { address, source };
        for endpoint in &config.proxy.endpoints {
            match endpoint {
                ProxyEndpoint::Tcp { host, port } => {
                    let name = if host.is_empty() { "0.0.0.0" } else { host };
                    let listener = TcpListener::bind((name, *port));
                    let listener = listener.and_then(|l| l.set_nonblocking(true).map(|()| l));
                    listeners.tcp.push(listener.map_err(failed(endpoint.to_string()))?);
                }
                ProxyEndpoint::Unix(path) => {
                    let socket = config.proxy_socket();
                    if listeners.unix.is_none() {
                        let restrict = |path: &Path| {
                            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                            copy_owner(path, docker)
                        };
                        let bound = unix_socket::bind(&socket, "socket of the proxy", restrict);
                        let (listener, file) = bound.map_err(failed(socket.display().to_string()))?;
                        listeners.unix = Some(listener);
                        listeners.files.socket = Some((socket.clone(), file));
                    }
                    if !is_same(path, &socket) {
                        link(path, &socket).map_err(failed(path.display().to_string()))?;
                        listeners.files.links.push(path.clone());
                    }
                }
            }
        }
        Ok(listeners)
    }

    /// What keeps the files of the sockets.
    pub(crate) fn take_files(&mut self) -> ProxyFiles {
        std::mem::take(&mut self.files)
    }

    pub(super) fn into_tokio(self) -> io::Result<TokioListeners> {
        let unix = self.unix.map(tokio::net::UnixListener::from_std).transpose()?;
        let tcp = self.tcp.into_iter().map(tokio::net::TcpListener::from_std).collect::<Result<_, _>>()?;
        Ok(TokioListeners { unix, tcp, tls: self.tls })
    }
}

/// The addresses that clients are told, in the order of 2.8.1: TCP, further paths, the socket itself.
pub(crate) fn addresses(config: &Config) -> Vec<String> {
    let socket = config.proxy_socket();
    let is_tcp = |e: &&ProxyEndpoint| matches!(e, ProxyEndpoint::Tcp { .. });
    let endpoints = &config.proxy.endpoints;
    let mut all: Vec<String> = endpoints.iter().filter(is_tcp).map(ToString::to_string).collect();
    for endpoint in endpoints {
        if let ProxyEndpoint::Unix(path) = endpoint
            && !is_same(path, &socket)
        {
            all.push(endpoint.to_string());
        }
    }
    if endpoints.iter().any(|e| matches!(e, ProxyEndpoint::Unix(_))) {
        // 2.8.1 names it so, and /var/run is /run.
        let path =
            socket.strip_prefix("/run").map_or(socket.clone(), |rest| Path::new("/var/run").join(rest));
        all.push(ProxyEndpoint::Unix(path).to_string());
    }
    all
}

/// Gives the socket the owner and the mode of Docker's socket, so that the same users may use both. Without one it stays as it is.
pub(super) fn copy_owner(socket: &Path, docker: &Docker) -> io::Result<()> {
    let Ok(Endpoint::Unix(path)) = docker.endpoint() else { return Ok(()) };
    let Ok(theirs) = std::fs::metadata(path) else { return Ok(()) };
    // In this order CAP_CHOWN is enough.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(theirs.mode() & 0o777))?;
    chown(socket, Some(theirs.uid()), Some(theirs.gid()))
}

/// `/var/run` is a link to `/run`.
fn is_same(path: &Path, socket: &Path) -> bool {
    let resolved = path.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest));
    path == socket || resolved.is_ok_and(|path| path == socket)
}

/// Makes `path` a link to the socket. Only a link or a socket is replaced.
fn link(path: &Path, socket: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if let Ok(there) = std::fs::symlink_metadata(path) {
        let kind = there.file_type();
        if !kind.is_symlink() && !kind.is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "another file is there"));
        }
        std::fs::remove_file(path)?;
    }
    symlink(socket, path)
}
