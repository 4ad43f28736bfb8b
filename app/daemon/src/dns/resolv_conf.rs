//! The resolver configuration of the host, read again when it changes.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use weave_dns::parse_resolv_conf;

/// The file is looked at no more often than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of the file that are read.
const MAX_BYTES: u64 = 64 << 10;

/// What changes if the file is written or replaced: inode, size, seconds and nanoseconds of the last change.
type Stamp = (u64, u64, i64, i64);

#[derive(Debug, Default)]
struct State {
    checked: Option<Instant>,
    stamp: Option<Stamp>,
    /// Our own addresses, which are never asked.
    own: Vec<SocketAddr>,
    servers: Vec<SocketAddr>,
    /// Whether the last attempt to read the file failed.
    failed: bool,
}

#[derive(Debug)]
pub(super) struct ResolvConf {
    path: PathBuf,
    state: Mutex<State>,
}

impl ResolvConf {
    pub(super) fn new(path: PathBuf) -> ResolvConf {
        ResolvConf { path, state: Mutex::default() }
    }

    /// The addresses on which this server listens.
    pub(super) fn set_own(&self, mut own: Vec<SocketAddr>) {
        let wildcard_ports: Vec<_> =
            own.iter().filter(|addr| addr.ip().is_unspecified()).map(SocketAddr::port).collect();
        if !wildcard_ports.is_empty() {
            let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
            let addrs: Vec<_> = interfaces.filter_map(|interface| socket_ip(&interface)).collect();
            for port in wildcard_ports {
                own.extend(addrs.iter().map(|ip| SocketAddr::new(*ip, port)));
            }
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.own != own {
            *state = State { own, ..State::default() };
        }
    }

    /// The servers as the file lists them. While it cannot be read, those that it listed before.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.path.as_os_str().is_empty()
            && state.checked.is_none_or(|checked| checked.elapsed() >= CHECK_INTERVAL)
        {
            state.checked = Some(Instant::now());
            if let Err(error) = self.update(&mut state)
                && !std::mem::replace(&mut state.failed, true)
            {
                tracing::warn!(
                    "cannot read the DNS servers of this host from {:?}: {error}; names outside the domain are asked of the \
                     servers known before ({})",
                    self.path,
                    state.servers.len()
                );
            }
        }
        state.servers.clone()
    }

    fn update(&self, state: &mut State) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        let stamp = (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        if state.stamp == Some(stamp) {
            return Ok(());
        }
        let mut text = Vec::new();
        file.by_ref().take(MAX_BYTES).read_to_end(&mut text)?;
        let index = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        state.servers = parse_resolv_conf(&String::from_utf8_lossy(&text), &state.own, index);
        state.stamp = Some(stamp);
        state.failed = false;
        Ok(())
    }
}

fn socket_ip(interface: &nix::ifaddrs::InterfaceAddress) -> Option<std::net::IpAddr> {
    let address = interface.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}
