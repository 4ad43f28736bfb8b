//! Random messages and operations, compared with a model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::prelude::*;
use weave_dns::message::Message;
use weave_dns::{Entry, Filter, HostName, Registry, RegistryOutput};
use weave_types::{Now, PeerName};

use crate::registry_support::{at, entries_of, message, peer, registry};
use crate::support::host_name;

type Identity = (String, PeerName, String, Ipv4Addr);
type Model = BTreeMap<Identity, (i64, i64)>;

const NOW: u64 = 1000;

fn identity(entry: &Entry) -> Identity {
    (entry.hostname.to_lowercase(), entry.origin, entry.container.to_string(), entry.addr)
}

fn model(entries: &[Entry]) -> Model {
    let mut model = Model::new();
    for entry in entries {
        let state = model.entry(identity(entry)).or_default();
        *state = (*state).max((entry.version, entry.tombstone));
    }
    model
}

/// Entries with one spelling for each name.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (0..3_u8, 2..4_u64, 0..2_u8, 0..3_i64, prop_oneof![Just(0), 990..995_i64]).prop_map(
        |(name, origin, container, version, tombstone)| Entry {
            hostname: format!("n{name}.weave.local.").into(),
            origin: peer(origin),
            container: container.to_string().into(),
            addr: Ipv4Addr::new(10, 32, 0, 1),
            version,
            tombstone,
        },
    );
    prop::collection::vec(entry, 0..8)
}

fn merged(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut merged = a.to_vec();
    Registry::merge(&mut merged, b);
    merged
}

proptest! {
    #[test]
    fn merge_is_a_join(a in entries(), b in entries(), c in entries()) {
        let [x, y, z] = [&a, &b, &c].map(|entries| message(at(NOW), entries));
        prop_assert_eq!(merged(&x, &y), merged(&y, &x));
        prop_assert_eq!(merged(&merged(&x, &y), &z), merged(&x, &merged(&y, &z)));
        prop_assert_eq!(merged(&merged(&x, &y), &y), merged(&x, &y));
        let all = [a, b, c].concat();
        prop_assert_eq!(model(&entries_of(Some(merged(&merged(&x, &y), &z)))), model(&all));
        // A registry ends with the same state in whatever order, and reports a message as new once.
        let mut registry = registry(peer(1), (1..4).map(peer), at(NOW));
        for payload in [&z, &x, &y] {
            registry.handle_gossip(payload, at(NOW)).unwrap();
        }
        for payload in [&x, &y, &z] {
            prop_assert_eq!(registry.handle_gossip(payload, at(NOW)).unwrap(), None);
        }
        let state: Vec<Entry> = registry.entries().cloned().collect();
        prop_assert_eq!(model(&state), model(&all));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Add(usize, u8, u8, u8),
    Remove(usize, Option<u8>, Option<u8>),
    /// The first sends its state to the second.
    Gossip(usize, usize),
    /// Broadcasts that are under way arrive at a peer.
    Deliver(usize),
    Restart(usize),
    /// The first loses the second, or knows it again.
    Forget(usize, usize),
    Know(usize),
    /// A message with entries of a peer like 2.8.1, in any spelling.
    Foreign(usize, Vec<(u8, u8, i64, bool)>),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let peer = || 0..3_usize;
    prop_oneof![
        4 => (peer(), 0..6_u8, 0..2_u8, 0..2_u8).prop_map(|(p, n, c, a)| Op::Add(p, n, c, a)),
        3 => (peer(), prop::option::of(0..6_u8), prop::option::of(0..2_u8)).prop_map(|(p, n, c)| Op::Remove(p, n, c)),
        4 => (peer(), peer()).prop_map(|(a, b)| Op::Gossip(a, b)),
        4 => peer().prop_map(Op::Deliver),
        1 => peer().prop_map(Op::Restart),
        1 => (peer(), peer()).prop_map(|(a, b)| Op::Forget(a, b)),
        1 => peer().prop_map(Op::Know),
        2 => (peer(), prop::collection::vec((0..6_u8, 0..2_u8, 0..3_i64, any::<bool>()), 0..5))
            .prop_map(|(p, list)| Op::Foreign(p, list)),
        1 => prop_oneof![1..60_u64, 1700..2000_u64].prop_map(Op::Wait),
    ]
}

/// Names in two spellings, one of which lies outside the domain.
fn name(n: u8) -> HostName {
    let names =
        ["a.weave.local", "A.weave.local", "b.weave.local", "B.Weave.Local", "weave.local", "a.example"];
    host_name(names[usize::from(n)])
}

/// Three registries and the broadcasts that have not arrived everywhere.
struct World {
    registries: Vec<Registry>,
    underway: Vec<Vec<(PeerName, Vec<u8>)>>,
    now: Now,
}

fn own(n: usize) -> PeerName {
    peer(n as u64 + 1)
}

impl World {
    fn new() -> World {
        let now = at(1_000_000);
        let registries = (0..3).map(|n| registry(own(n), (1..5).map(peer), now)).collect();
        World { registries, underway: vec![Vec::new(); 3], now }
    }

    fn apply(&mut self, op: Op) {
        let now = self.now;
        let addr = |a| Ipv4Addr::new(10, 32, 0, a);
        match op {
            Op::Add(p, n, c, a) => {
                let added = self.registries[p].add(&name(n), &c.to_string(), addr(a), now);
                assert_eq!(added, n < 5);
            }
            Op::Remove(p, n, c) => {
                let filter = Filter { name: n.map(name), container: c.map(|c| c.to_string()), addr: None };
                self.registries[p].remove(&filter, now);
            }
            Op::Gossip(a, b) => {
                if let Some(state) = self.registries[a].state(now) {
                    check_message(&state);
                    self.receive(b, None, &state);
                }
            }
            Op::Deliver(p) => {
                for (src, payload) in std::mem::take(&mut self.underway[p]) {
                    self.receive(p, Some(src), &payload);
                }
            }
            Op::Restart(p) => self.registries[p] = registry(own(p), (1..5).map(peer), now),
            Op::Forget(a, b) if a != b => {
                let known: BTreeSet<_> = (1..5).map(peer).filter(|peer| *peer != own(b)).collect();
                self.registries[a].handle_topology_change(&known, now);
            }
            Op::Know(a) | Op::Forget(a, _) => {
                self.registries[a].handle_topology_change(&(1..5).map(peer).collect(), now);
            }
            Op::Foreign(p, list) => {
                let entries: Vec<Entry> = list
                    .into_iter()
                    .map(|(n, a, version, live)| Entry {
                        hostname: name(n).as_str().into(),
                        origin: peer(4),
                        container: "c".into(),
                        addr: addr(a),
                        version,
                        tombstone: if live { 0 } else { now.wall.as_secs() as i64 },
                    })
                    .collect();
                self.receive(p, None, &raw_message(now, &entries));
            }
            Op::Wait(seconds) => {
                self.now = at(now.wall.as_secs() + seconds);
                let now = self.now;
                self.registries.iter_mut().for_each(|registry| registry.handle_timeout(now));
            }
        }
        self.collect();
    }

    fn receive(&mut self, p: usize, src: Option<PeerName>, payload: &[u8]) {
        let registry = &mut self.registries[p];
        let passed_on = match src {
            Some(src) => registry.handle_broadcast(src, payload, self.now),
            None => registry.handle_gossip(payload, self.now),
        };
        passed_on.unwrap().iter().for_each(|payload| check_message(payload));
    }

    fn collect(&mut self) {
        for p in 0..3 {
            while let Some(output) = self.registries[p].poll_output() {
                let RegistryOutput::Broadcast(payload) = output else { continue };
                check_message(&payload);
                for (other, underway) in self.underway.iter_mut().enumerate() {
                    if other != p {
                        underway.push((own(p), payload.clone()));
                    }
                }
            }
            check_names(&self.registries[p]);
        }
        check_digests(&self.registries);
    }
}

/// A message that 2.8.1 may send: with both spellings of a name, and with duplicates.
fn raw_message(now: Now, entries: &[Entry]) -> Vec<u8> {
    use weave_gob::{Encoder, Struct, Type, Value};
    let ty = Type::structure(
        "Entry",
        [
            ("ContainerID", Type::String),
            ("Origin", Type::Uint),
            ("Addr", Type::Uint),
            ("Hostname", Type::String),
            ("Version", Type::Int),
            ("Tombstone", Type::Int),
        ],
    );
    let list = entries.iter().map(|e| {
        Value::Struct(Struct::new([
            ("ContainerID", Value::String(e.container.to_string())),
            ("Origin", Value::Uint(e.origin.number())),
            ("Addr", Value::Uint(u32::from(e.addr).into())),
            ("Hostname", Value::String(e.hostname.to_string())),
            ("Version", Value::Int(e.version)),
            ("Tombstone", Value::Int(e.tombstone)),
        ]))
    });
    let fields =
        [("Timestamp", Value::Int(now.wall.as_secs() as i64)), ("Entries", Value::List(list.collect()))];
    let mut encoder = Encoder::new();
    let ty = Type::structure("GossipData", [("Timestamp", Type::Int), ("Entries", Type::slice(ty))]);
    encoder.value(&ty, &Value::Struct(Struct::new(fields)));
    encoder.finish()
}

/// Nothing in it may crash a peer of version 2.8.1.
fn check_message(payload: &[u8]) {
    let entries = Message::decode(payload).unwrap().entries;
    let identities: BTreeSet<_> = entries.iter().map(identity).collect();
    assert_eq!(identities.len(), entries.len(), "{entries:?}");
}

/// The snapshot has the live entries within the domain, and nothing else.
fn check_names(registry: &Registry) {
    let names = registry.names();
    let live = |entry: &&Entry| entry.is_live() && host_name(&entry.hostname).is_within(registry.domain());
    let live: Vec<&Entry> = registry.entries().filter(live).collect();
    for n in 0..6 {
        let name = name(n);
        let mut expected: Vec<_> =
            live.iter().filter(|e| host_name(&e.hostname) == name).map(|e| e.addr).collect();
        let mut found = names.addresses(name.key()).to_vec();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{name}");
    }
    for addr in (0..2).map(|a| Ipv4Addr::new(10, 32, 0, a)) {
        let first = live.iter().find(|e| e.addr == addr).map(|e| &*e.hostname);
        assert_eq!(names.name_of(addr).map(HostName::as_str), first);
    }
}

/// Digests are equal where the same entries are live in the same version, and nowhere else.
fn check_digests(registries: &[Registry]) {
    let live = |registry: &Registry| -> BTreeSet<(Identity, i64)> {
        registry.entries().filter(|e| e.is_live()).map(|e| (identity(e), e.version)).collect()
    };
    for (a, b) in registries.iter().zip(registries.iter().skip(1)) {
        assert_eq!(a.digest() == b.digest(), live(a) == live(b));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn registries_agree_in_the_end(ops in prop::collection::vec(op(), 0..60)) {
        let mut world = World::new();
        ops.into_iter().for_each(|op| world.apply(op));
        (0..3).for_each(|p| world.apply(Op::Know(p)));
        for _ in 0..6 {
            for p in 0..3 {
                world.apply(Op::Deliver(p));
                (0..3).for_each(|other| world.apply(Op::Gossip(other, p)));
            }
        }
        let live = |registry: &Registry| -> BTreeSet<Identity> {
            registry.entries().filter(|e| e.is_live()).map(identity).collect()
        };
        for p in 0..3 {
            let truth: BTreeSet<_> =
                live(&world.registries[p]).into_iter().filter(|id| id.1 == own(p)).collect();
            for other in &world.registries {
                let known: BTreeSet<_> = live(other).into_iter().filter(|id| id.1 == own(p)).collect();
                prop_assert_eq!(&known, &truth);
            }
        }
    }
}
