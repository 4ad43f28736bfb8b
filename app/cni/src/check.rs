use std::net::IpAddr;

use weave_types::Cidr;

use crate::{AddResult, Error, code};

/// What a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether it has the interface.
    pub interface: bool,
    /// Whether the other end of the interface is a port of the bridge.
    pub on_bridge: bool,
    /// Whether the interface is up.
    pub up: bool,
    /// The Ethernet address of the interface.
    pub mac: String,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// Destinations and gateways of the routes that lead over it.
    pub routes: Vec<(Cidr, Option<IpAddr>)>,
    /// Destinations of the routes that lead over other interfaces.
    pub other_routes: Vec<Cidr>,
}

/// Compares the container with the result of `ADD` for its `interface`. `bridge` is for the texts.
///
/// # Errors
/// Something is missing or differs.
pub fn check(result: &AddResult, interface: &str, bridge: &str, seen: &Observed) -> Result<(), Error> {
    let failed = |text: String| Err(Error::other(text));
    let own = result.interfaces.iter().position(|i| i.name == interface && !i.sandbox.is_empty());
    let Some(own) = own else {
        return Err(Error::new(code::INVALID_CONFIG, format!("prevResult has no interface {interface}")));
    };
    if !seen.interface {
        return failed(format!("interface {interface} is missing"));
    }
    if !seen.on_bridge {
        return failed(format!("interface {interface} is not connected to bridge {bridge}"));
    }
    if !seen.up {
        return failed(format!("interface {interface} is down"));
    }
    let mac = &result.interfaces[own].mac;
    if !mac.is_empty() && !mac.eq_ignore_ascii_case(&seen.mac) {
        return failed(format!("interface {interface} has the Ethernet address {}, not {mac}", seen.mac));
    }
    let addresses: Vec<_> =
        result.addresses.iter().filter(|a| a.interface.is_none_or(|i| i == own)).collect();
    for address in &addresses {
        if !seen.addresses.contains(&address.cidr) {
            return failed(format!("interface {interface} has lost its address {}", address.cidr));
        }
    }
    let gateway = addresses.iter().find_map(|address| address.gateway);
    let default = Cidr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
    let expected: Vec<(Cidr, Option<IpAddr>)> = match &result.routes {
        Some(routes) if !routes.is_empty() => {
            routes.iter().map(|route| (route.dst.network(), route.gw.or(gateway))).collect()
        }
        // Routes that are none cannot be told from routes that were not given.
        _ => default.zip(gateway).map(|(dst, gateway)| (dst, Some(gateway))).into_iter().collect(),
    };
    for (dst, via) in expected {
        // The subnet's own route is the kernel's, without a gateway.
        let connected = addresses.iter().any(|address| address.cidr.network() == dst);
        let own = seen.routes.iter().any(|(seen, seen_via)| *seen == dst && (connected || *seen_via == via));
        // `ADD` leaves a route of another network alone.
        if !own && !seen.other_routes.contains(&dst) {
            return failed(format!("interface {interface} has lost its route to {dst}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_difference_is_found() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let result = |routes: serde_json::Value| {
            AddResult::parse(&json!({
                "interfaces": [
                    { "name": "vethweplc1", "mac": "02:00:00:00:00:09" },
                    { "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/c1" },
                    { "name": "tap0", "sandbox": "/run/netns/c1" },
                ],
                "ips": [
                    { "address": "10.32.0.1/12", "gateway": "10.32.0.2", "interface": 1 },
                    { "address": "10.99.0.1/16", "interface": 2 },
                ],
                "routes": routes,
            }))
            .unwrap()
        };
        let gateway = "10.32.0.2".parse().ok();
        let seen = Observed {
            interface: true,
            on_bridge: true,
            up: true,
            mac: "02:00:00:00:00:01".to_owned(),
            addresses: vec![cidr("10.32.0.1/12")],
            routes: vec![(cidr("10.32.0.0/12"), None), (cidr("0.0.0.0/0"), gateway)],
            other_routes: Vec::new(),
        };
        let by_default = result(json!(null));
        assert_eq!(check(&by_default, "eth0", "weave", &seen), Ok(()));
        let given = result(json!([{ "dst": "10.32.0.0/12" }, { "dst": "0.0.0.0/0", "gw": "10.32.0.2" }]));
        assert_eq!(check(&given, "eth0", "weave", &seen), Ok(()));
        let text = |seen: Observed| check(&by_default, "eth0", "weave", &seen).unwrap_err().msg;
        assert!(text(Observed::default()).ends_with("is missing"));
        assert!(text(Observed { on_bridge: false, ..seen.clone() }).contains("not connected"));
        assert!(text(Observed { up: false, ..seen.clone() }).ends_with("is down"));
        assert!(text(Observed { mac: "02:00:00:00:00:02".to_owned(), ..seen.clone() }).contains("Ethernet"));
        assert!(text(Observed { addresses: vec![], ..seen.clone() }).ends_with("its address 10.32.0.1/12"));
        assert!(text(Observed { routes: vec![], ..seen.clone() }).ends_with("its route to 0.0.0.0/0"));
        let other = Observed { routes: vec![(cidr("0.0.0.0/0"), "10.32.0.9".parse().ok())], ..seen.clone() };
        assert!(text(other).ends_with("its route to 0.0.0.0/0"));
        let other = Observed { routes: vec![], other_routes: vec![cidr("0.0.0.0/0")], ..seen.clone() };
        assert_eq!(check(&by_default, "eth0", "weave", &other), Ok(()));
        assert_eq!(check(&by_default, "eth1", "weave", &seen).unwrap_err().code, code::INVALID_CONFIG);
    }
}
