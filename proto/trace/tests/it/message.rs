use std::net::Ipv4Addr;

use proptest::prelude::*;
use weave_trace::{
    Delivery, Direction, Endpoint, Flow, Hop, Link, MAX_MESSAGE, MAX_TEXT, Malformed, Message, NoLink,
    Overlay, Port, Probe, Report, Sighting, Sightings,
};
use weave_types::{MacAddr, PeerName};

use crate::{fuzz_entry, replay};

fn name() -> impl Strategy<Value = PeerName> {
    (1..1u64 << 48).prop_map(|n| PeerName::from_number(n).unwrap())
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,60}"
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (any::<[u8; 6]>(), any::<[u8; 4]>())
        .prop_map(|(mac, ip)| Endpoint { mac: MacAddr(mac), ip: Ipv4Addr::from(ip) })
}

fn link() -> impl Strategy<Value = Link> {
    let overlay = prop::sample::select(vec![Overlay::None, Overlay::Fastdp, Overlay::Sleeve, Overlay::Warp]);
    (name(), any::<[bool; 3]>(), overlay, any::<u16>(), text()).prop_map(
        |(peer, [carries_data, encrypted, traces], overlay, mtu, problem)| Link {
            peer,
            carries_data,
            overlay,
            mtu,
            encrypted,
            traces,
            problem,
        },
    )
}

fn hop() -> impl Strategy<Value = Hop> {
    let next = prop_oneof![
        Just(Err(NoLink::End)),
        text().prop_map(|why| Err(NoLink::NoRoute(why))),
        link().prop_map(Ok)
    ];
    (prop::option::of(name()), prop::option::of(name()), next)
        .prop_map(|(source_at, destination_at, next)| Hop { source_at, destination_at, next })
}

fn delivery() -> impl Strategy<Value = Delivery> {
    let port = (text(), any::<[bool; 3]>())
        .prop_map(|(name, [up, running, bypasses])| Delivery::Port(Port { name, up, running, bypasses }));
    prop_oneof![Just(Delivery::Nowhere), Just(Delivery::Host), port]
}

const SIGHTINGS: [Sighting; 6] = [
    Sighting::FromContainer,
    Sighting::FromBridge,
    Sighting::ToOverlay,
    Sighting::FromOverlay,
    Sighting::ToBridge,
    Sighting::ToContainer,
];

fn report() -> impl Strategy<Value = Report> {
    let slot = || (prop::sample::select(Probe::ALL.to_vec()), prop::sample::select(Direction::ALL.to_vec()));
    let seen = prop::collection::vec((slot(), prop::sample::select(SIGHTINGS.to_vec())), 0..12);
    let dropped = prop::collection::vec((slot(), text()), 0..=6);
    (seen, dropped, delivery(), delivery(), text()).prop_map(|(seen, dropped, a, b, filter)| {
        let mut sightings = Sightings::default();
        seen.into_iter().for_each(|((probe, direction), what)| sightings.note(probe, direction, what));
        let dropped = dropped.into_iter().map(|((probe, direction), why)| (probe, direction, why)).collect();
        Report { sightings, dropped, delivery: [a, b], filter }
    })
}

fn message() -> impl Strategy<Value = Message> {
    (any::<u64>(), 0..5u8, (endpoint(), endpoint(), any::<u16>()), name(), hop(), report(), text()).prop_map(
        |(id, kind, (source, destination, icmp), toward, hop, report, reason)| match kind {
            0 => Message::Watch { id, flow: Flow { source, destination, id: icmp }, toward },
            1 => Message::Collect { id },
            2 => Message::Hop { id, toward, hop },
            3 => Message::Report { id, report },
            _ => Message::Refused { id, reason },
        },
    )
}

proptest! {
    #[test]
    fn messages_are_decoded_as_they_were_encoded(message in message(), cut in any::<prop::sample::Index>()) {
        let bytes = message.encode();
        prop_assert!(bytes.len() <= MAX_MESSAGE);
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
        let cut = cut.index(bytes.len());
        prop_assert_eq!(Message::decode(&bytes[..cut]), Err(Malformed::Short));
        prop_assert_eq!(Message::decode(&[&bytes[..], &[0]].concat()), Err(Malformed::Long));
    }
}

#[test]
fn sizes_are_limited() {
    let long = "ä".repeat(1000);
    let port = Delivery::Port(Port { name: long.clone(), up: true, running: true, bypasses: true });
    let slots = Probe::ALL.iter().flat_map(|p| Direction::ALL.map(|d| (*p, d, long.clone())));
    let report = Report {
        sightings: Sightings::default(),
        dropped: slots.clone().chain(slots).collect(),
        delivery: [port.clone(), port],
        filter: long.clone(),
    };
    let bytes = Message::Report { id: 1, report }.encode();
    assert!(bytes.len() <= MAX_MESSAGE, "{}", bytes.len());
    let Ok(Message::Report { report, .. }) = Message::decode(&bytes) else { panic!("cannot be decoded") };
    assert_eq!(report.filter, "ä".repeat(MAX_TEXT / 2));
    assert_eq!(report.dropped.len(), 6);
    assert_eq!(Message::decode(&vec![1; MAX_MESSAGE + 1]), Err(Malformed::Long));
}

#[test]
fn other_versions_and_numbers_are_malformed() {
    let good = Message::Refused { id: 1, reason: "x".to_owned() }.encode();
    for (at, byte, error) in
        [(0, 2, Malformed::Version(2)), (1, 9, Malformed::Number), (11, 0xff, Malformed::Text)]
    {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert_eq!(Message::decode(&bytes), Err(error));
    }
}

#[test]
fn corpus() {
    replay::replay("trace_message", 4000, fuzz_entry::message);
}
