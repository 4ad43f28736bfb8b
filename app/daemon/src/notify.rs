//! Telling whoever started us how far we are: datagrams to `$NOTIFY_SOCKET` as systemd defines them (sd_notify), and the
//! same to `weave launch`, for which there is `WEAVE_NAME=` and `WEAVE_ERROR=` in them. Nobody listening is no error.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// Where to tell.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    to: Vec<SocketAddr>,
}

impl Notifier {
    /// To the service manager that the environment names, and to `launch`.
    pub(crate) fn new(launch: &Path) -> Notifier {
        let manager = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).ok(),
            None => SocketAddr::from_pathname(&name).ok(),
        });
        let to = manager.into_iter().chain(SocketAddr::from_pathname(launch).ok()).collect();
        let socket = UnixDatagram::unbound().and_then(|s| s.set_nonblocking(true).map(|()| s)).ok();
        Notifier { socket, to }
    }

    fn send(&self, text: &str) {
        for addr in &self.to {
            if let Some(socket) = &self.socket {
                let _ = socket.send_to_addr(text.as_bytes(), addr);
            }
        }
    }

    /// What is being waited for.
    pub(crate) fn status(&self, what: &str) {
        self.send(&format!("STATUS={}\n", one_line(what)));
    }

    /// Why we end before being ready.
    pub(crate) fn failed(&self, error: &str) {
        let error = one_line(error);
        self.send(&format!("STATUS={error}\nWEAVE_ERROR={error}\n"));
    }

    /// Everything works.
    pub(crate) fn ready(&self, name: &str) {
        self.send(&format!("WEAVE_NAME={name}\nMAINPID={}\nREADY=1\nSTATUS=ready\n", std::process::id()));
    }

    /// We were told to end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\n");
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
