//! Helpers shared by the tests of this crate.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use weave_overlay::ForwarderEvent;
use weave_overlay::udp::{Session, SessionConfig, UdpControlConfig};
use weave_overlay::{Destination, Io, Slot};
use weave_switch::Routes;
use weave_types::{ConnectionId, ConnectionUid, PeerName};

pub(crate) fn vectors(name: &str) -> Value {
    let path = format!("{}/../../tests/vectors/data-plane/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap()
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

pub(crate) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Parses a peer name of twelve hex digits.
pub(crate) fn peer(value: &Value) -> PeerName {
    PeerName::from_bytes(bytes(value).try_into().unwrap())
}

/// `7a:00:00:00:00:<n>`, as in the vectors.
pub(crate) fn name(n: u8) -> PeerName {
    PeerName::from_bytes([0x7a, 0, 0, 0, 0, n])
}

pub(crate) fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([172, 30, 1, n], 6783))
}

/// The UID of all connections.
pub(crate) const UID: ConnectionUid = ConnectionUid(0x77);

/// The session between peers `own` and `remote`, on the side of `own`. As in the captures, the peer with the lower name opened
/// the TCP connection.
pub(crate) fn session(own: u8, remote: u8, key: Option<[u8; 32]>) -> Arc<Session> {
    let conn = ConnectionId(u64::from(remote));
    Session::new(SessionConfig {
        own: name(own),
        remote: name(remote),
        conn,
        uid: UID,
        outbound: own < remote,
        key,
    })
}

/// Parameters of the connection between peers 1 and 2 on the side of `own`. Peer 1 opened it.
pub(crate) fn config(session: Arc<Session>, own: u8) -> UdpControlConfig {
    UdpControlConfig { session, local: addr(own), remote: addr(3 - own), outbound: own == 1 }
}

/// An [`Io`] that records everything and checks the contract of [`Io`].
#[derive(Default)]
pub(crate) struct Recorder {
    slots: BTreeMap<u32, (Destination, Vec<u8>)>,
    next: u32,
    pub(crate) sent: Vec<(Destination, Vec<u8>)>,
    pub(crate) injected: Vec<Vec<u8>>,
    pub(crate) events: Vec<ForwarderEvent>,
}

impl Recorder {
    pub(crate) fn take(&mut self) -> Recorder {
        assert!(self.slots.is_empty(), "slots are open between batches");
        std::mem::take(self)
    }
}

impl Io for Recorder {
    fn reserve(&mut self, to: Destination, room: usize) -> Slot {
        assert!((1..=weave_overlay::udp::MAX_DATAGRAM).contains(&room), "room {room}");
        assert!(self.slots.values().all(|(open, _)| *open != to), "two open slots for one destination");
        self.next += 1;
        // Filled, so that bytes that are not written become visible.
        self.slots.insert(self.next, (to, vec![0xa5; room]));
        Slot(self.next)
    }

    fn buffer(&mut self, slot: Slot) -> &mut [u8] {
        &mut self.slots.get_mut(&slot.0).expect("slot is open").1
    }

    fn commit(&mut self, slot: Slot, len: usize) {
        let (to, mut bytes) = self.slots.remove(&slot.0).expect("slot is open");
        assert!(len <= bytes.len());
        bytes.truncate(len);
        if len > 0 {
            self.sent.push((to, bytes));
        }
    }

    fn inject(&mut self, frame: &[u8]) {
        self.injected.push(frame.to_vec());
    }

    fn event(&mut self, event: ForwarderEvent) {
        self.events.push(event);
    }
}

/// Routes of peer `own` where peers 1 to `peers`, at most four, are connected in a line.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) own: u8,
    pub(crate) peers: u8,
}

impl Routes for Line {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        let dst = dst.to_bytes()[5];
        match dst.cmp(&self.own) {
            std::cmp::Ordering::Less if dst > 0 => Some(name(self.own - 1)),
            std::cmp::Ordering::Greater if dst <= self.peers => Some(name(self.own + 1)),
            _ => None,
        }
    }

    fn broadcast(&self, src: PeerName) -> &[PeerName] {
        static NAMES: [PeerName; 4] = [
            PeerName::from_bytes([0x7a, 0, 0, 0, 0, 1]),
            PeerName::from_bytes([0x7a, 0, 0, 0, 0, 2]),
            PeerName::from_bytes([0x7a, 0, 0, 0, 0, 3]),
            PeerName::from_bytes([0x7a, 0, 0, 0, 0, 4]),
        ];
        let own = usize::from(self.own) - 1;
        let last = usize::from(self.peers) - 1;
        let src = usize::from(src.to_bytes()[5]) - 1;
        let up = own < last && src <= own;
        let down = own > 0 && src >= own;
        match (down, up) {
            // Only the source itself has two next hops; its two neighbours are not adjacent in `NAMES`.
            (true, true) => BOTH.get(own).map_or(&[], |both| both.as_slice()),
            (true, false) => &NAMES[own - 1..own],
            (false, true) => &NAMES[own + 1..own + 2],
            (false, false) => &[],
        }
    }

    fn knows(&self, peer: PeerName) -> bool {
        (1..=self.peers).any(|n| name(n) == peer)
    }
}

/// Both neighbours of an inner peer of a line, by its index.
static BOTH: [[PeerName; 2]; 3] = [
    [PeerName::UNKNOWN, PeerName::UNKNOWN],
    [PeerName::from_bytes([0x7a, 0, 0, 0, 0, 1]), PeerName::from_bytes([0x7a, 0, 0, 0, 0, 3])],
    [PeerName::from_bytes([0x7a, 0, 0, 0, 0, 2]), PeerName::from_bytes([0x7a, 0, 0, 0, 0, 4])],
];
