//! Recent incoming connections whose handshake failed. They are shown in the report, so that a wrong password is visible on the
//! accepting side, too. (2.8.1 showed such attempts only on the connecting side.)

use std::net::SocketAddr;
use std::time::Duration;

use weave_api::report::Connection;
use weave_mesh::handshake::HandshakeError;
use weave_mesh::{ConnectionError, ConnectionEvent, Event};
use weave_types::{Instant, PeerName};

use super::printable::explain_error;

/// Time for which an attempt is shown. Repeated attempts come more often at first; later ones are in the log.
const DISPLAY_TIME: Duration = Duration::from_secs(120);
/// Number of attempts that are kept; a further one replaces the oldest.
const CAPACITY: usize = 32;
/// Number of attempts from one IP address that are kept.
const CAPACITY_FOR_ADDRESS: usize = 4;

#[derive(Debug)]
struct FailedHandshake {
    from: SocketAddr,
    /// `None` if the handshake failed before the remote has proved who it is.
    peer: Option<PeerName>,
    why: String,
    at: Instant,
}

/// The last failed attempts, oldest first. An IP address may be that of a router with several peers behind it: attempts from it
/// replace each other only if they are of the same peer, or of unknown peers and failed for the same reason.
#[derive(Debug, Default)]
pub(crate) struct FailedHandshakes(Vec<FailedHandshake>);

impl FailedHandshakes {
    pub(crate) fn record(&mut self, event: &Event, now: Instant) {
        let (from, peer, error) = match event {
            Event::HandshakeFailed(from, error) => (*from, None, error),
            Event::Connection(from, peer, ConnectionEvent::Ended(error)) => (*from, Some(peer.name), error),
            Event::Connection(from, peer, ConnectionEvent::Established) => {
                // An unknown peer that still fails is recorded again by its next attempt.
                let is_over = |r: &FailedHandshake| r.peer.is_none_or(|failed| failed == peer.name);
                self.0.retain(|r| r.from.ip() != from.ip() || !is_over(r));
                return;
            }
            _ => return,
        };
        if !is_actionable(error) {
            return;
        }
        let why = explain_error(&error.to_string());
        let is_repeated = |r: &FailedHandshake| r.peer == peer && (peer.is_some() || r.why == why);
        self.0.retain(|r| r.from.ip() != from.ip() || !is_repeated(r));
        self.0.push(FailedHandshake { from, peer, why, at: now });
        let of_address = self.0.iter().filter(|r| r.from.ip() == from.ip()).count();
        if of_address > CAPACITY_FOR_ADDRESS
            && let Some(oldest) = self.0.iter().position(|r| r.from.ip() == from.ip())
        {
            self.0.remove(oldest);
        }
        if self.0.len() > CAPACITY {
            self.0.remove(0);
        }
    }

    /// Entries for the report. Addresses in `listed` are left out, because the report contains them already.
    pub(crate) fn connections(&self, now: Instant, listed: &[Connection]) -> Vec<Connection> {
        let is_listed = |from: &SocketAddr| listed.iter().any(|c| c.address == from.to_string());
        let shown = self.0.iter().filter(|r| now - r.at < DISPLAY_TIME && !is_listed(&r.from));
        shown
            .map(|r| Connection {
                address: r.from.to_string(),
                outbound: false,
                state: "failed".to_owned(),
                info: r.why.clone(),
                ..Connection::default()
            })
            .collect()
    }
}

/// Whether an operator can fix the reason, unlike connections of other programs or a broken network.
fn is_actionable(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::Handshake(error) => matches!(
            error,
            HandshakeError::RemoteHasNoPassword
                | HandshakeError::RemoteHasPassword
                | HandshakeError::NoCommonVersion { .. }
                | HandshakeError::Session(_)
        ),
        ConnectionError::Features(_)
        | ConnectionError::NameCollision(..)
        | ConnectionError::NameInUse(..)
        | ConnectionError::LimitReached(_)
        | ConnectionError::NoCommonOverlay
        | ConnectionError::Receiver(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshake_failed(from: &str, error: HandshakeError) -> Event {
        Event::HandshakeFailed(from.parse().expect("an address"), ConnectionError::Handshake(error))
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn the_last_attempt_of_a_host_is_shown_for_a_while() {
        let mut failed = FailedHandshakes::default();
        failed.record(&handshake_failed("10.0.0.2:40000", HandshakeError::RemoteHasNoPassword), at(0));
        failed.record(&handshake_failed("10.0.0.2:40001", HandshakeError::RemoteHasNoPassword), at(10));
        failed.record(&handshake_failed("10.0.0.3:6783", HandshakeError::RemoteHasPassword), at(10));
        failed.record(
            &handshake_failed("10.0.0.4:1", HandshakeError::NotWeave(b"GET / HTTP".to_vec())),
            at(10),
        );
        let target = Connection { address: "10.0.0.3:6783".to_owned(), ..Connection::default() };
        let listed = [target];
        let shown = failed.connections(at(11), &listed);
        let [one] = shown.as_slice() else { panic!("{shown:?}") };
        assert_eq!(
            (one.address.as_str(), one.outbound, one.state.as_str()),
            ("10.0.0.2:40001", false, "failed")
        );
        assert_eq!(one.info, "password specified, but peer requested an unencrypted connection");
        assert!(failed.connections(at(130), &listed).is_empty());
    }

    #[test]
    fn peers_behind_one_address_are_all_shown() {
        let shown = |failed: &FailedHandshakes| -> Vec<String> {
            failed.connections(at(20), &[]).into_iter().map(|c| c.address).collect()
        };
        let peer = |n: u64, nickname: &str| weave_mesh::PeerLabel {
            name: PeerName::from_number(n).expect("a name"),
            nickname: nickname.into(),
        };
        let event =
            |from: &str, peer, event| Event::Connection(from.parse().expect("an address"), peer, event);
        let refused = || ConnectionEvent::Ended(ConnectionError::LimitReached(1));
        let mut failed = FailedHandshakes::default();
        failed.record(&handshake_failed("10.0.0.1:1", HandshakeError::RemoteHasNoPassword), at(1));
        failed.record(&event("10.0.0.1:2", peer(2, "h2"), refused()), at(2));
        failed.record(&event("10.0.0.1:3", peer(3, "h3"), refused()), at(3));
        failed.record(&event("10.0.0.1:4", peer(2, "h2"), refused()), at(4));
        assert_eq!(shown(&failed), ["10.0.0.1:1", "10.0.0.1:3", "10.0.0.1:4"]);
        failed.record(&event("10.0.0.1:5", peer(3, "h3"), ConnectionEvent::Established), at(5));
        assert_eq!(shown(&failed), ["10.0.0.1:4"]);
        // No address can displace the attempts from others.
        failed.record(&handshake_failed("10.0.0.9:1", HandshakeError::RemoteHasPassword), at(6));
        for n in 10..200 {
            failed.record(&event("10.0.0.1:1", peer(n, ""), refused()), at(7));
        }
        assert_eq!(shown(&failed).len(), 1 + CAPACITY_FOR_ADDRESS);
    }

    #[test]
    fn number_of_attempts_is_limited() {
        let mut failed = FailedHandshakes::default();
        for n in 0..=255u8 {
            failed.record(
                &handshake_failed(&format!("10.0.0.{n}:1"), HandshakeError::RemoteHasPassword),
                at(1),
            );
        }
        let shown = failed.connections(at(1), &[]);
        assert_eq!(shown.len(), CAPACITY);
        assert_eq!(shown.last().expect("many").address, "10.0.0.255:1");
    }
}
