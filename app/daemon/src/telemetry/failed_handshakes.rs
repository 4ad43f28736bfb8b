//! Recent incoming connections whose handshake failed. They are shown in the report, so that a wrong password is visible on the
//! accepting side, too. (2.8.1 showed such attempts only on the connecting side.)

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weave_api::report::Connection;
use weave_mesh::handshake::HandshakeError;
use weave_mesh::{ConnectionError, ConnectionEvent, Event};
use weave_types::Instant;

use super::printable::explain_error;

/// Time for which an attempt is shown. Repeated attempts come more often at first; later ones are in the log.
const DISPLAY_TIME: Duration = Duration::from_secs(120);
/// Number of attempts that are kept; a further one replaces the oldest.
const CAPACITY: usize = 32;

#[derive(Debug)]
struct FailedHandshake {
    from: SocketAddr,
    why: String,
    at: Instant,
}

/// The last failed attempt of each host, oldest first.
#[derive(Debug, Default)]
pub(crate) struct FailedHandshakes(Vec<FailedHandshake>);

impl FailedHandshakes {
    pub(crate) fn record(&mut self, event: &Event, now: Instant) {
        match event {
            Event::HandshakeFailed(from, error)
            | Event::Connection(from, _, ConnectionEvent::Ended(error))
                if is_actionable(error) =>
            {
                self.remove(from.ip());
                self.0.push(FailedHandshake { from: *from, why: explain_error(&error.to_string()), at: now });
                if self.0.len() > CAPACITY {
                    self.0.remove(0);
                }
            }
            Event::Connection(from, _, ConnectionEvent::Established) => self.remove(from.ip()),
            _ => {}
        }
    }

    fn remove(&mut self, ip: IpAddr) {
        self.0.retain(|r| r.from.ip() != ip);
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
