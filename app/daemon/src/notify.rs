//! Telling whoever started us how far we are: datagrams to `$NOTIFY_SOCKET` as systemd defines them (sd_notify), plus
//! `WEAVE_NAME=` and `WEAVE_ERROR=` for `weave launch`. Nobody listening is no error.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where to tell.
#[derive(Debug)]
pub(crate) struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// From the environment.
    pub(crate) fn from_env() -> Notifier {
        let to = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| {
            let addr = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name).ok()?,
                None => SocketAddr::from_pathname(&name).ok()?,
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((socket, addr))
        });
        Notifier { to }
    }

    fn send(&self, text: &str) {
        if let Some((socket, addr)) = &self.to {
            let _ = socket.send_to_addr(text.as_bytes(), addr);
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
