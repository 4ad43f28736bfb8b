//! The state of the node as the report that status pages and scripts read (docs/spec/mesh.md 13, docs/spec/cli.md 9).

use std::collections::BTreeMap;

use serde_json::Value;
use weave_api::report::{
    BroadcastRoute, Connection, Mac, MacTable, PathQuality, Peer, PeerConnection, Router, Traffic,
    UnicastRoute,
};
use weave_api::{Report, Timestamp};
use weave_datapath::{DatapathStats, DeviceState};
use weave_mesh::{PeerLabel, TargetState, TargetStatus};
use weave_node::{ConnectionReport, MacTableReport, Status};
use weave_switch::DropReason;

use super::ipam_report;
use super::metrics::{self, ConnectionSeries, Snapshot};
use super::printable::{explain_error, printable};

/// Column widths in the line of a connection.
const ENCRYPTION_WIDTH: usize = 11;
const OVERLAY_WIDTH: usize = 6;

/// `device` is the name of the uplink.
pub(crate) fn report(status: Status, data: &DatapathStats, device: &str) -> Report {
    let Status { mesh, connections: overlays, macs, mac_table, ipam } = status;
    let ipam_notes = ipam.as_ref().and_then(ipam_report::notes);
    let ipam = ipam.as_ref().map(ipam_report::report);
    let own = mesh.own.name;
    let mut peers: Vec<_> = mesh.peers.iter().map(peer).collect();
    // This peer comes first; the others are in the order of their names.
    peers.sort_by_key(|p| p.name != own.to_string());
    let live = mesh.connections.iter().map(|c| live_connection(c, overlays.get(&c.conn), mesh.encryption));
    let targets = mesh.targets.iter().filter_map(target);
    let router = Router {
        protocol: "weave".to_owned(),
        protocol_min_version: mesh.protocol_min,
        protocol_max_version: mesh.protocol_max,
        encryption: mesh.encryption,
        peer_discovery: mesh.discovery,
        name: own.to_string(),
        nick_name: mesh.own.nickname.to_string(),
        port: mesh.port,
        peers,
        unicast_routes: mesh
            .unicast_routes
            .iter()
            .map(|(dest, via)| UnicastRoute { dest: dest.to_string(), via: via.to_string() })
            .collect(),
        broadcast_routes: mesh
            .broadcast_routes
            .iter()
            .map(|(source, via)| BroadcastRoute {
                source: source.to_string(),
                via: via.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        connections: live.chain(targets).collect(),
        termination_count: mesh.terminations,
        targets: mesh.direct_peers,
        overlay_diagnostics: BTreeMap::from([("sleeve".to_owned(), Value::Null)]),
        trusted_subnets: mesh.trusted_subnets.iter().map(ToString::to_string).collect(),
        interface: match &data.device {
            DeviceState::None => "no overlay bridge".to_owned(),
            DeviceState::Up => format!("{device} (via AF_PACKET)"),
            DeviceState::Unavailable(why) => format!("{device} (lost: {why})"),
        },
        capture_stats: Some(BTreeMap::from([
            ("PacketsReceived".to_owned(), data.counts.captured),
            ("PacketsDropped".to_owned(), data.counts.capture_dropped),
            ("PacketsIfDropped".to_owned(), 0),
        ])),
        macs: macs
            .iter()
            .map(|m| Mac {
                mac: m.mac.to_string(),
                name: m.peer.to_string(),
                nick_name: printable(&m.nickname),
                last_seen: Timestamp::from_unix(m.last_seen),
                refused: m.refused,
            })
            .collect(),
        drops: all_drops(data).into_iter().filter(|(_, n)| *n > 0).collect(),
        mac_table: (mac_table.displaced > 0).then(|| full_mac_table(&mac_table, macs.len())),
    };
    Report { ready: true, version: crate::VERSION.to_owned(), router, ipam, ipam_notes, ..Report::default() }
}

fn full_mac_table(table: &MacTableReport, entries: usize) -> MacTable {
    let (peer, share) = table.largest.clone().unwrap_or_default();
    MacTable {
        entries,
        max_entries: table.max_entries,
        displaced: table.displaced,
        largest_peer: printable(&peer),
        largest_entries: share,
    }
}

/// A target that is waiting or attempting; others are not in the list of connections.
fn target(target: &TargetStatus) -> Option<Connection> {
    let error = target.last_error.as_deref();
    let retry = target.retry.map_or("never".to_owned(), |at| {
        let mono = at.mono.since_origin();
        let wall = Timestamp::from_unix(at.wall).go_text();
        format!("{wall} m=+{}.{:09}", mono.as_secs(), mono.subsec_nanos())
    });
    let (state, info) = match (target.state, error) {
        (TargetState::Waiting, None) => ("waiting", format!("until: {retry}")),
        (TargetState::Waiting, Some(error)) => ("failed", format!("{error}, retry: {retry}")),
        (TargetState::Attempting, None) => ("connecting", String::new()),
        (TargetState::Attempting, Some(error)) => ("retrying", error.to_owned()),
        (TargetState::Suspended, _) => match &target.elsewhere {
            Some((peer, at)) => {
                ("waiting", format!("{peer} answers there and is connected at {at}, next check: {retry}"))
            }
            None => return None,
        },
        (TargetState::Connected, _) => return None,
    };
    Some(Connection {
        address: target.address.clone(),
        outbound: true,
        state: state.to_owned(),
        info: explain_error(&info),
        ..Connection::default()
    })
}

fn peer(peer: &weave_mesh::PeerStatus) -> Peer {
    Peer {
        name: peer.label.name.to_string(),
        nick_name: printable(&peer.label.nickname),
        uid: peer.uid.0,
        short_id: peer.short_id.map_or(0, |id| id.get()),
        version: peer.version,
        connections: peer
            .connections
            .iter()
            .map(|c| PeerConnection {
                name: c.label.name.to_string(),
                nick_name: printable(&c.label.nickname),
                address: printable(&c.address),
                outbound: c.outbound,
                established: c.established,
            })
            .collect(),
    }
}

fn live_connection(
    c: &weave_mesh::ConnectionStatus,
    overlay: Option<&ConnectionReport>,
    password: bool,
) -> Connection {
    let name = overlay.and_then(|o| o.overlay.as_deref());
    let attrs = overlay.zip(name).map(|(o, name)| {
        let mut attrs = BTreeMap::from([("name".to_owned(), Value::from(name))]);
        attrs.extend(o.mtu.map(|mtu| ("mtu".to_owned(), Value::from(mtu))));
        if o.encrypted {
            attrs.insert("encrypted".to_owned(), Value::from(true));
        }
        attrs
    });
    Connection {
        address: c.address.to_string(),
        outbound: c.outbound,
        state: if c.established { "established" } else { "pending" }.to_owned(),
        info: info(name, c.encrypted, password, &c.peer),
        attrs,
        // A reason without an explanation consists of the name of the overlay only.
        overlay_reason: overlay.map(|o| o.reason.clone()).filter(|r| r.contains(": ")),
        name: c.peer.name.to_string(),
        nick_name: printable(&c.peer.nickname),
        traffic: overlay.map(|o| Traffic { sent: o.traffic.sent, received: o.traffic.received }),
        quality: overlay.and_then(|o| o.quality).map(|quality| PathQuality {
            round_trip: quality.round_trip.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            probes: quality.probes,
            lost: quality.lost,
        }),
    }
}

fn info(overlay: Option<&str>, encrypted: bool, password: bool, peer: &PeerLabel) -> String {
    let encryption = match (password, encrypted) {
        (false, _) => String::new(),
        (true, true) => format!("{:<ENCRYPTION_WIDTH$} ", "encrypted"),
        (true, false) => format!("{:<ENCRYPTION_WIDTH$} ", "unencrypted"),
    };
    let peer = printable(&peer.to_string());
    format!("{encryption}{:<OVERLAY_WIDTH$} {peer}", overlay.unwrap_or("none"))
}

pub(crate) fn snapshot(report: Report, data: &DatapathStats, known: &mut ConnectionSeries) -> Snapshot {
    known.add(&report);
    let counts = &data.counts;
    let traffic = metrics::Traffic {
        frames_in: counts.captured,
        frames_out: counts.injected,
        datagrams_in: counts.received,
        bytes_in: counts.received_bytes,
        datagrams_out: counts.sent,
        bytes_out: counts.sent_bytes,
    };
    Snapshot { report, drops: all_drops(data), traffic, dns: None, connection_series: known.clone() }
}

/// Dropped frames and datagrams by reason.
fn all_drops(data: &DatapathStats) -> BTreeMap<String, u64> {
    let counts = &data.counts;
    let forwarder = data.forwarder.named().filter_map(|(name, n)| Some((name.strip_prefix("drop_")?, n)));
    let named = forwarder
        .chain([
            ("capture_refused", counts.capture_refused),
            ("capture_overrun", counts.capture_dropped),
            ("inject_failed", counts.inject_dropped),
            ("send_busy", counts.send_dropped_busy),
            ("send_too_big", counts.send_dropped_too_big),
            ("send_error", counts.send_dropped_error),
            ("receive_overrun", data.receive_dropped),
        ])
        .map(|(name, n)| (name.replace('_', " "), n));
    let switch = DropReason::ALL.iter().zip(data.forwarder.switch_drops);
    let mut drops = BTreeMap::new();
    for (reason, n) in named.chain(switch.map(|(reason, n)| (reason.to_string(), n))) {
        *drops.entry(reason).or_default() += n;
    }
    drops
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weave_types::{Instant, Now};

    use super::*;

    /// Lines from the vectors `encrypted-awaiting-consensus-host1` and `three-peers-host3`.
    #[test]
    fn connection_lines_match_the_original() {
        let peer = PeerLabel { name: "8a:3e:3e:3e:3e:02".parse().expect("a name"), nickname: "host2".into() };
        for (overlay, encrypted, password, line) in [
            (Some("sleeve"), true, true, "encrypted   sleeve 8a:3e:3e:3e:3e:02(host2)"),
            (Some("sleeve"), false, true, "unencrypted sleeve 8a:3e:3e:3e:3e:02(host2)"),
            (Some("sleeve"), false, false, "sleeve 8a:3e:3e:3e:3e:02(host2)"),
            (None, false, false, "none   8a:3e:3e:3e:3e:02(host2)"),
        ] {
            assert_eq!(info(overlay, encrypted, password, &peer), line);
        }
    }

    #[test]
    fn lines_of_targets() {
        let mono = Instant::from_origin(Duration::from_millis(12_345));
        let at = Some(Now { mono, wall: Duration::from_secs(60) });
        let time = "1970-01-01 00:01:00 +0000 UTC m=+12.345000000";
        for (state, error, retry, expected) in [
            (TargetState::Waiting, None, at, Some(("waiting", format!("until: {time}")))),
            (TargetState::Waiting, Some("EOF"), at, Some(("failed", format!("EOF, retry: {time}")))),
            (TargetState::Waiting, Some("EOF"), None, Some(("failed", "EOF, retry: never".to_owned()))),
            (TargetState::Attempting, None, at, Some(("connecting", String::new()))),
            (TargetState::Attempting, Some("EOF"), at, Some(("retrying", "EOF".to_owned()))),
            (TargetState::Suspended, Some("EOF"), at, None),
        ] {
            let (address, last_error) = ("10.0.0.1:6783".to_owned(), error.map(str::to_owned));
            let shown = target(&TargetStatus { address, state, last_error, retry, elsewhere: None });
            assert_eq!(
                shown.map(|c| (c.state, c.info)),
                expected.map(|(state, info)| (state.to_owned(), info))
            );
        }
    }

    #[test]
    fn control_characters_of_nicknames_are_replaced() {
        let name = "8a:3e:3e:3e:3e:02".parse().expect("a name");
        let label = PeerLabel { name, nickname: "\x1b]0;x\x07\nh\u{9b}2J".into() };
        assert_eq!(info(None, false, false, &label), "none   8a:3e:3e:3e:3e:02( ]0;x  h 2J)");
        let status = weave_mesh::PeerStatus {
            label: label.clone(),
            uid: weave_types::PeerUid(1),
            short_id: None,
            version: 1,
            connections: vec![weave_mesh::PeerConnectionStatus {
                label,
                address: "\x1b[1m:1".to_owned(),
                outbound: true,
                established: true,
            }],
        };
        let peer = peer(&status);
        assert_eq!(peer.nick_name, " ]0;x  h 2J");
        assert_eq!(
            (&*peer.connections[0].nick_name, &*peer.connections[0].address),
            (" ]0;x  h 2J", " [1m:1")
        );
        assert_eq!(explain_error("refused by \x1b[5m"), "refused by  [5m");
    }
}
