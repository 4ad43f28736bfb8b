//! Neighbours to which TCP passes and UDP does not. Such a connection is made and given up about once a minute; only the first
//! and the last time are for the log.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weave_mesh::{ConnectionError, ConnectionEvent, Event};
use weave_types::PeerName;

/// The neighbours, which are peers of the topology, with the address of the latest connection.
#[derive(Debug, Default)]
pub(crate) struct BlockedPaths(BTreeMap<PeerName, IpAddr>);

impl BlockedPaths {
    /// A connection ended without having passed datagrams. Returns whether this is new.
    pub(crate) fn begin(&mut self, peer: PeerName, addr: IpAddr) -> bool {
        self.0.insert(peer, addr).is_none()
    }

    /// Datagrams pass, or the peer has left. Returns whether the path was blocked.
    pub(crate) fn end(&mut self, peer: PeerName) -> bool {
        self.0.remove(&peer).is_some()
    }

    /// Whether an event only repeats what is known of a blocked path.
    pub(crate) fn repeats(&self, event: &Event) -> bool {
        match event {
            Event::Attempting(addr) | Event::Accepted(addr) => self.0.values().any(|ip| *ip == addr.ip()),
            Event::Connection(_, peer, what) => {
                self.0.contains_key(&peer.name)
                    && matches!(
                        what,
                        ConnectionEvent::Ready { .. }
                            | ConnectionEvent::Added(_)
                            | ConnectionEvent::Deleted
                            | ConnectionEvent::Ended(
                                ConnectionError::Io(_)
                                    | ConnectionError::Closed(_)
                                    | ConnectionError::Duplicate(..)
                                    | ConnectionError::Overlay(_)
                            )
                    )
            }
            _ => false,
        }
    }
}
