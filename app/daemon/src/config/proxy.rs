use std::fmt;
use std::path::PathBuf;

use weave_proxy::HostnameRule;

pub use weave_http::ServerTlsFiles;
pub use weave_proxy::HostnameError;

/// The Docker API proxy, and how containers that it created are attached (docs/spec/containers.md A.1).
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where clients reach the proxy. Empty: it is off, and only containers that it created before are attached.
    pub endpoints: Vec<ProxyEndpoint>,
    /// TLS of the TCP endpoints.
    pub tls: Option<ServerTlsFiles>,
    /// Whether containers without `WEAVE_CIDR` are attached.
    pub attach_by_default: bool,
    /// Whether containers on Docker's user-defined networks are attached, too.
    pub user_networks: bool,
    /// Whether containers keep their DNS settings, and have no name.
    pub without_dns: bool,
    /// Whether the `/etc/hosts` of containers gets their addresses.
    pub rewrite_hosts: bool,
    /// Whether containers send multicast through the network.
    pub multicast_route: bool,
    /// Whether the descriptions of containers show their address in the network.
    pub rewrite_inspect: bool,
    /// How host names are made.
    pub hostname: HostnameRule,
}

impl Default for ProxyConfig {
    fn default() -> ProxyConfig {
        ProxyConfig {
            endpoints: Vec::new(),
            tls: None,
            attach_by_default: true,
            user_networks: false,
            without_dns: false,
            rewrite_hosts: true,
            multicast_route: true,
            rewrite_inspect: false,
            hostname: HostnameRule::default(),
        }
    }
}

impl ProxyConfig {
    /// Sets `--hostname-from-label`, `--hostname-match` and `--hostname-replacement`.
    pub fn set_hostname_rule(
        &mut self,
        label: Option<String>,
        pattern: &str,
        replacement: &str,
    ) -> Result<(), HostnameError> {
        self.hostname = HostnameRule::new(label, pattern, replacement)?;
        Ok(())
    }
}

/// Where the proxy listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyEndpoint {
    /// A unix socket. All paths lead to the same socket.
    Unix(PathBuf),
    /// An empty host means all addresses.
    Tcp { host: String, port: u16 },
}

impl ProxyEndpoint {
    /// Parses `-H`: `tcp://host:port`, `host:port`, `:port`, `unix:///path` or `/path`. `None` for anything else.
    pub fn parse(text: &str) -> Option<ProxyEndpoint> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            return Some(ProxyEndpoint::Unix(path.into()));
        }
        let address = text.strip_prefix("tcp://").unwrap_or(text);
        let (host, port) = address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let hostlike = |c: char| c.is_alphanumeric() || ".-_:%".contains(c);
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port > 0)?;
        host.chars().all(hostlike).then(|| ProxyEndpoint::Tcp { host: host.to_owned(), port })
    }
}

/// As in `DOCKER_HOST`.
impl fmt::Display for ProxyEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyEndpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            ProxyEndpoint::Tcp { host, port } if host.is_empty() => write!(f, "tcp://0.0.0.0:{port}"),
            ProxyEndpoint::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            ProxyEndpoint::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed() {
        for (text, shown) in [
            ("tcp://0.0.0.0:12375", "tcp://0.0.0.0:12375"),
            ("127.0.0.1:9999", "tcp://127.0.0.1:9999"),
            (":12375", "tcp://0.0.0.0:12375"),
            ("tcp://[::1]:77", "tcp://[::1]:77"),
            ("unix:///var/run/weave.sock", "unix:///var/run/weave.sock"),
            ("/var/run/weave.sock", "unix:///var/run/weave.sock"),
        ] {
            assert_eq!(ProxyEndpoint::parse(text).map(|e| e.to_string()).as_deref(), Some(shown), "{text}");
        }
        for text in
            ["", "unix://x", "fd://", "http://host:1/x", "host", "host:0", "host:99999", "host:+1", "x.sock"]
        {
            assert_eq!(ProxyEndpoint::parse(text), None, "{text}");
        }
    }
}
