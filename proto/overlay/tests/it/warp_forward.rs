//! The data path with warp beside sleeve.

use std::sync::Arc;

use crate::support::{Line, Recorder, UID, addr, name, session};
use crate::warp::{config, sessions};
use weave_overlay::ForwarderEvent;
use weave_overlay::forward::{Forwarder, Neighbour, Overlay, Tables};
use weave_overlay::udp::{ControlFrame, Sealer, Session, UdpPath, sender};
use weave_overlay::warp::receiver;
use weave_switch::{ForwardingTable, MacConfig, MacTable, Offload};
use weave_types::Instant;

struct Node {
    own: u8,
    neighbour: Neighbour,
    forwarder: Forwarder,
    io: Recorder,
}

impl Node {
    fn new(own: u8, warp: Arc<Session>) -> Node {
        let sleeve = session(own, 3 - own, None);
        let path = |session: &Session| UdpPath {
            local: addr(own).ip(),
            remote: Some(addr(3 - own)),
            mtu: 1500 - session.overhead(),
            max_payload: 1472,
            stack_fragments: true,
            batched: true,
        };
        let neighbour = Neighbour {
            confirmed: true,
            path: path(&sleeve),
            session: sleeve,
            warp: Some((warp.clone(), path(&warp))),
            overlay: Overlay::Warp,
        };
        let forwarder = Forwarder::new(tables(own, &neighbour), 0);
        Node { own, neighbour, forwarder, io: Recorder::default() }
    }

    fn publish(&mut self, change: impl FnOnce(&mut Neighbour)) {
        change(&mut self.neighbour);
        self.forwarder.set_tables(tables(self.own, &self.neighbour), &mut self.io);
    }

    /// Sends a broadcast frame and returns the datagram.
    fn send(&mut self) -> Vec<u8> {
        self.forwarder.handle_local(&broadcast(self.own), Offload::NONE, Instant::ORIGIN, &mut self.io);
        self.forwarder.flush(&mut self.io);
        self.io.events.clear();
        let [(_, datagram)] = self.io.take().sent.try_into().expect("one datagram");
        datagram
    }

    /// Handles a datagram and returns the number of frames for the local bridge.
    fn receive(&mut self, datagram: &[u8]) -> usize {
        self.forwarder.handle_datagram(
            addr(3 - self.own),
            &mut datagram.to_vec(),
            Instant::ORIGIN,
            &mut self.io,
        );
        self.forwarder.flush(&mut self.io);
        std::mem::take(&mut self.io.injected).len()
    }
}

fn tables(own: u8, neighbour: &Neighbour) -> Arc<Tables> {
    let macs = MacTable::new(MacConfig::new(name(own))).snapshot();
    let forwarding = ForwardingTable { own: name(own), macs, routes: Arc::new(Line { own, peers: 2 }) };
    Arc::new(Tables::new(0, forwarding, vec![Arc::new(neighbour.clone())]))
}

fn broadcast(from: u8) -> Vec<u8> {
    [&[255; 6][..], &[2, 0, 0, 0, 0, from], &[8, 6], &[0; 46]].concat()
}

fn heartbeat(sealer: &Sealer) -> Vec<u8> {
    let frame = [&[0; 14][..], &UID.0.to_be_bytes()].concat();
    let mut draft = sealer.begin();
    let mut buf = vec![0; sealer.sealed_len_with(&draft, frame.len())];
    assert!(sealer.push(&mut draft, &mut buf, name(1), name(2), &frame));
    sealer.finish(draft, &mut buf, true).unwrap();
    buf
}

fn pair() -> [Node; 2] {
    let [first, second] = sessions([config(1), config(2)]);
    [Node::new(1, first), Node::new(2, second)]
}

#[test]
fn frames_go_by_the_overlay_in_use_and_both_are_accepted() {
    let [mut a, mut b] = pair();
    let by_warp = a.send();
    assert_eq!((receiver(&by_warp), by_warp[0] & 1), (Some(2000), 1));
    a.publish(|neighbour| neighbour.overlay = Overlay::Sleeve);
    let by_sleeve = a.send();
    assert_eq!((receiver(&by_sleeve), sender(&by_sleeve)), (None, Some(name(1))));
    a.publish(|neighbour| neighbour.overlay = Overlay::Warp);
    let again = a.send();
    // In any order, whatever the receiver sends with.
    for overlay in [Overlay::Sleeve, Overlay::Warp] {
        b.publish(|neighbour| neighbour.overlay = overlay);
        if overlay == Overlay::Sleeve {
            assert_eq!([b.receive(&again), b.receive(&by_sleeve)], [1, 1]);
        } else {
            assert_eq!(b.receive(&by_warp), 1);
        }
    }
    // New tables have not opened the window again.
    assert_eq!([b.receive(&by_warp), b.receive(&again)], [0, 0]);
    assert_eq!(b.forwarder.stats().drop_replayed, 2);
    let sent = [0, 1].map(|warp| {
        let neighbour = &a.neighbour;
        let session = if warp == 1 { &neighbour.warp.as_ref().unwrap().0 } else { &neighbour.session };
        session.traffic().counts().sent
    });
    assert_eq!(sent, [1, 2]);
}

#[test]
fn without_keys_frames_go_by_sleeve() {
    let [mut a, mut b] = pair();
    a.publish(|neighbour| neighbour.warp = None);
    let datagram = a.send();
    assert_eq!((receiver(&datagram), b.receive(&datagram)), (None, 1));
    let warp = b.send();
    assert_eq!((a.receive(&warp), a.forwarder.stats().drop_unknown_sender), (0, 1));
}

#[test]
fn a_new_connection_has_nothing_of_the_old_one() {
    let [mut a, mut b] = pair();
    let old = a.send();
    let fresh = |own: u8, index| crate::warp::config_with_key(own, own + 50, index);
    let [first, second] = sessions([fresh(1, 5), fresh(2, 2000)]);
    b.publish(|neighbour| neighbour.warp.as_mut().unwrap().0 = second);
    assert_eq!((b.receive(&old), b.forwarder.stats().drop_forged), (0, 1));
    a.publish(|neighbour| neighbour.warp.as_mut().unwrap().0 = first);
    // It has the number of the old one.
    let new = a.send();
    assert_eq!((b.receive(&new), b.receive(&new)), (1, 0));
}

#[test]
fn control_frames_say_by_which_overlay_they_came() {
    let [a, mut b] = pair();
    let sealers =
        [&a.neighbour.session, &a.neighbour.warp.as_ref().unwrap().0].map(|s| Sealer::new(s.clone()));
    // Before the connection is confirmed only heartbeats are accepted.
    b.publish(|neighbour| neighbour.confirmed = false);
    for (sealer, overlay) in sealers.iter().zip([Overlay::Sleeve, Overlay::Warp]) {
        assert_eq!(b.receive(&heartbeat(sealer)), 0);
        let warp = &b.neighbour.warp.as_ref().unwrap().0;
        let conn = if overlay == Overlay::Warp { warp.conn() } else { b.neighbour.session.conn() };
        let frame = ControlFrame::Heartbeat(UID);
        let events = std::mem::take(&mut b.io.events);
        assert_eq!(events, [ForwarderEvent::Control { conn, overlay, frame, from: addr(1) }]);
    }
    let mut a = a;
    let data = a.send();
    assert_eq!((b.receive(&data), b.forwarder.stats().drop_unconfirmed), (0, 1));
}

/// An attacker on the path replays, reorders, cuts and changes datagrams.
#[test]
fn what_an_attacker_does_to_datagrams_is_dropped_and_counted() {
    let [mut a, mut b] = pair();
    let sent: Vec<Vec<u8>> = (0..50).map(|_| a.send()).collect();
    // Each arrives once, in whatever order.
    let arrived: usize = (0..50).map(|i| b.receive(&sent[i * 7 % 50])).sum();
    assert_eq!((arrived, b.forwarder.stats().drop_replayed), (50, 0));
    let replayed: usize = sent.iter().map(|datagram| b.receive(datagram)).sum();
    assert_eq!((replayed, b.forwarder.stats().drop_replayed), (0, 50));
    let fresh = a.send();
    for len in 0..fresh.len() {
        assert_eq!(b.receive(&fresh[..len]), 0, "{len} bytes");
    }
    for at in 0..fresh.len() {
        let mut changed = fresh.clone();
        changed[at] ^= 0x20;
        assert_eq!(b.receive(&changed), 0, "byte {at}");
    }
    let stats = b.forwarder.stats();
    let counted =
        stats.drop_forged + stats.drop_malformed + stats.drop_unknown_sender + stats.drop_short_datagram;
    assert_eq!(counted, 2 * fresh.len() as u64, "each is counted once");
    assert_eq!(stats.drop_replayed, 50);
    assert_eq!(b.receive(&fresh), 1, "none of them used the number up");
}
