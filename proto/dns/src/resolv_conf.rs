use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// The port of DNS servers.
const DNS_PORT: u16 = 53;
/// Servers of a resolver configuration that are used. The C library uses three.
const MAX_SERVERS: usize = 8;

/// The servers of a resolver configuration (resolv.conf(5)) in order, without this server's `own` addresses. `interface_index`
/// resolves the zone of a link-local address.
pub fn parse_resolv_conf(
    text: &str,
    own: &[SocketAddr],
    interface_index: impl Fn(&str) -> Option<u32>,
) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let Some(server) = words.next().and_then(|word| parse_server(word, &interface_index)) else {
            continue;
        };
        if !servers.contains(&server) && !own.iter().any(|own| reaches(*own, server)) {
            servers.push(server);
        }
    }
    servers.truncate(MAX_SERVERS);
    servers
}

fn parse_server(word: &str, interface_index: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((addr, zone)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse().ok()?, DNS_PORT));
    };
    let zone = zone.parse().ok().or_else(|| interface_index(zone))?;
    Some(SocketAddrV6::new(addr.parse().ok()?, DNS_PORT, 0, zone).into())
}

/// Whether what is sent to `server` arrives at a socket that is bound to `own`.
fn reaches(own: SocketAddr, server: SocketAddr) -> bool {
    let same_family = own.is_ipv4() == server.is_ipv4() || own.is_ipv6();
    let addr_matches = match server.ip() {
        server if own.ip().is_unspecified() => same_family && is_this_host(server),
        server => server == own.ip(),
    };
    own.port() == server.port() && addr_matches
}

fn is_this_host(addr: IpAddr) -> bool {
    addr.is_loopback() || addr.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, own: &[&str]) -> Vec<String> {
        let own: Vec<_> = own.iter().map(|addr| addr.parse().unwrap()).collect();
        let index = |name: &str| (name == "eth0").then_some(7);
        parse_resolv_conf(text, &own, index).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_are_read_in_order() {
        let text = "# nameserver 1.1.1.1\n; nameserver 2.2.2.2\nsearch example.com\n\
            nameserver 8.8.8.8 # comment\r\n  nameserver\t8.8.4.4\nnameserver 8.8.8.8\nnameserver\n\
            nameserver nonsense\nNameserver 9.9.9.9\noptions edns0\nnameserver fd00::53\n\
            nameserver fe80::1%eth0\nnameserver fe80::1%3\nnameserver fe80::1%eth1";
        assert_eq!(
            parse(text, &[]),
            ["8.8.8.8:53", "8.8.4.4:53", "[fd00::53]:53", "[fe80::1%7]:53", "[fe80::1%3]:53"]
        );
        assert!(parse("", &[]).is_empty());
    }

    #[test]
    fn number_of_servers_is_limited() {
        let text: String = (0..100).map(|n| format!("nameserver 10.0.0.{n}\n")).collect();
        assert_eq!(parse(&text, &[]).len(), MAX_SERVERS);
    }

    #[test]
    fn own_addresses_are_left_out() {
        let text = "nameserver 127.0.0.1\nnameserver 172.17.0.1\nnameserver ::1\nnameserver 8.8.8.8";
        assert_eq!(parse(text, &["172.17.0.1:53"]), ["127.0.0.1:53", "[::1]:53", "8.8.8.8:53"]);
        assert_eq!(parse(text, &["0.0.0.0:53"]), ["172.17.0.1:53", "[::1]:53", "8.8.8.8:53"]);
        assert_eq!(parse(text, &["[::]:53"]), ["172.17.0.1:53", "8.8.8.8:53"]);
        assert_eq!(parse(text, &["172.17.0.1:5353"]).len(), 4, "the port counts");
    }
}
