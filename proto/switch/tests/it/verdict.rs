use std::sync::Arc;

use weave_switch::{
    DropReason, DuplicateFilter, ForwardingTable, Learned, LocalVerdict, MacConfig, MacTable, PeerVerdict,
    Routes, SwitchEvent, local_frame, peer_frame,
};
use weave_types::{MacAddr, PeerName};

use crate::mac::{X, Y, at};

pub(crate) const OWN: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 1]);
pub(crate) const B: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 2]);
pub(crate) const C: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 3]);
/// A peer of the topology that has no route.
pub(crate) const UNREACHABLE: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 4]);
pub(crate) const UNKNOWN: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 5]);

/// Routes that give a different list of next hops for the broadcasts of each peer.
pub(crate) struct TestRoutes;

impl Routes for TestRoutes {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        (dst == B || dst == C).then_some(B)
    }

    fn broadcast(&self, src: PeerName) -> &[PeerName] {
        match src {
            OWN => &[B, C],
            B => &[C],
            C => &[B],
            _ => &[],
        }
    }

    fn knows(&self, peer: PeerName) -> bool {
        [OWN, B, C, UNREACHABLE].contains(&peer)
    }
}

pub(crate) fn table(macs: &MacTable) -> ForwardingTable {
    ForwardingTable { own: OWN, macs: macs.snapshot(), routes: Arc::new(TestRoutes) }
}

pub(crate) fn frame(src: MacAddr, dst: MacAddr) -> Vec<u8> {
    [&dst.0[..], &src.0, &[8, 6], &[0; 30]].concat()
}

fn macs(known: &[(MacAddr, PeerName)]) -> MacTable {
    let mut macs = MacTable::new(MacConfig::new(OWN));
    for (mac, peer) in known {
        macs.learn_remote(*mac, *peer, at(0));
    }
    macs
}

const MULTICAST: MacAddr = MacAddr([1, 0, 0x5e, 0, 0, 1]);
const LLDP: MacAddr = MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]);
const OTHER: MacAddr = MacAddr([6, 0, 0, 0, 0, 9]);

#[test]
fn verdicts_for_local_frames() {
    use DropReason::{DestinationLocal, InvalidSource, LocalConflict, NoRoute, SpanningTree};
    use LocalVerdict::{Drop, Flood, Unicast};
    let all = Flood(&[B, C]);
    let learn = Some(SwitchEvent::LocalMac(X));
    let conflict = Some(SwitchEvent::LocalConflict { mac: X, peer: B });
    let here = [(X, OWN)];
    // Known before, source, destination, time in ms, verdict, event.
    type Case<'a> = (&'a [(MacAddr, PeerName)], MacAddr, MacAddr, u64, LocalVerdict<'a>, Option<SwitchEvent>);
    let cases: &[Case<'_>] = &[
        (&[], X, Y, 0, all, learn),
        (&here, X, Y, 0, all, None),
        (&here, X, MacAddr::BROADCAST, 0, all, None),
        (&here, X, MULTICAST, 0, all, None),
        (&here, X, LLDP, 0, all, None),
        (&here, X, MacAddr::ZERO, 0, all, None),
        (&here, X, MacAddr::SPANNING_TREE, 0, Drop(SpanningTree), None),
        (&[], X, MacAddr::SPANNING_TREE, 0, Drop(SpanningTree), learn),
        (&[(X, OWN), (Y, OWN)], X, Y, 0, Drop(DestinationLocal), None),
        (&[], X, X, 0, Drop(DestinationLocal), learn),
        (&[(X, B)], X, X, 2000, Drop(DestinationLocal), learn),
        (&[(X, OWN), (Y, B)], X, Y, 0, Unicast { dst: B, via: B }, None),
        (&[(X, OWN), (Y, C)], X, Y, 0, Unicast { dst: C, via: B }, None),
        (&[(X, OWN), (Y, UNREACHABLE)], X, Y, 0, Drop(NoRoute), None),
        (&[(Y, UNREACHABLE)], X, Y, 0, Drop(NoRoute), learn),
        (&[(X, B)], X, Y, 0, Drop(LocalConflict), conflict),
        (&[(X, B)], X, Y, 1999, Drop(LocalConflict), conflict),
        (&[(X, B)], X, MacAddr::SPANNING_TREE, 0, Drop(LocalConflict), conflict),
        (&[(X, B)], X, Y, 2000, all, learn),
        (&[(X, B), (Y, C)], X, Y, 2000, Unicast { dst: C, via: B }, learn),
        (&[], MULTICAST, Y, 0, Drop(InvalidSource), None),
        (&[], MacAddr::ZERO, Y, 0, Drop(InvalidSource), None),
    ];
    for (i, (known, src, dst, ms, verdict, event)) in cases.iter().enumerate() {
        let table = table(&macs(known));
        assert_eq!(local_frame(&table, &frame(*src, *dst), at(*ms)), (*verdict, *event), "case {i}");
    }
}

/// A MAC moves to the local bridge two seconds after the last frame of the remote peer.
#[test]
fn takeover_waits_for_silence() {
    let mut macs = macs(&[(X, B)]);
    let fwd = table(&macs);
    assert_eq!(peer_frame(&fwd, B, OWN, &frame(X, Y), at(9_500)).1, None);
    assert_eq!(local_frame(&fwd, &frame(X, Y), at(11_499)).0, LocalVerdict::Drop(DropReason::LocalConflict));
    assert_eq!(
        local_frame(&fwd, &frame(X, Y), at(11_500)),
        (LocalVerdict::Flood(&[B, C]), Some(SwitchEvent::LocalMac(X)))
    );
    macs.learn_local(X, at(11_500));
    let fwd = table(&macs);
    assert_eq!(local_frame(&fwd, &frame(X, Y), at(11_501)), (LocalVerdict::Flood(&[B, C]), None));
    // A frame of the other peer is delivered. Whether the MAC moves back is for the table to decide.
    let (verdict, event) = peer_frame(&fwd, B, OWN, &frame(X, Y), at(11_502));
    assert_eq!(
        (verdict, event),
        (PeerVerdict::Deliver { flood: &[C] }, Some(SwitchEvent::RemoteMac { mac: X, peer: B }))
    );
}

#[test]
fn verdicts_for_peer_frames() {
    use DropReason::{InvalidSource, NoRoute, OwnPacket, UnknownPeer};
    use PeerVerdict::{Deliver, Drop, Relay};
    let seen = Some(SwitchEvent::RemoteMac { mac: X, peer: B });
    let own = |peer| Some(SwitchEvent::OwnPacket { peer, mac: X, dst: Y });
    // Known before, source peer, destination peer, source, destination, verdict, event.
    type Case<'a> = (
        &'a [(MacAddr, PeerName)],
        PeerName,
        PeerName,
        MacAddr,
        MacAddr,
        PeerVerdict<'a>,
        Option<SwitchEvent>,
    );
    let cases: &[Case<'_>] = &[
        (&[], B, OWN, X, Y, Deliver { flood: &[C] }, seen),
        (&[(X, B)], B, OWN, X, Y, Deliver { flood: &[C] }, None),
        (&[(X, B), (Y, OWN)], B, OWN, X, Y, Deliver { flood: &[] }, None),
        (&[(Y, OWN)], B, OWN, X, Y, Deliver { flood: &[] }, seen),
        (&[(X, B), (Y, C)], B, OWN, X, Y, Deliver { flood: &[C] }, None),
        (&[(X, C), (Y, OWN)], B, OWN, X, Y, Deliver { flood: &[] }, seen),
        (&[(X, OWN), (Y, OWN)], B, OWN, X, Y, Deliver { flood: &[] }, seen),
        (&[(X, OWN)], B, OWN, X, X, Deliver { flood: &[C] }, seen),
        (&[(X, B)], B, OWN, X, MacAddr::BROADCAST, Deliver { flood: &[C] }, None),
        (&[(X, B)], B, OWN, X, MacAddr::SPANNING_TREE, Deliver { flood: &[C] }, None),
        (&[(X, C)], C, OWN, X, MULTICAST, Deliver { flood: &[B] }, None),
        (
            &[],
            UNREACHABLE,
            OWN,
            OTHER,
            MULTICAST,
            Deliver { flood: &[] },
            Some(SwitchEvent::RemoteMac { mac: OTHER, peer: UNREACHABLE }),
        ),
        // A relay ignores MACs.
        (&[], B, C, X, Y, Relay { via: B }, None),
        (&[(X, OWN)], C, B, X, Y, Relay { via: B }, None),
        (&[], B, C, MULTICAST, Y, Relay { via: B }, None),
        (&[], B, C, MacAddr::ZERO, MacAddr::ZERO, Relay { via: B }, None),
        (&[], B, UNREACHABLE, X, Y, Drop(NoRoute), None),
        (&[], UNKNOWN, OWN, X, Y, Drop(UnknownPeer), None),
        (&[], UNKNOWN, B, X, Y, Drop(UnknownPeer), None),
        (&[], B, UNKNOWN, X, Y, Drop(UnknownPeer), None),
        (&[], OWN, OWN, X, Y, Drop(OwnPacket), own(OWN)),
        (&[], OWN, B, X, Y, Drop(OwnPacket), own(B)),
        (&[], OWN, UNKNOWN, X, Y, Drop(OwnPacket), own(UNKNOWN)),
        (&[], B, OWN, MULTICAST, Y, Drop(InvalidSource), None),
        (&[], B, OWN, MacAddr::ZERO, Y, Drop(InvalidSource), None),
    ];
    for (i, (known, src, dst, mac, to, verdict, event)) in cases.iter().enumerate() {
        let table = table(&macs(known));
        assert_eq!(peer_frame(&table, *src, *dst, &frame(*mac, *to), at(0)), (*verdict, *event), "case {i}");
    }
}

#[test]
fn frames_without_ethernet_header_are_dropped() {
    let table = table(&macs(&[]));
    for len in 0..14 {
        let frame = &frame(X, Y)[..len];
        assert_eq!(local_frame(&table, frame, at(0)), (LocalVerdict::Drop(DropReason::TooShort), None));
        assert_eq!(peer_frame(&table, B, OWN, frame, at(0)), (PeerVerdict::Drop(DropReason::TooShort), None));
    }
    assert_eq!(local_frame(&table, &frame(X, Y)[..14], at(0)).0, LocalVerdict::Flood(&[B, C]));
}

#[test]
fn drop_reasons_are_numbered() {
    for (i, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, i);
        assert!(reason.to_string().chars().next().is_some_and(char::is_lowercase));
    }
}

/// Two hosts use one MAC at the same time, as two VRRP masters do: both are heard, and no table follows every frame.
#[test]
fn of_two_users_of_a_mac_each_hears_the_other() {
    let event = Some(SwitchEvent::LocalConflict { mac: X, peer: B });
    let (here, there) = (macs(&[(X, B)]), [(X, OWN)]);
    let fwd = table(&here);
    let mut passed = Vec::new();
    for ms in (400..10_000).step_by(1000) {
        assert_eq!(peer_frame(&fwd, B, OWN, &frame(X, Y), at(ms - 400)).1, None);
        match local_frame(&fwd, &frame(X, Y), at(ms)) {
            (LocalVerdict::Flood(&[B, C]), found) => {
                assert_eq!(found, event);
                passed.push(ms);
            }
            (verdict, found) => {
                assert_eq!((verdict, found), (LocalVerdict::Drop(DropReason::LocalConflict), event));
            }
        }
    }
    assert_eq!(passed, [2_400, 4_400, 6_400, 8_400]);
    assert_eq!((here.refused(X), here.lookup(X)), (6, Some(B)));
    // A loop that returns each of a thousand frames a second lets hardly any pass.
    let fwd = table(&macs(&[(X, B)]));
    let passes = (1..10_000).filter(|ms| {
        peer_frame(&fwd, B, OWN, &frame(X, Y), at(*ms));
        matches!(local_frame(&fwd, &frame(X, Y), at(*ms)).0, LocalVerdict::Flood(_))
    });
    assert_eq!(passes.count(), 6);
    // The place that has the address delivers the frames of the other one and keeps it until it is silent.
    let mut macs = macs(&there);
    for ms in (0..10_000).step_by(1000) {
        let fwd = table(&macs);
        assert_eq!(local_frame(&fwd, &frame(X, Y), at(ms)), (LocalVerdict::Flood(&[B, C]), None));
        let verdict = peer_frame(&fwd, B, OWN, &frame(X, Y), at(ms + 1));
        let event = Some(SwitchEvent::RemoteMac { mac: X, peer: B });
        assert_eq!(verdict, (PeerVerdict::Deliver { flood: &[C] }, event));
        assert_eq!(macs.learn_remote(X, B, at(ms + 1)), Learned::Refused { by: OWN });
    }
    assert_eq!(macs.learn_remote(X, B, at(11_000)), Learned::Moved { from: OWN });
}

#[test]
fn repeated_events_are_suppressed() {
    let mut filter = DuplicateFilter::new();
    let events = [
        SwitchEvent::LocalMac(X),
        SwitchEvent::RemoteMac { mac: X, peer: B },
        SwitchEvent::LocalConflict { mac: X, peer: B },
        SwitchEvent::OwnPacket { peer: B, mac: X, dst: Y },
        SwitchEvent::LocalMac(Y),
    ];
    for event in &events {
        assert!(filter.admit(event, at(0)), "{event:?}");
    }
    for event in &events {
        assert!(!filter.admit(event, at(99)), "{event:?}");
        assert!(filter.admit(event, at(100)), "{event:?}");
        assert!(!filter.admit(event, at(199)), "{event:?}");
    }
    assert!(
        filter.admit(&SwitchEvent::RemoteMac { mac: X, peer: C }, at(100)),
        "a move is a different event"
    );
    assert!(filter.admit(&SwitchEvent::RemoteMac { mac: X, peer: B }, at(100)), "and the move back");
}
