//! Compares the states of channels without sending them: an extension between peers that announce `ChannelDigest` in the handshake
//! (docs/spec/mesh.md 18.4).
//!
//! ```text
//! A                                     B
//!  -- digest of A's state --------------> equal: done
//!  <-- otherwise: B's complete state ---- (as ordinary gossip)
//!  <-- digest of B's state --------------
//!  -- A's complete state, if B still lacks something -->
//! ```

use std::sync::Arc;

use weave_types::{ConnectionId, Now, PeerName};

use crate::connection::Connection;
use crate::event::ConnectionError;
use crate::gossip::{Channels, GossipKind};
use crate::mesh::Mesh;

/// Tag of the extension's messages, which are only sent to peers with the feature.
pub(crate) const TAG: u8 = 66;

const COMPARE: u8 = 0;
const ANSWER: u8 = 1;
/// The receiver of the digest has no such channel, but may have neighbours that do.
const SEND_STATE: u8 = 2;

fn encode(kind: u8, digest: u64, channel: &str) -> Vec<u8> {
    [&[TAG, kind][..], &digest.to_be_bytes(), channel.as_bytes()].concat()
}

/// The kind, the digest and the channel in the bytes after the tag.
fn decode(body: &[u8]) -> Option<(u8, u64, &str)> {
    let (kind, body) = body.split_first()?;
    let (digest, channel) = body.split_first_chunk()?;
    Some((*kind, u64::from_be_bytes(*digest), std::str::from_utf8(channel).ok()?))
}

impl Mesh {
    /// Brings random neighbours up to date: with a digest where the channel has one and the neighbour supports them, otherwise with the
    /// complete state.
    pub fn sync_channel(&mut self, channel: &str, channels: &mut dyn Channels, now: Now) {
        let Some(digest) = channels.digest(channel) else {
            if let Some(state) = channels.state(channel, now) {
                self.gossip(channel, &state, channels, now);
            }
            return;
        };
        let (digest, mut state) = (encode(COMPARE, digest, channel), None);
        for hop in self.gossip_hops(None) {
            let Some(&conn) = self.by_peer.get(&hop) else { continue };
            let running = self.connections.get(&conn).and_then(Connection::running);
            if running.is_some_and(|running| running.supports_channel_digest) {
                self.send_unless_busy(conn, &digest, now);
            } else if let Some(state) = state.get_or_insert_with(|| channels.state(channel, now)) {
                self.queue_and_flush(hop, GossipKind::Neighbour, &channel.into(), state, channels, now);
            }
        }
    }

    pub(crate) fn handle_channel_digest(
        &mut self,
        conn: ConnectionId,
        peer: PeerName,
        body: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        let Some((kind, theirs, channel)) = decode(body) else {
            return Err(ConnectionError::ProtocolViolation("malformed channel digest".to_owned()));
        };
        if !channels.names().contains(&channel) {
            if kind == COMPARE {
                self.send_unless_busy(conn, &encode(SEND_STATE, 0, channel), now);
            }
            return Ok(());
        }
        let ours = channels.digest(channel);
        if kind != SEND_STATE && ours == Some(theirs) {
            return Ok(());
        }
        if let Some(state) = channels.state(channel, now) {
            let channel: Arc<str> = channel.into();
            self.queue_and_flush(peer, GossipKind::Neighbour, &channel, &state, channels, now);
        }
        if kind == COMPARE {
            // After the state, so that the neighbour compares with what it then has.
            self.send(conn, &encode(ANSWER, ours.unwrap_or(0), channel), now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_any_length_are_read() {
        let message = encode(ANSWER, 0x0102_0304_0506_0708, "nameserver");
        assert_eq!(decode(&message[1..]), Some((ANSWER, 0x0102_0304_0506_0708, "nameserver")));
        assert_eq!(message[..10], [66, 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        for end in 0..9 {
            assert_eq!(decode(&message[1..=end]), None);
        }
        assert_eq!(decode(b"\x00\0\0\0\0\0\0\0\0\xff"), None);
    }
}
