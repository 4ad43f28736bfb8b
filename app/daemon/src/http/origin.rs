//! Who sends a request. What changes anything is for root: on TCP, which every process of the host can open, the kernel is asked who
//! owns the other end of the connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use tokio::net::UnixStream;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A process with access to the control socket, which only root has.
    Socket {
        uid: u32,
        pid: Option<i32>,
    },
    Tcp {
        local: SocketAddr,
        remote: SocketAddr,
    },
}

/// Those who share a part of the connections that a listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    User(u32),
    /// A host, or processes that have closed their connections.
    Address(IpAddr),
}

impl Origin {
    pub(super) fn of_unix(stream: &UnixStream) -> Origin {
        let credentials = stream.peer_cred().ok();
        Origin::Socket { uid: credentials.map_or(0, |c| c.uid()), pid: credentials.and_then(|c| c.pid()) }
    }

    /// `None` if the connection does not come from a process of this host.
    pub(super) fn uid(&self) -> Option<u32> {
        match self {
            Origin::Socket { uid, .. } => Some(*uid),
            // Seen from the other end.
            Origin::Tcp { local, remote } => weave_host::tcp_socket_owner(*remote, *local)
                .inspect_err(|e| tracing::debug!("cannot find out who sends a request: {e}"))
                .ok()
                .flatten(),
        }
    }

    pub(super) fn holder(&self) -> Holder {
        match (self.uid(), self) {
            (Some(uid), _) => Holder::User(uid),
            (None, Origin::Tcp { remote, .. }) => Holder::Address(remote.ip()),
            (None, Origin::Socket { uid, .. }) => Holder::User(*uid),
        }
    }
}

impl Holder {
    /// Whether this is the user as whom the daemon runs, that is root.
    pub(super) fn is_root(self) -> bool {
        self == Holder::User(nix::unistd::geteuid().as_raw())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::User(uid) => write!(f, "user id {uid}"),
            Holder::Address(addr) => write!(f, "{addr}, whose user is not known"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Socket { pid: Some(pid), uid } => write!(f, "process {pid} (user id {uid})"),
            Origin::Socket { pid: None, uid } => write!(f, "user id {uid}"),
            Origin::Tcp { remote, .. } => remote.fmt(f),
        }
    }
}
