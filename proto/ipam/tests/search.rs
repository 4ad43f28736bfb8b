//! Every order of events for three peers, with one crash: breadth first over all reachable states, so a counterexample is
//! a shortest one. `cargo test -p weave-ipam --test search -- --nocapture` prints the numbers of states.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What a search has found.
#[derive(Debug)]
struct Found {
    states: usize,
    /// The first state that breaks a rule, and how it came to be.
    fault: Option<(String, Vec<String>)>,
}

trait Model {
    type State: Clone;
    /// Equal numbers stand for equal states.
    fn fingerprint(&self, state: &Self::State) -> u64;
    /// All that can happen next; an error is a broken rule.
    fn next(&self, state: &Self::State) -> Vec<(String, Result<Self::State, String>)>;
}

fn search<M: Model>(model: &M, start: M::State, limit: usize) -> Found {
    let mut seen = HashSet::from([model.fingerprint(&start)]);
    // Each state with the step that led to it and the place of the one before.
    let mut steps: Vec<(usize, String)> = vec![(0, "start".to_owned())];
    let mut open = VecDeque::from([(0, start)]);
    while let Some((at, state)) = open.pop_front() {
        for (what, next) in model.next(&state) {
            let next = match next {
                Ok(next) => next,
                Err(fault) => {
                    let mut trace = vec![what];
                    let mut at = at;
                    while at != 0 {
                        trace.push(steps[at].1.clone());
                        at = steps[at].0;
                    }
                    trace.reverse();
                    return Found { states: seen.len(), fault: Some((fault, trace)) };
                }
            };
            if seen.insert(model.fingerprint(&next)) {
                assert!(seen.len() <= limit, "more than {limit} states: not a complete search");
                steps.push((at, what));
                open.push_back((steps.len() - 1, next));
            }
        }
    }
    Found { states: seen.len(), fault: None }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Elections.
mod paxos {
    use super::*;
    use weave_ipam::AddrRange;
    use weave_ipam::paxos::{ElectorId, Knowledge, Paxos, ProposalId};
    use weave_types::{PeerName, PeerUid};

    const PEERS: usize = 3;

    /// What is divided: the search looks at the agreement only.
    fn range() -> AddrRange {
        AddrRange::new(0, 8)
    }

    #[derive(Clone, Copy)]
    pub(super) struct Elections {
        pub(super) quorum: u32,
        /// How often a proposal may be made in all.
        pub(super) proposals: usize,
        /// Messages that may be on their way while their senders go on.
        pub(super) delayed: usize,
        pub(super) crash: Option<Crash>,
    }

    #[derive(Clone, Copy, PartialEq)]
    pub(super) enum Crash {
        /// It comes back as it was stored.
        WithState,
        /// It comes back as another elector.
        WithoutState,
    }

    #[derive(Clone, Hash)]
    pub(super) struct State {
        nodes: Vec<Paxos>,
        flying: Vec<(usize, Knowledge)>,
        proposals: usize,
        crashed: bool,
        decided: Option<Vec<PeerName>>,
    }

    fn id(peer: usize, uid: u64) -> ElectorId {
        ElectorId { name: PeerName::from_number(peer as u64 + 1).unwrap(), uid: PeerUid(uid) }
    }

    impl Elections {
        pub(super) fn start(&self) -> State {
            let nodes = (0..PEERS).map(|peer| Paxos::new(id(peer, 1))).collect();
            State { nodes, flying: Vec::new(), proposals: 0, crashed: false, decided: None }
        }

        /// One value only, for whoever may have concluded, and for who sees everything at once.
        fn settle(&self, mut state: State) -> Result<State, String> {
            let mut decisions: Vec<Vec<PeerName>> =
                state.nodes.iter().filter_map(|node| node.consensus()).collect();
            let mut votes: BTreeMap<ProposalId, u32> = BTreeMap::new();
            for election in state.nodes.iter().filter_map(|node| node.election(range())) {
                let claims = election.state;
                if claims.accepted.is_valid() {
                    let count = votes.entry(claims.accepted).or_default();
                    *count += 1;
                    if *count >= self.quorum {
                        let mut value = claims.value.value.clone();
                        value.sort();
                        value.dedup();
                        decisions.push(value);
                    }
                }
            }
            for decision in decisions {
                match &state.decided {
                    None => state.decided = Some(decision),
                    Some(before) if *before != decision => {
                        return Err(format!("S9: {before:?} and {decision:?}"));
                    }
                    Some(_) => {}
                }
            }
            state.flying.sort_by_key(hash);
            Ok(state)
        }

        fn hear(&self, mut state: State, to: usize, message: &Knowledge) -> Option<Result<State, String>> {
            if !state.nodes[to].update(message) {
                return None;
            }
            state.nodes[to].think();
            Some(self.settle(state))
        }
    }

    impl Model for Elections {
        type State = State;

        fn fingerprint(&self, state: &State) -> u64 {
            hash(state)
        }

        fn next(&self, state: &State) -> Vec<(String, Result<State, String>)> {
            let mut all = Vec::new();
            for from in 0..PEERS {
                // With two proposals it is all the same which of the others does not make one.
                if state.proposals < self.proposals && (self.proposals > 2 || from < 2) {
                    let mut next = state.clone();
                    next.proposals += 1;
                    next.nodes[from].propose(self.quorum);
                    all.push((format!("{from} proposes"), self.settle(next)));
                }
                for to in (0..PEERS).filter(|to| *to != from) {
                    let message = state.nodes[from].knowledge();
                    if message.is_empty() {
                        continue;
                    }
                    if let Some(next) = self.hear(state.clone(), to, message) {
                        all.push((format!("{to} hears {from}"), next));
                    }
                    let flying = (to, message.clone());
                    if state.flying.len() < self.delayed && !state.flying.contains(&flying) {
                        let mut next = state.clone();
                        next.flying.push(flying);
                        all.push((format!("{from} sends to {to}"), self.settle(next)));
                    }
                }
                if let (Some(crash), false) = (self.crash, state.crashed) {
                    let mut next = state.clone();
                    next.crashed = true;
                    next.nodes[from] = match (crash, state.nodes[from].election(range())) {
                        (Crash::WithState, Some(election)) => Paxos::resume(election),
                        (Crash::WithState, None) => Paxos::new(id(from, 1)),
                        (Crash::WithoutState, _) => Paxos::new(id(from, 2)),
                    };
                    all.push((format!("{from} restarts"), self.settle(next)));
                }
            }
            for at in 0..state.flying.len() {
                let mut next = state.clone();
                let (to, message) = next.flying.remove(at);
                if let Some(next) = self.hear(next, to, &message) {
                    all.push((format!("{to} hears what was sent"), next));
                }
            }
            all
        }
    }
}

use paxos::{Crash, Elections};

const PLAIN: Elections = Elections { quorum: 2, proposals: 3, delayed: 0, crash: None };

fn explore(what: &str, model: Elections) -> Found {
    let found = search(&model, model.start(), 3_000_000);
    println!("elections, {what}: {} states", found.states);
    if let Some((fault, trace)) = &found.fault {
        println!("  {fault}: {}", trace.join("; "));
    }
    found
}

fn assert_elections_agree(cases: &[(&str, Elections)]) {
    for &(what, model) in cases {
        let found = explore(what, model);
        assert!(found.fault.is_none(), "{what}: {:?}", found.fault);
    }
}

#[test]
fn elections_agree() {
    let two = Elections { proposals: 2, ..PLAIN };
    assert_elections_agree(&[
        ("two proposals", two),
        ("two proposals, a restart with state", Elections { crash: Some(Crash::WithState), ..two }),
        (
            "two proposals, a restart without state, quorum of four",
            Elections { quorum: 3, crash: Some(Crash::WithoutState), ..two },
        ),
    ]);
}

#[test]
#[ignore = "takes minutes"]
fn elections_agree_with_more_proposals_and_delays() {
    assert_elections_agree(&[
        ("three proposals", PLAIN),
        ("two proposals, a message delayed", Elections { proposals: 2, delayed: 1, ..PLAIN }),
    ]);
}

/// Why votes are counted by the proposal that was accepted, and not, as in 2.8.1, by that in which the value was first
/// chosen: that would be two decisions of three electors without loss or restart. Too long a history for the search.
#[test]
fn votes_of_different_proposals_are_not_added() {
    use weave_ipam::paxos::{ElectorId, Paxos};
    use weave_types::{PeerName, PeerUid};
    let node = |n| Paxos::new(ElectorId { name: PeerName::from_number(n).unwrap(), uid: PeerUid(n) });
    let mut nodes: Vec<Paxos> = (1..=3).map(node).collect();
    nodes.iter_mut().for_each(|node| node.set_quorum(2));
    let (a, b, c) = (0, 1, 2);
    let mut decided = Vec::new();
    // `None`: proposes. The middle peer hears of little until late.
    let steps = [
        (a, None),
        (c, Some(a)),
        (a, Some(c)),
        (b, None),
        (c, Some(b)),
        (b, Some(c)),
        (c, None),
        (a, Some(c)),
        (c, Some(a)),
        (b, Some(a)),
        (b, None),
        (a, Some(b)),
        (b, Some(a)),
        (a, Some(b)),
        (b, Some(a)),
    ];
    for (who, heard) in steps {
        match heard {
            None => nodes[who].propose(2),
            Some(from) => {
                let message = nodes[from].knowledge().clone();
                if nodes[who].update(&message) {
                    nodes[who].think();
                }
            }
        }
        decided.extend(nodes[who].consensus());
    }
    decided.sort();
    decided.dedup();
    assert_eq!(decided.len(), 1);
}

/// The search finds what breaks an election: a quorum that is not a majority, and an elector that forgets its promises.
#[test]
fn unsafe_elections_are_found() {
    let cases = [
        ("quorum of half", Elections { quorum: 1, proposals: 2, ..PLAIN }),
        ("promises are forgotten", Elections { proposals: 2, crash: Some(Crash::WithoutState), ..PLAIN }),
    ];
    for (what, model) in cases {
        assert!(explore(what, model).fault.is_some(), "{what}");
    }
}

/// Space that changes hands, with the whole machine.
mod donations {
    use super::*;
    use std::net::IpAddr;

    use rand::SeedableRng;
    use rand_chacha::ChaCha12Rng;
    use support::peer::{now, subnet};
    use weave_ipam::{Allocator, Answer, Config, Init, Loaded, Output, RequestId};
    use weave_types::{PeerName, PeerUid};

    const PEERS: usize = 3;

    #[derive(Clone)]
    pub(super) struct Donations {
        pub(super) range: &'static str,
        /// Who asks for an address, and how often.
        pub(super) requests: [usize; PEERS],
        pub(super) crash: Option<Crash>,
    }

    #[derive(Clone, Debug)]
    struct Host {
        allocator: Allocator,
        disk: Loaded,
        requests: usize,
        live: BTreeMap<RequestId, IpAddr>,
    }

    #[derive(Clone)]
    pub(super) struct State {
        hosts: Vec<Host>,
        /// On their way, in any order; each may get lost by never arriving.
        flying: Vec<(usize, usize, bool, Vec<u8>)>,
        crashed: bool,
    }

    fn name(peer: usize) -> PeerName {
        PeerName::from_number(peer as u64 + 1).unwrap()
    }

    impl Donations {
        fn config(&self, peer: usize, init: Init) -> Config {
            let mut config = Config::new(name(peer), PeerUid(1), "", subnet(self.range));
            config.init = init;
            config
        }

        fn host(&self, peer: usize, init: Init, disk: Loaded) -> Allocator {
            let rng = ChaCha12Rng::seed_from_u64(1);
            let mut allocator = Allocator::new(self.config(peer, init), rng, disk, now(0));
            let reachable = (0..PEERS).map(|peer| (name(peer), String::new())).collect();
            allocator.handle_topology_change(&reachable, now(0));
            allocator
        }

        /// The first peer owns everything.
        pub(super) fn start(&self) -> State {
            let mut state = State { hosts: Vec::new(), flying: Vec::new(), crashed: false };
            for (peer, &requests) in self.requests.iter().enumerate() {
                let allocator = self.host(peer, Init::Seed(vec![name(0)]), Loaded::default());
                state.hosts.push(Host {
                    allocator,
                    disk: Loaded::default(),
                    requests,
                    live: BTreeMap::new(),
                });
            }
            let mut state = self.all_of(state);
            state.flying.clear();
            state
        }

        fn all_of(&self, mut state: State) -> State {
            for peer in 0..PEERS {
                while self.one_of(&mut state, peer) {}
            }
            state
        }

        /// Does the next thing that a host asks for.
        fn one_of(&self, state: &mut State, peer: usize) -> bool {
            let host = &mut state.hosts[peer];
            match host.allocator.poll_output() {
                None => return false,
                Some(Output::Persist(persist)) => host.disk.apply(&persist),
                Some(Output::Broadcast(bytes)) => {
                    for to in (0..PEERS).filter(|to| *to != peer) {
                        state.flying.push((peer, to, false, bytes.clone()));
                    }
                }
                Some(Output::Unicast { to, payload }) => {
                    let to = (to.number() - 1) as usize;
                    state.flying.push((peer, to, true, payload));
                }
                Some(Output::Done(request, Ok(Answer::Allocated(cidr)))) => {
                    host.live.insert(request, cidr.addr());
                }
                Some(Output::Done(..) | Output::Event(_)) => {}
            }
            true
        }

        /// All ends of an input: everything is done that it asks for, or the host stops in between and starts again.
        fn ends(
            &self,
            what: &str,
            peer: usize,
            state: State,
            all: &mut Vec<(String, Result<State, String>)>,
        ) {
            if let (Some(crash), false) = (self.crash, state.crashed) {
                let mut partial = state.clone();
                let mut done = 0;
                loop {
                    let next = self.restart(partial.clone(), peer, crash);
                    all.push((format!("{what}, stops after {done}"), self.settle(next)));
                    if !self.one_of(&mut partial, peer) {
                        break;
                    }
                    done += 1;
                }
            }
            let mut whole = state;
            while self.one_of(&mut whole, peer) {}
            all.push((what.to_owned(), self.settle(whole)));
        }

        fn restart(&self, mut state: State, peer: usize, crash: Crash) -> State {
            state.crashed = true;
            let disk = std::mem::take(&mut state.hosts[peer].disk);
            match crash {
                Crash::WithState => {
                    state.hosts[peer].allocator = self.host(peer, Init::Seed(vec![name(0)]), disk.clone());
                    state.hosts[peer].disk = disk;
                }
                Crash::WithoutState => {
                    // Nothing is left of its containers, nor of what it had sent and nobody has heard; and it hears from
                    // all what was its own. Otherwise it could not know what it gave away (docs/spec/ipam.md 16.2, A5).
                    state.flying.retain(|(from, ..)| *from != peer);
                    state.hosts[peer].live.clear();
                    state.hosts[peer].allocator = self.host(peer, Init::Observer, Loaded::default());
                    for other in (0..PEERS).filter(|other| *other != peer) {
                        let theirs = state.hosts[other].allocator.state(now(0));
                        while self.one_of(&mut state, other) {}
                        let _ = state.hosts[peer].allocator.handle_gossip(&theirs, now(0));
                    }
                }
            }
            while self.one_of(&mut state, peer) {}
            state
        }

        fn settle(&self, mut state: State) -> Result<State, String> {
            state.flying.sort();
            state.flying.dedup();
            let mut users = BTreeMap::new();
            for (peer, host) in state.hosts.iter().enumerate() {
                host.allocator.check_invariants()?;
                for addr in host.live.values() {
                    if let Some(other) = users.insert(*addr, peer) {
                        return Err(format!("S1: {addr} is used on {other} and {peer}"));
                    }
                }
                for (other, theirs) in state.hosts.iter().enumerate().take(peer) {
                    let (space, their_space) = (host.allocator.space(), theirs.allocator.space());
                    for range in space.used().iter().chain(space.free().iter()) {
                        if their_space.used().count_in(range) + their_space.free().count_in(range) > 0 {
                            return Err(format!("S2: {range} is owned by {other} and {peer}"));
                        }
                    }
                }
            }
            Ok(state)
        }
    }

    impl Model for Donations {
        type State = State;

        fn fingerprint(&self, state: &State) -> u64 {
            let hosts = state.hosts.iter().map(|host| format!("{host:?}")).collect::<Vec<_>>();
            hash(&(hosts, &state.flying, state.crashed))
        }

        fn next(&self, state: &State) -> Vec<(String, Result<State, String>)> {
            let mut all = Vec::new();
            for peer in 0..PEERS {
                if state.hosts[peer].requests > 0 {
                    let mut next = state.clone();
                    let host = &mut next.hosts[peer];
                    let request = RequestId(host.requests as u64);
                    host.requests -= 1;
                    let container = format!("{peer}-{}", request.0);
                    host.allocator.allocate(request, container, subnet(self.range), true, now(0));
                    self.ends(&format!("{peer} asks for an address"), peer, next, &mut all);
                }
            }
            for at in 0..state.flying.len() {
                // Which of two donors is asked is a matter of chance.
                for seed in 1..=2 {
                    let mut next = state.clone();
                    let (from, to, unicast, bytes) = next.flying.remove(at);
                    let allocator = &mut next.hosts[to].allocator;
                    allocator.reseed(ChaCha12Rng::seed_from_u64(seed));
                    let result = if unicast {
                        allocator.handle_unicast(name(from), &bytes, now(0))
                    } else {
                        allocator.handle_broadcast(name(from), &bytes, now(0)).map(drop)
                    };
                    allocator.reseed(ChaCha12Rng::seed_from_u64(0));
                    if let Err(error) = result {
                        all.push((format!("{to} hears {from}"), Err(format!("L8: {error}"))));
                        continue;
                    }
                    self.ends(&format!("{to} hears {from}"), to, next, &mut all);
                }
            }
            all
        }
    }
}

use donations::Donations;

fn explore_donations(what: &str, model: &Donations) -> Found {
    let found = search(model, model.start(), 1_000_000);
    println!("donations, {what}: {} states", found.states);
    if let Some((fault, trace)) = &found.fault {
        println!("  {fault}: {}", trace.join("; "));
    }
    found
}

#[test]
fn donations_never_overlap() {
    let plain = Donations { range: "10.2.0.0/29", requests: [1, 1, 1], crash: None };
    let cases = [
        ("each of three asks", plain.clone()),
        (
            "two ask, a crash with state",
            Donations { requests: [0, 1, 1], crash: Some(Crash::WithState), ..plain.clone() },
        ),
        (
            "each of three asks, a crash without state",
            Donations { crash: Some(Crash::WithoutState), ..plain },
        ),
    ];
    for (what, model) in cases {
        let found = explore_donations(what, &model);
        assert!(found.fault.is_none(), "{what}: {:?}", found.fault);
    }
}
