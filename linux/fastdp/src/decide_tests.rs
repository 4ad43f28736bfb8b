//! The decisions of the programs, compared with those of the pure switch on generated frames, tables and times.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use weave_overlay::fastdp::{FastdpPath, KernelNeighbour, KernelTables};
use weave_switch::{
    ForwardingTable, LocalVerdict, MacConfig, MacTable, PeerVerdict, Routes, SwitchEvent, local_frame,
    peer_frame,
};
use weave_types::{Instant, MacAddr, PeerName, ShortId};

use crate::layout::{
    self, Devices, EVENTS_SIZE, Globals, MAC_ENTRY_SIZE, MacValue, PeerRecord, Record, mac_key,
};
use crate::maps::{Maps, ONLY, tables_map};
use crate::sys::{Program, Ring};

const OWN: u8 = 1;
const PEERS: u8 = 7;
/// These are neighbours; the even ones are reached by fastdp.
const NEIGHBOURS: [u8; 4] = [2, 3, 4, 5];
const STEPS: usize = 10_000;
const MS: u64 = 1_000_000;
const REPORT_INTERVAL: u64 = 1000;
const OWN_PACKET_INTERVAL: u64 = 100;

struct Random(u64);

impl Random {
    fn next(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.next(one_in) == 0
    }
}

fn name(number: u8) -> PeerName {
    PeerName::from_bytes([0, 0, 0, 0, 0, number])
}

fn id(number: u8) -> ShortId {
    ShortId::new(u16::from(number) * 585).expect("below 4096")
}

fn number(name: PeerName) -> u8 {
    name.to_bytes()[5]
}

#[derive(Default)]
struct Table {
    unicast: BTreeMap<PeerName, PeerName>,
    broadcast: BTreeMap<PeerName, Vec<PeerName>>,
    known: BTreeSet<PeerName>,
}

impl Routes for Table {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        self.unicast.get(&dst).copied()
    }

    fn broadcast(&self, src: PeerName) -> &[PeerName] {
        self.broadcast.get(&src).map_or(&[], Vec::as_slice)
    }

    fn knows(&self, peer: PeerName) -> bool {
        self.known.contains(&peer)
    }
}

fn generate(random: &mut Random) -> Table {
    let mut table = Table::default();
    for peer in 1..=PEERS {
        if peer != OWN && random.chance(8) {
            continue;
        }
        table.known.insert(name(peer));
        if peer != OWN && !random.chance(6) {
            table.unicast.insert(name(peer), name(NEIGHBOURS[random.next(4) as usize]));
        }
        let tree: Vec<PeerName> = NEIGHBOURS.iter().filter(|_| random.chance(2)).map(|n| name(*n)).collect();
        table.broadcast.insert(name(peer), tree);
    }
    table
}

/// What the test section is given and what it answers.
fn decide(
    test: &Program,
    from_peer: Option<(u16, u16)>,
    now: u64,
    source: MacAddr,
    destination: MacAddr,
) -> [u32; 4] {
    let mut packet = vec![0; 80];
    let (from, to) = from_peer.unwrap_or_default();
    let input = [
        &u32::from(from_peer.is_some()).to_ne_bytes()[..],
        &from.to_ne_bytes(),
        &to.to_ne_bytes(),
        &(now * MS).to_ne_bytes(),
        &mac_key(source),
        &mac_key(destination),
    ]
    .concat();
    packet[14..14 + input.len()].copy_from_slice(&input);
    assert_eq!(test.test_run(&mut packet).expect("the program runs"), 0, "there are tables");
    [14, 18, 22, 26].map(|at| layout::u32_at(&packet, at).expect("a verdict"))
}

struct Kernel {
    maps: Maps,
    test: Program,
    ring: Ring,
}

impl Kernel {
    fn publish(&self, tables: &KernelTables) {
        let bytes = layout::encode_tables(tables, &Devices::default(), |_| Some(1), Vec::new())
            .expect("small tables");
        assert_eq!(layout::reached(&bytes), tables.reached());
        let map = tables_map().expect("a map");
        map.update(&ONLY, &bytes).expect("written");
        self.maps.tables.update_map(&ONLY, &map).expect("swapped");
    }

    fn macs(&self) -> BTreeMap<MacAddr, MacValue> {
        let (keys, values) = self.maps.macs.entries().expect("entries");
        let keys = keys.as_chunks::<8>().0.iter().map(|key| layout::mac_of(*key));
        keys.zip(values.as_chunks::<MAC_ENTRY_SIZE>().0.iter().map(MacValue::decode)).collect()
    }
}

fn kernel_tables(forwarding: &ForwardingTable, known: &BTreeSet<PeerName>) -> KernelTables {
    let path = |n: u8| FastdpPath { local: Ipv4Addr::LOCALHOST, remote: Ipv4Addr::new(10, 0, 0, n), port: 1 };
    let fastdp = NEIGHBOURS.iter().filter(|n| **n % 2 == 0);
    let neighbours = fastdp.map(|n| {
        (
            name(*n),
            KernelNeighbour { name: name(*n), short_id: id(*n), path: path(*n), traffic: Arc::default() },
        )
    });
    let ids = known.iter().map(|peer| (*peer, id(number(*peer))));
    KernelTables::new(id(OWN), forwarding, ids, neighbours.collect(), BTreeSet::from([1]))
}

/// The verdict of the pure switch in the terms of the program: action, reason, peer, neighbour. `None` where the program writes nothing
/// that matters.
fn of_local(verdict: &LocalVerdict<'_>) -> [Option<u32>; 4] {
    match verdict {
        LocalVerdict::Drop(reason) => [Some(0), Some(*reason as u32), None, None],
        LocalVerdict::Unicast { dst, via } => forward(1, *dst, *via),
        LocalVerdict::Flood(_) => [Some(3), None, Some(u32::from(id(OWN).get())), None],
    }
}

fn of_peer(verdict: &PeerVerdict<'_>, src: PeerName, dst: PeerName) -> [Option<u32>; 4] {
    match verdict {
        PeerVerdict::Drop(reason) => [Some(0), Some(*reason as u32), None, None],
        PeerVerdict::Relay { via } => forward(4, dst, *via),
        PeerVerdict::Deliver { flood } => {
            [Some(if flood.is_empty() { 6 } else { 7 }), None, Some(u32::from(id(number(src)).get())), None]
        }
    }
}

/// By the kernel if the neighbour is reached by fastdp, otherwise by user space, whose action is the next number.
fn forward(action: u32, dst: PeerName, via: PeerName) -> [Option<u32>; 4] {
    let peer = Some(u32::from(id(number(dst)).get()));
    match number(via) {
        2 => [Some(action), None, peer, Some(0)],
        4 => [Some(action), None, peer, Some(1)],
        _ => [Some(action + 1), None, peer, None],
    }
}

fn record(event: SwitchEvent) -> (PeerRecord, u16, MacAddr, MacAddr) {
    let of = |peer: PeerName| id(number(peer)).get();
    match event {
        SwitchEvent::LocalMac(mac) => (PeerRecord::LocalMac, id(OWN).get(), mac, MacAddr::ZERO),
        SwitchEvent::RemoteMac { mac, peer } => (PeerRecord::RemoteMac, of(peer), mac, MacAddr::ZERO),
        SwitchEvent::LocalConflict { mac, peer } => (PeerRecord::Conflict, of(peer), mac, MacAddr::ZERO),
        SwitchEvent::OwnPacket { peer, mac, dst } => (PeerRecord::OwnPacket, of(peer), mac, dst),
    }
}

/// `None`, with a message, where the kernel does not allow it.
fn kernel() -> Option<Kernel> {
    let maps = match Maps::create(1000) {
        Ok(maps) => maps,
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            return None;
        }
    };
    maps.globals.update(&ONLY, &Globals::new(true).encode()).expect("written");
    let test = maps.load("test").expect("the kernel has what is needed");
    let ring = Ring::new(&maps.events, EVENTS_SIZE).expect("a ring");
    Some(Kernel { maps, test, ring })
}

fn run(seed: u64) {
    let Some(mut kernel) = kernel() else { return };
    let random = &mut Random(seed);
    let mut macs = MacTable::new(MacConfig::new(name(OWN)));
    let mut routes = Arc::new(generate(random));
    let mut now = 5000;
    let mut reported: BTreeMap<MacAddr, u64> = BTreeMap::new();
    let mut own_packet_reported = 0;
    let mut published = false;
    let mut seen = BTreeMap::new();
    for step in 0..STEPS {
        let context = format!("seed {seed}, step {step}");
        now += match random.next(10) {
            0 => random.next(3000),
            1..4 => random.next(300),
            _ => random.next(4),
        };
        let at = Instant::from_origin(Duration::from_millis(now));
        if random.chance(200) {
            routes = Arc::new(generate(random));
            published = false;
            for peer in (1..=PEERS).map(name).filter(|peer| !routes.knows(*peer)) {
                for mac in macs.forget_peer(peer) {
                    assert!(kernel.maps.macs.delete(&mac_key(mac)).expect("deleted"), "{context}");
                    reported.remove(&mac);
                }
            }
        }
        let forwarding = ForwardingTable { own: name(OWN), macs: macs.snapshot(), routes: routes.clone() };
        if !published {
            kernel.publish(&kernel_tables(&forwarding, &routes.known));
            published = true;
        }
        let mut mac = || match random.next(16) {
            0 => MacAddr([0xff; 6]),
            1 => MacAddr([1, 0, 0x5e, 0, 0, 1]),
            2 => MacAddr::SPANNING_TREE,
            3 => MacAddr::ZERO,
            n => MacAddr([2, 0x80, 0xff, 7, 0xee, n as u8]),
        };
        let (destination, source) = (mac(), mac());
        let frame = [&destination.0[..], &source.0, &[8, 0], &[0; 46]].concat();
        let last_seen = forwarding.macs.last_seen(source);
        let (wanted, event, got) = if random.chance(2) {
            let (verdict, event) = local_frame(&forwarding, &frame, at);
            (of_local(&verdict), event, decide(&kernel.test, None, now, source, destination))
        } else {
            let (src, dst) =
                (random.next(7) as u8 + 1, if random.chance(3) { random.next(7) as u8 + 1 } else { OWN });
            let (verdict, event) = peer_frame(&forwarding, name(src), name(dst), &frame, at);
            let ids = Some((id(src).get(), id(dst).get()));
            (
                of_peer(&verdict, name(src), name(dst)),
                event,
                decide(&kernel.test, ids, now, source, destination),
            )
        };
        let context = format!("{context}: {source} to {destination} at {now}: {event:?}");
        for (wanted, got) in wanted.iter().zip(got) {
            assert!(wanted.is_none_or(|w| w == got), "{context}: wanted {wanted:?}, got {got:?}");
        }
        *seen.entry((got[0], if got[0] == 0 { got[1] } else { 0 })).or_insert(0) += 1;

        // Events: the same, less often; a MAC that nobody has confirmed is reported again.
        let events: Vec<Record> = std::iter::from_fn(|| kernel.ring.next(Record::decode)).flatten().collect();
        assert!(events.len() <= 1, "{context}: {events:?}");
        let wanted = event.map(record);
        let before = reported.get(&source).copied();
        match events.first() {
            Some(Record::Peer { kind, peer, last_seen: seen, mac, destination, .. }) => {
                let seen = seen.map(|nanos| Instant::from_origin(Duration::from_nanos(nanos)));
                match wanted {
                    Some(wanted) => assert_eq!((*kind, *peer, *mac, *destination), wanted, "{context}"),
                    None => {
                        let place = forwarding.macs.lookup(source).map(|peer| id(number(peer)).get());
                        assert_eq!((Some(*peer), *mac), (place, source), "{context}");
                        assert!(before.is_none_or(|at| now - at >= REPORT_INTERVAL), "{context}");
                    }
                }
                if *kind == PeerRecord::OwnPacket {
                    own_packet_reported = now;
                } else {
                    assert_eq!(seen, last_seen, "{context}");
                    reported.insert(source, now);
                }
            }
            Some(other) => panic!("{context}: {other:?}"),
            None => match event {
                None => {}
                Some(SwitchEvent::OwnPacket { .. }) => {
                    assert!(now - own_packet_reported < OWN_PACKET_INTERVAL, "{context}");
                }
                Some(_) => assert!(before.is_some_and(|at| now - at < REPORT_INTERVAL), "{context}"),
            },
        }
        match event {
            Some(SwitchEvent::LocalMac(mac)) => drop(macs.learn_local(mac, at)),
            Some(SwitchEvent::RemoteMac { mac, peer }) => drop(macs.learn_remote(mac, peer, at)),
            _ => {}
        }
        // What both know about MACs.
        if !step.is_multiple_of(16) {
            continue;
        }
        let entries = macs.entries().map(|e| (e.mac, (id(number(e.peer)).get(), e.last_seen, e.refused)));
        let known = kernel.macs().into_iter().map(|(mac, value)| {
            let seen = Instant::from_origin(Duration::from_nanos(value.last_seen));
            (mac, (value.peer, seen, u64::from(value.refused)))
        });
        assert_eq!(known.collect::<BTreeMap<_, _>>(), entries.collect::<BTreeMap<_, _>>(), "{context}");
    }
    // All actions and all reasons but a frame that is too short, which no device delivers.
    let actions = (1..8).map(|action| (action, 0)).chain((1..8).map(|reason| (0, reason)));
    for verdict in actions {
        assert!(seen.get(&verdict).is_some_and(|n| *n > 5), "{verdict:?} hardly ever: {seen:?}");
    }
}

#[test]
fn programs_decide_as_the_switch() {
    for seed in [1, 0x9e37_79b9_7f4a_7c15, 77] {
        run(seed);
    }
}

#[test]
fn a_mac_is_reported_each_second_until_it_is_confirmed() {
    let Some(mut kernel) = kernel() else { return };
    let macs = MacTable::new(MacConfig::new(name(OWN)));
    let routes = Arc::new(generate(&mut Random(1)));
    let forwarding = ForwardingTable { own: name(OWN), macs: macs.snapshot(), routes: routes.clone() };
    kernel.publish(&kernel_tables(&forwarding, &routes.known));
    let mac = MacAddr([2, 0, 0, 0, 0, 9]);
    let reports_at = |kernel: &mut Kernel, now| {
        decide(&kernel.test, None, now, mac, MacAddr([0xff; 6]));
        kernel.ring.next(|record| record.len()).is_some()
    };
    for (now, wanted) in
        [(5000, true), (5999, false), (6000, true), (6001, false), (9000, true), (9900, false)]
    {
        assert_eq!(reports_at(&mut kernel, now), wanted, "{now}");
    }
    let value = kernel.macs()[&mac];
    let confirmed = MacValue { pending: false, ..value };
    assert_eq!((value.last_seen, value.learnt, value.pending), (9900 * MS, 5000 * MS, true));
    kernel.maps.macs.update(&mac_key(mac), &confirmed.encode()).expect("written");
    assert!(!reports_at(&mut kernel, 12_000));
}
