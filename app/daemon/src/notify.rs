//! Progress of the start, as datagrams to `$NOTIFY_SOCKET` in the format of systemd (sd_notify(3)), and to `weave launch`, which
//! reads `WEAVE_NAME=`, `WEAVE_ERROR=` and `WEAVE_WARNING=` in them. Errors are ignored, because there may be no receiver.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    to: Vec<SocketAddr>,
}

impl Notifier {
    /// `launch_socket` is the socket of `weave launch`.
    pub(crate) fn new(launch_socket: &Path) -> Notifier {
        let manager = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).ok(),
            None => SocketAddr::from_pathname(&name).ok(),
        });
        let to = manager.into_iter().chain(SocketAddr::from_pathname(launch_socket).ok()).collect();
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

    /// `waiting_for` completes "waiting for ...".
    pub(crate) fn status(&self, waiting_for: &str) {
        self.send(&format!("STATUS={}\n", one_line(waiting_for)));
    }

    pub(crate) fn failed(&self, error: &str) {
        let error = one_line(error);
        self.send(&format!("STATUS={error}\nWEAVE_ERROR={error}\n"));
    }

    pub(crate) fn warnings(&self, warnings: &[String]) {
        warnings.iter().for_each(|warning| self.send(&format!("WEAVE_WARNING={}\n", one_line(warning))));
    }

    pub(crate) fn ready(&self, name: &str) {
        self.send(&format!("WEAVE_NAME={name}\nMAINPID={}\nREADY=1\nSTATUS=ready\n", std::process::id()));
    }

    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1\n");
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}
