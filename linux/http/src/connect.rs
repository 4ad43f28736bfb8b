//! Connections to a server.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::stream::Stream;
use crate::{Error, Tls};

/// Limit on the time to connect to one address, as in 2.8.1.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Path of a unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
    /// `host:port`, with TLS.
    Tls(String, Tls),
}

impl Endpoint {
    /// Path of the socket, or `host:port`.
    pub fn address(&self) -> String {
        match self {
            Endpoint::Unix(path) => path.display().to_string(),
            Endpoint::Tcp(address) | Endpoint::Tls(address, _) => address.clone(),
        }
    }

    /// Connects, for a caller that speaks HTTP itself.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn connect(&self) -> Result<Box<dyn Stream>, Error> {
        connect(self, None).await
    }

    /// The `Host` header of requests.
    pub(crate) fn host(&self) -> &str {
        match self {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Tcp(address) | Endpoint::Tls(address, _) => address,
        }
    }
}

/// Prints the endpoint as in `DOCKER_HOST`: `unix://<path>` or `tcp://<host>:<port>`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::Tcp(address) | Endpoint::Tls(address, _) => write!(f, "tcp://{address}"),
        }
    }
}

pub(crate) async fn connect(
    endpoint: &Endpoint,
    fd: Option<BorrowedFd<'_>>,
) -> Result<Box<dyn Stream>, Error> {
    match (endpoint, fd) {
        (Endpoint::Unix(path), fd) => {
            let stream = UnixStream::connect(path).await.map_err(Error::Connect)?;
            if let Some(fd) = fd {
                send_fd(&stream, fd).await.map_err(Error::Io)?;
            }
            Ok(Box::new(stream))
        }
        (_, Some(_)) => {
            let text = "only a unix socket carries file descriptors";
            Err(Error::Connect(io::Error::new(io::ErrorKind::Unsupported, text)))
        }
        (Endpoint::Tcp(address), None) => Ok(Box::new(tcp(address).await?)),
        (Endpoint::Tls(address, tls), None) => tls.connect(address, tcp(address).await?).await,
    }
}

async fn tcp(address: &str) -> Result<TcpStream, Error> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in tokio::net::lookup_host(address).await.map_err(Error::Connect)? {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(Error::Io)?;
                return Ok(stream);
            }
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(Error::Connect(failure))
}

/// Sends `fd` with an empty line, which HTTP servers skip before a request (RFC 9112 2.2).
async fn send_fd(stream: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let (line, fds) = ([IoSlice::new(b"\r\n")], [fd.as_raw_fd()]);
    let control = [ControlMessage::ScmRights(&fds)];
    let send = || {
        let sent = sendmsg::<()>(stream.as_raw_fd(), &line, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        if sent == 2 { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    };
    stream.async_io(Interest::WRITABLE, send).await
}
