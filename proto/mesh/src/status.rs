use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use weave_types::{ConnectionId, Instant, Now, PeerName, PeerUid, ShortId};

use crate::connection::Connection;
use crate::dialer::{TargetState, TargetStatus};
use crate::handshake::{MAX_PROTOCOL, MIN_PROTOCOL};
use crate::mesh::Mesh;
use crate::peers::PeerLabel;

/// The status of the mesh (docs/spec/mesh.md 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Lowest protocol version that is accepted.
    pub protocol_min: u8,
    /// Highest protocol version that is accepted.
    pub protocol_max: u8,
    /// Whether a password is set.
    pub encryption: bool,
    /// Whether peers that are learnt from the topology are dialled.
    pub discovery: bool,
    /// Name and nickname of this peer.
    pub own: PeerLabel,
    /// Listening TCP port.
    pub port: u16,
    /// All known peers, ascending by name.
    pub peers: Vec<PeerStatus>,
    /// Destinations and next hops of data, ascending; the next hop to this peer is [`PeerName::UNKNOWN`].
    pub unicast_routes: Vec<(PeerName, PeerName)>,
    /// Sources and next hops of broadcast data, as far as they have been computed.
    pub broadcast_routes: Vec<(PeerName, Vec<PeerName>)>,
    /// Our connections, oldest first.
    pub connections: Vec<ConnectionStatus>,
    /// All targets. Lists of connections show the waiting and attempting ones after the connections.
    pub targets: Vec<TargetLine>,
    /// Number of connections that have ended, except those to this peer itself.
    pub terminations: u64,
    /// Direct peers as the user gave them.
    pub direct_peers: Vec<String>,
    /// Networks to which data is not encrypted.
    pub trusted_subnets: Vec<weave_types::Cidr>,
}

/// A peer's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Name and nickname.
    pub label: PeerLabel,
    /// Identifies the run of the peer's process; 0 for a placeholder.
    pub uid: PeerUid,
    /// Short id of the peer, if it has one.
    pub short_id: Option<ShortId>,
    /// Version of the record.
    pub version: u64,
    /// Connections that the peer reports.
    pub connections: Vec<PeerConnectionStatus>,
}

/// A connection that a peer reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConnectionStatus {
    /// The remote peer.
    pub label: PeerLabel,
    /// Address of the remote end.
    pub address: String,
    /// Whether the reporting peer dialled.
    pub outbound: bool,
    /// Whether the data path is verified.
    pub established: bool,
}

/// One of our connections. The driver adds the name and attributes of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Identifies the connection.
    pub conn: ConnectionId,
    /// Remote address.
    pub address: SocketAddr,
    /// Whether we dialled.
    pub outbound: bool,
    /// Whether the data path is verified; otherwise the connection is pending.
    pub established: bool,
    /// Whether data is encrypted.
    pub encrypted: bool,
    /// Protocol version in use.
    pub protocol: u8,
    /// The remote peer.
    pub peer: PeerLabel,
    /// Bytes that the driver has not written yet.
    pub unwritten: usize,
}

/// A target and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetLine {
    /// The address to dial; for a name that was not found yet the name.
    pub address: String,
    /// What it is doing.
    pub state: TargetState,
    /// Why the last attempt ended.
    pub last_error: Option<String>,
    /// When it will be tried; `None`: never. Only meaningful while waiting.
    pub retry: Option<Time>,
}

/// A point in time, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Since the Unix epoch.
    pub wall: Duration,
    /// On the driver's monotonic clock.
    pub mono: Instant,
}

impl fmt::Display for Time {
    /// Go's default text in UTC, with the monotonic part: `2015-08-06 18:55:38.246910357 +0000 UTC m=+12.345000000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.wall.as_secs() / 86_400);
        let (second, nanos) = (self.wall.as_secs() % 86_400, self.wall.subsec_nanos());
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}")?;
        if nanos > 0 {
            write!(f, ".{}", format!("{nanos:09}").trim_end_matches('0'))?;
        }
        let mono = self.mono.since_origin();
        write!(f, " +0000 UTC m=+{}.{:09}", mono.as_secs(), mono.subsec_nanos())
    }
}

/// Year, month and day of a day since the epoch, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March here, so that the day of leap years is the last one.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

impl TargetLine {
    /// The state in a connections list; `None` if it is not in there.
    pub fn shown_state(&self) -> Option<&'static str> {
        match (self.state, &self.last_error) {
            (TargetState::Waiting, None) => Some("waiting"),
            (TargetState::Waiting, Some(_)) => Some("failed"),
            (TargetState::Attempting, None) => Some("connecting"),
            (TargetState::Attempting, Some(_)) => Some("retrying"),
            (TargetState::Connected | TargetState::Suspended, _) => None,
        }
    }

    /// The explanation in a connections list.
    pub fn info(&self) -> String {
        let error = self.last_error.as_deref();
        match (self.state, error, self.retry) {
            (TargetState::Waiting, None, Some(at)) => format!("until: {at}"),
            (TargetState::Waiting, None, None) => "until: never".to_owned(),
            (TargetState::Waiting, Some(error), Some(at)) => format!("{error}, retry: {at}"),
            (TargetState::Waiting, Some(error), None) => format!("{error}, retry: never"),
            (_, error, _) => error.unwrap_or_default().to_owned(),
        }
    }
}

impl Mesh {
    /// The status at this time.
    pub fn status(&self, now: Now) -> Status {
        let label = |name| self.topology.label(name);
        let peers = self.topology.peers().map(|(name, peer)| PeerStatus {
            label: label(name),
            uid: peer.uid,
            short_id: peer.short_id,
            version: peer.version,
            connections: peer
                .connections
                .iter()
                .map(|connection| PeerConnectionStatus {
                    label: label(connection.peer),
                    address: connection.address.to_string(),
                    outbound: connection.outbound,
                    established: connection.established,
                })
                .collect(),
        });
        let line = |t: TargetStatus| TargetLine {
            address: t.address,
            state: t.state,
            last_error: t.last_error,
            retry: t.retry.map(|mono| Time { wall: now.wall_at(mono), mono }),
        };
        Status {
            protocol_min: self.config.min_protocol.max(MIN_PROTOCOL),
            protocol_max: MAX_PROTOCOL,
            encryption: self.config.password.is_some(),
            discovery: self.config.discovery,
            own: label(self.config.name),
            port: self.config.port,
            peers: peers.collect(),
            unicast_routes: self.routes.unicast_table().collect(),
            broadcast_routes: self.routes.broadcast_table().map(|(src, to)| (src, to.to_vec())).collect(),
            connections: self.connections.values().filter_map(|c| self.connection_status(c)).collect(),
            targets: self.dialer.targets().map(line).collect(),
            terminations: self.terminations,
            direct_peers: self.dialer.direct_peers(),
            trusted_subnets: self.config.trusted_subnets.clone(),
        }
    }

    fn connection_status(&self, connection: &Connection) -> Option<ConnectionStatus> {
        let running = connection.running().filter(|r| r.added)?;
        Some(ConnectionStatus {
            conn: connection.id,
            address: connection.remote,
            outbound: connection.outbound(),
            established: running.established,
            encrypted: running.encrypted_overlay,
            protocol: running.session.version,
            peer: self.topology.label(running.peer),
            unwritten: connection.unwritten,
        })
    }

    /// The direct peers as the user gave them; with `active` only those that are still dialled (docs/spec/mesh.md 10.5).
    pub fn direct_peers(&self, active: bool) -> Vec<String> {
        if active { self.dialer.active_peers() } else { self.dialer.direct_peers() }
    }

    /// The short ids in use and their owners, ascending.
    pub fn short_ids(&self) -> impl Iterator<Item = (ShortId, PeerName)> + '_ {
        self.topology.short_ids().owners()
    }

    /// Owner of a short id.
    pub fn short_id_owner(&self, id: ShortId) -> Option<PeerName> {
        self.topology.short_ids().owner(id)
    }

    /// Name and nickname of a peer; an unknown peer has no nickname.
    pub fn label(&self, name: PeerName) -> PeerLabel {
        self.topology.label(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_look_like_gos() {
        let at = |secs, nanos| Time {
            wall: Duration::new(secs, nanos),
            mono: Instant::from_origin(Duration::new(12, 345_000_000)),
        };
        assert_eq!(
            at(1_438_887_338, 246_910_357).to_string(),
            "2015-08-06 18:55:38.246910357 +0000 UTC m=+12.345000000"
        );
        assert_eq!(
            at(951_782_400, 500_000_000).to_string(),
            "2000-02-29 00:00:00.5 +0000 UTC m=+12.345000000"
        );
        assert_eq!(at(0, 0).to_string(), "1970-01-01 00:00:00 +0000 UTC m=+12.345000000");
        assert_eq!(at(4_107_542_399, 0).to_string(), "2100-02-28 23:59:59 +0000 UTC m=+12.345000000");
        assert_eq!(at(4_107_542_400, 0).to_string(), "2100-03-01 00:00:00 +0000 UTC m=+12.345000000");
    }

    #[test]
    fn lines_of_targets() {
        let retry = Some(Time { wall: Duration::from_secs(60), mono: Instant::ORIGIN });
        let at = "1970-01-01 00:01:00 +0000 UTC m=+0.000000000";
        for (state, error, retry, shown, info) in [
            (TargetState::Waiting, None, retry, "waiting", format!("until: {at}")),
            (TargetState::Waiting, Some("EOF"), retry, "failed", format!("EOF, retry: {at}")),
            (TargetState::Waiting, Some("EOF"), None, "failed", "EOF, retry: never".to_owned()),
            (TargetState::Attempting, None, retry, "connecting", String::new()),
            (TargetState::Attempting, Some("EOF"), retry, "retrying", "EOF".to_owned()),
        ] {
            let line = TargetLine {
                address: "10.0.0.1:6783".to_owned(),
                state,
                last_error: error.map(str::to_owned),
                retry,
            };
            assert_eq!((line.shown_state(), line.info()), (Some(shown), info));
        }
    }
}
