//! What is concluded from planted losses, over three hops.

use weave_trace::{
    Delivery, Direction, Hop, Link, NoLink, Outcome, Overlay, Place, Port, Probe, Reason, Sighting, Verdict,
    conclude,
};

use crate::network::{Network, link, peer, port};

fn verdict(network: &mut Network) -> Verdict {
    conclude(&network.run(), Probe::Small, &Outcome::Unanswered, false)
}

fn lost(place: Place, reason: Reason) -> Verdict {
    Verdict::Lost { direction: Direction::There, place, reason }
}

/// Four peers in a line that see a small packet on its way up to here.
fn seen_upto(n: u64, sighting: Sighting) -> Network {
    let mut network = Network::new(4);
    network.seen(Probe::Small, Direction::There, (n, sighting));
    network
}

fn underlay(overlay: Overlay, only_large: bool, problem: &str) -> Reason {
    Reason::Underlay { overlay, only_large, problem: problem.to_owned() }
}

#[test]
fn losses_on_the_host_of_the_sender() {
    let first = Place::At(peer(1));
    assert_eq!(verdict(&mut Network::new(4)), lost(first, Reason::NotEmitted));
    let mut network = seen_upto(1, Sighting::FromContainer);
    assert_eq!(verdict(&mut network), lost(first, Reason::NotBridged));
    network.reports.get_mut(&peer(1)).unwrap().filter = "nft".to_owned();
    assert_eq!(verdict(&mut network), lost(first, Reason::Filtered("nft".to_owned())));
    let mut network = seen_upto(1, Sighting::FromBridge);
    assert_eq!(verdict(&mut network), lost(first, Reason::NotForwarded));
    let elsewhere = Hop { source_at: Some(peer(3)), ..network.hop(peer(1), Direction::There) };
    network.hops.insert((peer(1), Direction::There), elsewhere);
    let in_use = lost(first, Reason::AddressInUse(peer(3)));
    assert_eq!(verdict(&mut network), in_use);
    network.seen(Probe::Small, Direction::There, (4, Sighting::ToContainer));
    assert_eq!(conclude(&network.run(), Probe::Small, &Outcome::Answered, false), in_use);
    let failed = conclude(&network.run(), Probe::Small, &Outcome::NotSent("down".to_owned()), false);
    assert_eq!(failed, lost(first, Reason::NotSent("down".to_owned())));
}

#[test]
fn losses_at_a_relay_and_between_hosts() {
    let relay = Place::At(peer(3));
    let mut network = seen_upto(3, Sighting::FromOverlay);
    assert_eq!(verdict(&mut network), lost(relay, Reason::NotForwarded));
    let dropped = (Probe::Small, Direction::There, "hairpin".to_owned());
    network.reports.get_mut(&peer(3)).unwrap().dropped.push(dropped);
    assert_eq!(verdict(&mut network), lost(relay, Reason::Dropped("hairpin".to_owned())));

    let mut network = seen_upto(2, Sighting::FromOverlay);
    let why = NoLink::NoRoute("no connection".to_owned());
    network
        .hops
        .insert((peer(2), Direction::There), Hop { source_at: None, destination_at: None, next: Err(why) });
    let no_route = Reason::NoRoute("no connection".to_owned());
    assert_eq!(verdict(&mut network), lost(Place::At(peer(2)), no_route));

    let between = Place::Between(peer(2), peer(3));
    let mut network = seen_upto(2, Sighting::ToOverlay);
    assert_eq!(verdict(&mut network), lost(between, underlay(Overlay::Fastdp, false, "")));
    let weak = Link { overlay: Overlay::Sleeve, problem: "no heartbeats".to_owned(), ..link(3) };
    let mut hop = network.hop(peer(2), Direction::There);
    hop.next = Ok(weak.clone());
    network.hops.insert((peer(2), Direction::There), hop.clone());
    assert_eq!(verdict(&mut network), lost(between, underlay(Overlay::Sleeve, false, "no heartbeats")));
    // A copy for another neighbour may have left nevertheless.
    hop.next = Ok(Link { carries_data: false, ..weak });
    network.hops.insert((peer(2), Direction::There), hop);
    assert_eq!(verdict(&mut network), lost(between, Reason::NoPath("no heartbeats".to_owned())));
}

#[test]
fn losses_in_front_of_the_container() {
    let last = Place::At(peer(4));
    let with_port = |upto: Sighting, port: Port| {
        let mut network = seen_upto(4, upto);
        network.reports.get_mut(&peer(4)).unwrap().delivery[0] = Delivery::Port(port);
        verdict(&mut network)
    };
    let down = || Reason::InterfaceDown("vethwepl1".to_owned());
    let off = Port { running: false, ..port() };
    assert_eq!(with_port(Sighting::ToBridge, off.clone()), lost(last, down()));
    assert_eq!(with_port(Sighting::FromOverlay, off), lost(last, down()));
    assert_eq!(with_port(Sighting::ToBridge, port()), lost(last, Reason::NotBridged));
    assert_eq!(with_port(Sighting::FromOverlay, port()), lost(last, Reason::NotForwarded));
    let bypassing = Port { bypasses: true, ..port() };
    assert_eq!(with_port(Sighting::FromOverlay, bypassing), lost(last, Reason::NoAnswer));
    assert_eq!(with_port(Sighting::ToContainer, port()), lost(last, Reason::NoAnswer));
    let mut network = seen_upto(4, Sighting::ToBridge);
    network.reports.get_mut(&peer(4)).unwrap().delivery[0] = Delivery::Nowhere;
    assert_eq!(verdict(&mut network), lost(last, Reason::NoContainer));
}

#[test]
fn answers_that_are_lost_on_the_way_back() {
    let mut network = seen_upto(4, Sighting::ToContainer);
    network.seen(Probe::Small, Direction::Back, (3, Sighting::ToOverlay));
    let (place, reason) = (Place::Between(peer(3), peer(2)), underlay(Overlay::Fastdp, false, ""));
    assert_eq!(verdict(&mut network), Verdict::Lost { direction: Direction::Back, place, reason });
    let mut network = seen_upto(4, Sighting::ToContainer);
    network.seen(Probe::Small, Direction::Back, (1, Sighting::ToBridge));
    let (place, reason) = (Place::At(peer(1)), Reason::NotBridged);
    assert_eq!(verdict(&mut network), Verdict::Lost { direction: Direction::Back, place, reason });
    let elsewhere = Hop { destination_at: Some(peer(3)), ..network.hop(peer(4), Direction::Back) };
    network.hops.insert((peer(4), Direction::Back), elsewhere);
    let (place, reason) = (Place::At(peer(4)), Reason::AddressInUse(peer(3)));
    assert_eq!(verdict(&mut network), Verdict::Lost { direction: Direction::Back, place, reason });
}

#[test]
fn peers_that_cannot_be_asked_widen_the_place() {
    for upto in [(2, Sighting::ToOverlay), (3, Sighting::ToOverlay)] {
        let mut network = seen_upto(upto.0, upto.1);
        network.old.insert(peer(3));
        let between = Place::Between(peer(2), peer(4));
        assert_eq!(verdict(&mut network), lost(between, underlay(Overlay::Fastdp, false, "")));
    }
    let mut network = seen_upto(4, Sighting::ToContainer);
    network.old.insert(peer(4));
    let between = Place::Between(peer(3), peer(4));
    assert_eq!(verdict(&mut network), lost(between, underlay(Overlay::Fastdp, false, "")));
    // That the old one answers is seen by its neighbour.
    network.seen(Probe::Small, Direction::Back, (3, Sighting::ToOverlay));
    let (place, reason) = (Place::Between(peer(3), peer(2)), underlay(Overlay::Fastdp, false, ""));
    assert_eq!(verdict(&mut network), Verdict::Lost { direction: Direction::Back, place, reason });
}

#[test]
fn large_packets() {
    let mut network = Network::new(4);
    network.seen(Probe::Full, Direction::There, (2, Sighting::ToOverlay));
    let large = conclude(&network.run(), Probe::Full, &Outcome::Unanswered, true);
    assert_eq!(large, lost(Place::Between(peer(2), peer(3)), underlay(Overlay::Fastdp, true, "")));
    let mut hop = network.hop(peer(3), Direction::There);
    hop.next = Ok(Link { mtu: 1200, ..link(4) });
    network.hops.insert((peer(3), Direction::There), hop);
    let refused = conclude(&network.run(), Probe::Full, &Outcome::TooBig(1200), true);
    assert_eq!(refused, lost(Place::Between(peer(3), peer(4)), Reason::TooBig(1200)));
    assert_eq!(conclude(&network.run(), Probe::Full, &Outcome::Answered, true), Verdict::Answered);
}

#[test]
fn containers_on_one_host() {
    let mut network = Network::new(1);
    let report = network.reports.get_mut(&peer(1)).unwrap();
    report.delivery = [Delivery::Port(port()), Delivery::Port(port())];
    report.sightings.note(Probe::Small, Direction::There, Sighting::FromContainer);
    report.dropped.push((Probe::Small, Direction::There, "destination MAC is local".to_owned()));
    assert_eq!(verdict(&mut network), lost(Place::At(peer(1)), Reason::NotBridged));
    let report = network.reports.get_mut(&peer(1)).unwrap();
    report.sightings.note(Probe::Small, Direction::There, Sighting::ToContainer);
    assert_eq!(verdict(&mut network), lost(Place::At(peer(1)), Reason::NoAnswer));
}
