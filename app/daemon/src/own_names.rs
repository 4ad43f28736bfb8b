//! Names that lead to this machine, or that nobody else can make lead here.
//!
//! A page of a foreign site can have its own name point to this machine (DNS rebinding), and would then read the status
//! pages. It cannot do so with an address, nor with a name that is not registered in public: those are let through, so
//! that scrapers may use whatever the local network calls this host.

use std::net::IpAddr;

/// Top-level and special-use domains that are not sold (RFC 2606, 6761, 6762, 8375; ICANN's `internal`), and Kubernetes's.
const PRIVATE: [&str; 8] =
    ["localhost", "local", "internal", "home.arpa", "test", "svc", "cluster.local", "lan"];

/// What this machine is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnNames {
    host: String,
    /// Domains that the resolver appends.
    domains: Vec<String>,
}

impl OwnNames {
    /// From the host name and `/etc/resolv.conf`.
    pub(crate) fn of_this_machine() -> OwnNames {
        let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
        OwnNames::new(&host, &std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    fn new(host: &str, resolv_conf: &str) -> OwnNames {
        let words = resolv_conf.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            matches!(words.next(), Some("search" | "domain")).then_some(words)
        });
        OwnNames { host: plain(host), domains: words.flatten().map(plain).collect() }
    }

    /// Whether a request may come under this name, which has no port.
    pub(crate) fn admit(&self, name: &str) -> bool {
        if name.parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = plain(name);
        let Some((_, domain)) = name.split_once('.') else { return !name.is_empty() };
        let private = PRIVATE.iter().any(|p| domain == *p || domain.ends_with(&format!(".{p}")));
        private || name == self.host || self.domains.iter().any(|d| d == domain)
    }
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let names =
            OwnNames::new("Node1.dc.example", "nameserver 1.1.1.1\nsearch corp.example lab.example.\n");
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
            assert!(names.admit(good), "{good}");
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
            assert!(!names.admit(bad), "{bad}");
        }
    }
}
