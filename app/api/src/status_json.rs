//! The status pages as JSON: `weave status [<page>] --json`.
//!
//! The schema is stable: keys are only added, every key is always there, a list without entries is `[]`, and a service
//! that is off is `null` (its page: `[]`). Keys are those of the report where the report has the fact.
//!
//! | Page | JSON |
//! | --- | --- |
//! | (summary) | [`Summary`] |
//! | `targets` | list of texts, sorted |
//! | `connections` | list of [`ConnectionLine`] |
//! | `peers` | list of [`PeerLine`] |
//! | `dns` | list of [`NameLine`], names that are not deleted, by host name |
//! | `ipam` | list of [`ShareLine`], our own first |

use serde::Serialize;

use crate::facts;
pub use crate::facts::ShareLine;
use crate::report::{Connection, Report, to_go_json};

/// `weave status --json`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary<'a> {
    /// Whether everything that was asked for at launch is in place.
    pub ready: bool,
    /// Program version.
    pub version: &'a str,
    /// What is known about newer versions.
    pub version_check: String,
    /// The mesh.
    pub router: RouterSummary<'a>,
    /// What on this host keeps the peer or its containers from working, as sentences.
    pub host_problems: &'a [String],
    /// Address allocation.
    #[serde(rename = "IPAM")]
    pub ipam: Option<IpamSummary<'a>>,
    /// Names.
    #[serde(rename = "DNS")]
    pub dns: Option<DnsSummary<'a>>,
    /// The Docker API proxy.
    pub proxy: Option<ProxySummary<'a>>,
    /// The Docker network plugin.
    pub plugin: Option<PluginSummary<'a>>,
}

/// The mesh in figures.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RouterSummary<'a> {
    /// `weave`.
    pub protocol: &'a str,
    /// Lowest protocol version spoken.
    pub protocol_min_version: u8,
    /// Highest protocol version spoken.
    pub protocol_max_version: u8,
    /// Our name.
    pub name: &'a str,
    /// Our nickname.
    pub nick_name: &'a str,
    /// Whether a password is set.
    pub encryption: bool,
    /// Whether peers learnt by gossip are dialled.
    pub peer_discovery: bool,
    /// How many targets were named.
    pub targets: usize,
    /// Our connections and unconnected targets.
    pub connections: ConnectionCounts,
    /// Peers of the network, ourself included.
    pub peers: PeerCounts,
    /// Networks inside which traffic is not encrypted.
    pub trusted_subnets: &'a [String],
    /// The table of Ethernet addresses; `null` unless it was full since the start.
    #[serde(rename = "MACTable")]
    pub mac_table: Option<&'a crate::report::MacTable>,
}

/// Connections by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConnectionCounts {
    /// All connections, also in states without a field here.
    pub total: usize,
    /// Frames can pass.
    pub established: usize,
    /// Connected, but frames cannot pass yet.
    pub pending: usize,
    /// Retrying after a failure, right now.
    pub retrying: usize,
    /// Waiting for the next attempt.
    pub failed: usize,
    /// First attempt.
    pub connecting: usize,
}

/// Peers, and the connections that they report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerCounts {
    /// Peers.
    pub total: usize,
    /// Reported connections on which frames can pass.
    pub established: usize,
    /// Reported connections on which frames cannot pass yet.
    pub pending: usize,
}

/// Address allocation.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamSummary<'a> {
    /// As on the text page.
    pub status: String,
    /// `deferred`, `waiting` or `achieved`.
    pub consensus: &'static str,
    /// The whole range.
    pub range: &'a str,
    /// Subnet of `net:default`.
    pub default_subnet: &'a str,
    /// Addresses in the range.
    #[serde(rename = "RangeNumIPs")]
    pub range_num_ips: u64,
    /// Addresses in use here.
    #[serde(rename = "ActiveIPs")]
    pub active_ips: u64,
}

/// Names.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct DnsSummary<'a> {
    /// Our domain, with final dot.
    pub domain: &'a str,
    /// Resolvers for other names.
    pub upstream: &'a [String],
    /// Seconds that answers may be kept.
    #[serde(rename = "TTL")]
    pub ttl: u32,
    /// Names of all peers that are not deleted.
    pub entries: usize,
}

/// The Docker API proxy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProxySummary<'a> {
    /// Where it listens.
    pub addresses: &'a [String],
}

/// The Docker network plugin.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PluginSummary<'a> {
    /// Whether it is the managed plugin.
    #[serde(rename = "V2")]
    pub v2: bool,
    /// Name of the network driver; empty for the managed plugin.
    pub driver_name: &'a str,
}

/// One of our connections, or a target that is not connected.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConnectionLine<'a> {
    /// The other end's TCP address.
    pub address: &'a str,
    /// Whether we dialled.
    pub outbound: bool,
    /// As in the report.
    pub state: &'a str,
    /// The other end's name; empty for targets.
    pub name: &'a str,
    /// Its nickname.
    pub nick_name: &'a str,
    /// The overlay in use; `null` while there is none.
    pub overlay: Option<&'a str>,
    /// Whether data is encrypted; `null` while there is no overlay.
    pub encrypted: Option<bool>,
    /// Largest packet carried whole; `null` while there is no overlay.
    #[serde(rename = "MTU")]
    pub mtu: Option<u64>,
    /// Why no better overlay is used; `null` if there is nothing to explain.
    pub overlay_reason: Option<&'a str>,
    /// As on the text page: overlay and peer, or why there is no connection.
    pub info: &'a str,
}

/// A peer and what it is connected to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerLine<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its nickname.
    pub nick_name: &'a str,
    /// Its connections.
    pub connections: &'a [crate::report::PeerConnection],
}

/// A name that is not deleted.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NameLine<'a> {
    /// Full name with final dot.
    pub hostname: &'a str,
    /// Its address.
    pub address: &'a str,
    /// Full id of the container that has it.
    #[serde(rename = "ContainerID")]
    pub container_id: &'a str,
    /// The peer that registered it.
    pub origin: &'a str,
}

/// The JSON of a page, indented, without final newline; `None` if there is no such page.
pub fn json(report: &Report, page: Option<&str>) -> Option<String> {
    Some(match page {
        None => to_go_json(&summary(report), true),
        Some("targets") => {
            let mut targets = report.router.targets.clone();
            targets.sort();
            to_go_json(&targets, true)
        }
        Some("connections") => to_go_json(&connections(report), true),
        Some("peers") => to_go_json(&peers(report), true),
        Some("dns") => to_go_json(&names(report), true),
        Some("ipam") => to_go_json(&facts::shares(report), true),
        Some(_) => return None,
    })
}

fn summary(report: &Report) -> Summary<'_> {
    let r = &report.router;
    let in_state = |state: &str| r.connections.iter().filter(|c| c.state == state).count();
    let reported = || r.peers.iter().flat_map(|p| &p.connections);
    Summary {
        ready: report.ready,
        version: &report.version,
        version_check: facts::version_sentence(&report.version_check),
        host_problems: &report.host_problems,
        router: RouterSummary {
            protocol: &r.protocol,
            protocol_min_version: r.protocol_min_version,
            protocol_max_version: r.protocol_max_version,
            name: &r.name,
            nick_name: &r.nick_name,
            encryption: r.encryption,
            peer_discovery: r.peer_discovery,
            targets: r.targets.len(),
            connections: ConnectionCounts {
                total: r.connections.len(),
                established: in_state("established"),
                pending: in_state("pending"),
                retrying: in_state("retrying"),
                failed: in_state("failed"),
                connecting: in_state("connecting"),
            },
            peers: PeerCounts {
                total: r.peers.len(),
                established: reported().filter(|c| c.established).count(),
                pending: reported().filter(|c| !c.established).count(),
            },
            trusted_subnets: &r.trusted_subnets,
            mac_table: r.mac_table.as_ref(),
        },
        ipam: report.ipam.as_ref().map(|i| IpamSummary {
            status: facts::ipam_state(i),
            consensus: facts::consensus(i),
            range: &i.range,
            default_subnet: &i.default_subnet,
            range_num_ips: i.range_num_ips,
            active_ips: i.active_ips,
        }),
        dns: report.dns.as_ref().map(|d| DnsSummary {
            domain: &d.domain,
            upstream: &d.upstream,
            ttl: d.ttl,
            entries: d.entries.iter().filter(|e| e.tombstone == 0).count(),
        }),
        proxy: report.proxy.as_ref().map(|p| ProxySummary { addresses: &p.addresses }),
        plugin: report.plugin.as_ref().map(|p| PluginSummary {
            v2: p.config.enable_v2,
            driver_name: if p.config.enable_v2 { "" } else { &p.driver_name },
        }),
    }
}

fn connections(report: &Report) -> Vec<ConnectionLine<'_>> {
    report.router.connections.iter().map(connection).collect()
}

fn connection(c: &Connection) -> ConnectionLine<'_> {
    let attribute = |key: &str| c.attrs.as_ref().and_then(|a| a.get(key));
    let overlay = attribute("name").and_then(|v| v.as_str());
    ConnectionLine {
        address: &c.address,
        outbound: c.outbound,
        state: &c.state,
        name: &c.name,
        nick_name: &c.nick_name,
        overlay,
        encrypted: overlay.map(|_| attribute("encrypted").and_then(|v| v.as_bool()).unwrap_or(false)),
        mtu: attribute("mtu").and_then(|v| v.as_u64()),
        overlay_reason: c.overlay_reason.as_deref(),
        info: &c.info,
    }
}

fn peers(report: &Report) -> Vec<PeerLine<'_>> {
    let peers = report.router.peers.iter();
    peers.map(|p| PeerLine { name: &p.name, nick_name: &p.nick_name, connections: &p.connections }).collect()
}

fn names(report: &Report) -> Vec<NameLine<'_>> {
    let active = report.dns.iter().flat_map(facts::active_entries);
    active
        .map(|e| NameLine {
            hostname: &e.hostname,
            address: &e.address,
            container_id: &e.container_id,
            origin: &e.origin,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn vector(case: &str) -> Report {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli");
        let text = std::fs::read_to_string(format!("{root}/{case}/report.json")).expect(case);
        Report::from_json(&text).expect(case)
    }

    fn read(report: &Report, page: Option<&str>) -> Value {
        serde_json::from_str(&super::json(report, page).expect("a page")).expect("JSON")
    }

    /// The published schema: programs read it.
    #[test]
    fn schema_is_the_published_one() {
        let report = vector("three-peers-host3");
        let summary = read(&report, None);
        assert_eq!(
            summary,
            json!({
                "Ready": true, "Version": "2.8.1", "VersionCheck": "version check update disabled",
                "Router": {
                    "Protocol": "weave", "ProtocolMinVersion": 1, "ProtocolMaxVersion": 2,
                    "Name": "8a:3e:3e:3e:3e:03", "NickName": "host3", "Encryption": false, "PeerDiscovery": true,
                    "Targets": report.router.targets.len(),
                    "Connections":
                        {"Total": 4, "Established": 2, "Pending": 0, "Retrying": 1, "Failed": 1, "Connecting": 0},
                    "Peers": {"Total": 3, "Established": 6, "Pending": 0},
                    "TrustedSubnets": report.router.trusted_subnets,
                    "MACTable": null,
                },
                "HostProblems": [],
                "IPAM": {
                    "Status": "ready", "Consensus": "achieved", "Range": "10.32.0.0/12", "DefaultSubnet": "10.32.0.0/12",
                    "RangeNumIPs": 1_048_576, "ActiveIPs": 1,
                },
                "DNS": {
                    "Domain": "weave.local.", "Upstream": report.dns.as_ref().expect("on").upstream, "TTL": 1,
                    "Entries": report.dns.as_ref().expect("on").entries.iter().filter(|e| e.tombstone == 0).count(),
                },
                "Proxy": null, "Plugin": null,
            })
        );
        let keys = |page: &str| {
            let list = read(&report, Some(page));
            list[0].as_object().expect(page).keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            keys("connections"),
            "Address Encrypted Info MTU Name NickName Outbound Overlay OverlayReason State"
        );
        assert_eq!(keys("peers"), "Connections Name NickName");
        assert_eq!(keys("ipam"), "ActiveIPs IPs Nickname Peer Percent Reachable");
        let report = vector("one-peer-active");
        let names = read(&report, Some("dns"));
        let keys: Vec<_> = names[0].as_object().expect("a name").keys().collect();
        assert_eq!(keys, ["Address", "ContainerID", "Hostname", "Origin"]);
    }

    #[test]
    fn connections_have_the_facts_of_the_text_page() {
        let report = vector("three-peers-host3");
        let list = read(&report, Some("connections"));
        let live =
            list.as_array().expect("a list").iter().find(|c| c["State"] == "established").expect("one");
        assert_eq!(
            (&live["Overlay"], &live["Encrypted"], &live["MTU"]),
            (&json!("sleeve"), &json!(false), &json!(1438))
        );
        let target = list.as_array().expect("a list").iter().find(|c| c["State"] == "failed").expect("one");
        assert_eq!(
            (&target["Overlay"], &target["MTU"], &target["Encrypted"]),
            (&json!(null), &json!(null), &json!(null))
        );
        assert!(target["Info"].as_str().is_some_and(|i| i.contains("retry: ")), "{target}");
    }

    #[test]
    fn services_that_are_off_are_null_or_empty() {
        let report = vector("no-ipam-no-dns");
        for page in ["dns", "ipam", "targets", "connections"] {
            assert_eq!(super::json(&report, Some(page)).expect(page), "[]", "{page}");
        }
        let summary = read(&report, None);
        assert!(summary["IPAM"].is_null() && summary["DNS"].is_null(), "{summary}");
        assert_eq!(super::json(&report, Some("nonsense")), None);
    }

    #[test]
    fn shares() {
        let list = read(&vector("three-peers-host2-killed-host3"), Some("ipam"));
        let list = list.as_array().expect("a list");
        assert_eq!((&list[0]["Nickname"], &list[0]["Reachable"]), (&json!("host3"), &json!(true)));
        assert!(list[0]["ActiveIPs"].is_u64() && list[1]["ActiveIPs"].is_null());
        assert_eq!(list.iter().filter(|s| s["Reachable"] == false).count(), 1);
        let percent: f64 = list.iter().filter_map(|s| s["Percent"].as_f64()).sum();
        assert!((percent - 100.0).abs() < 1e-6, "{percent}");
    }
}
