//! Checks of the `Host` and `Origin` headers against DNS rebinding and cross-site requests.
//!
//! A page of a foreign site can have its own name resolve to this machine (DNS rebinding), and would then read the status
//! pages. It cannot do so with an address, nor with a name that is not registered in public DNS. Those are allowed, so
//! that scrapers may use whatever the local network calls this host.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderName, ORIGIN};

/// Top-level and special-use domains that are not sold (RFC 2606, 6761, 6762, 8375; ICANN's `internal`), and Kubernetes's.
const PRIVATE_DOMAINS: [&str; 8] =
    ["localhost", "local", "internal", "home.arpa", "test", "svc", "cluster.local", "lan"];

/// Names under which requests may reach a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AllowedHosts {
    /// The host that the listener was configured with; may be empty.
    listener: String,
    host: String,
    /// Domains that the resolver appends.
    search_domains: Vec<String>,
}

impl AllowedHosts {
    /// From the host name and `/etc/resolv.conf`.
    pub(super) fn from_system(listener: String) -> AllowedHosts {
        let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
        AllowedHosts::new(listener, &host, &std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    fn new(listener: String, host: &str, resolv_conf: &str) -> AllowedHosts {
        let words = resolv_conf.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            matches!(words.next(), Some("search" | "domain")).then_some(words)
        });
        AllowedHosts {
            listener,
            host: normalize(host),
            search_domains: words.flatten().map(normalize).collect(),
        }
    }

    /// Check for requests that only read. The same-origin policy keeps a foreign page from reading an answer unless its
    /// own name resolves to this machine, so `Host` alone decides.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), String> {
        match text(headers, HOST) {
            Some(authority) if !self.allows(host_of(&authority)) => {
                Err(format!("host {authority:?} is neither this machine nor configured; use its address"))
            }
            _ => Ok(()),
        }
    }

    /// Check for requests that change something. A page of a foreign site can make the browser of this machine send
    /// requests here. It cannot choose the `Host` of a name that resolves to this machine, nor leave out `Origin`
    /// (docs/spec/cli.md 7, security posture). An address cannot be rebound, so any address is allowed as `Host`.
    pub(super) fn check_origin(&self, headers: &HeaderMap) -> Result<(), String> {
        let allowed = |host: &str, address: fn(&IpAddr) -> bool| {
            host.eq_ignore_ascii_case("localhost")
                || host.parse().is_ok_and(|ip| address(&ip))
                || self.is_listener(host)
        };
        if let Some(host) = text(headers, HOST)
            && !allowed(host_of(&host), |_| true)
        {
            return Err(format!("host {host:?} is neither this machine nor configured"));
        }
        if let Some(origin) = text(headers, ORIGIN)
            && !origin.split_once("://").is_some_and(|(_, a)| allowed(host_of(a), IpAddr::is_loopback))
        {
            return Err(format!("origin {origin:?} is neither this machine nor configured"));
        }
        Ok(())
    }

    fn is_listener(&self, host: &str) -> bool {
        !self.listener.is_empty() && host.eq_ignore_ascii_case(&self.listener)
    }

    fn allows(&self, host: &str) -> bool {
        if host.parse::<IpAddr>().is_ok() || self.is_listener(host) {
            return true;
        }
        let host = normalize(host);
        let Some((_, domain)) = host.split_once('.') else { return !host.is_empty() };
        let private = PRIVATE_DOMAINS.iter().any(|p| domain == *p || domain.ends_with(&format!(".{p}")));
        private || host == self.host || self.search_domains.iter().any(|d| d == domain)
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The host of `host:port`, `[v6]:port`, `host`.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => host,
        _ => authority,
    }
}

fn normalize(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_cannot_be_rebound_are_allowed() {
        let resolv_conf = "nameserver 1.1.1.1\nsearch corp.example lab.example.\n";
        let hosts = AllowedHosts::new(String::new(), "Node1.dc.example", resolv_conf);
        for good in [
            "10.0.0.1",
            "::1",
            "node1",
            "prometheus-target",
            "localhost",
            "NODE1.dc.example.",
            "node1.corp.example",
            "h1.lab.example",
            "weave-net.kube-system.svc",
            "weave-net.kube-system.svc.cluster.local",
            "node1.local",
            "ip-10-0-0-1.eu-west-1.compute.internal",
        ] {
            assert!(hosts.allows(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "evil.example",
            "node1.dc.example.evil.org",
            "corp.example.org",
            "node2.dc.example",
            "x.locals",
        ] {
            assert!(!hosts.allows(bad), "{bad}");
        }
    }

    #[test]
    fn host_of_an_authority() {
        for (authority, host) in [
            ("localhost:6784", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]:6784", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("evil.example:80", "evil.example"),
            ("", ""),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }
}
