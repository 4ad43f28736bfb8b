//! What happens in a certain order, over whole nodes. Each ends with all that holds in the end (`eventually`), or says why not.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;

use super::answers::show;
use super::calls::owned;
use super::scenario::{Begin, Graph, Plan, subnet};
use super::violation;
use super::world::World;
use crate::host::Death;
use crate::net::HostId;

/// Longest time until a peer that was cut off is there again: a dial that nobody answers, the pause after it, gossip.
const HEALED: Duration = Duration::from_secs(400);

/// Which of a plan's subnets is the whole range.
const WHOLE: usize = 4;

/// Five peers are launched one after the other, each with the addresses of those before it, and each waits for consensus.
/// Before and after, links are cut and healed at random.
///
/// # Panics
/// If anything does not hold that should.
pub fn one_by_one(seed: u64) {
    let plan = Plan { begin: Begin::Chain, nodes: true, ..Plan::new("one by one", 5, 0) };
    let mut world = World::without_peers(seed, &plan);
    for new in world.ids() {
        let cut = world.cut_one(new);
        world.start(new);
        world.prime(new);
        let pause = world.millis(1, 15_000);
        world.run_for(pause);
        if new == HostId(1) && cut && world.host(new).is_ready() {
            violation!("the second peer is alone, and has a ring");
        }
        world.always();
        world.heal_nodes();
        if !world.wait(HEALED, World::is_served) {
            violation!("consense on {new:?} is not answered: {}", world.views());
        }
        world.always();
        // Time for containers, and for the network to fail again.
        world.cut_one(new);
        let at = HostId(world.rng.random_range(0..=new.0));
        world.allocate(at, 0, WHOLE);
        let pause = world.millis(1, 90_000);
        world.run_for(pause);
        world.always();
        world.heal_nodes();
        if !world.wait(HEALED, |world| world.is_served() && world.agree()) {
            violation!("after {new:?} came: {}", world.views());
        }
    }
    world.eventually();
}

/// A peer is given space by another, and both are cut off before anybody hears of it; the giver dies and is removed. `used`:
/// the remover gives out all that it took over before the other returns.
///
/// # Panics
/// If anything does not hold that should.
pub fn removed_before_it_was_known(seed: u64, used: bool) {
    let plan = Plan {
        nodes: true,
        observers: 1,
        begin: Begin::Targets,
        contest: true,
        conflicts: true,
        ..Plan::new("removed before it was known", 4, 0)
    };
    let taker = HostId(3);
    let mut world = World::new(seed, &plan);
    world.prime(taker);
    if !world.wait(HEALED, |world| world.is_served() && world.agree()) {
        violation!("no ring: {}", world.views());
    }
    // Two of the three may have everything.
    let mut electors = [0, 1, 2].map(HostId);
    electors.sort_by_key(|&id| std::cmp::Reverse(world.owned_by(id, id).len()));
    let [first, giver, second] = electors;
    for here in [first, second] {
        for there in [giver, taker] {
            world.cut(here, there);
        }
    }
    world.allocate(taker, 0, WHOLE);
    if !world.wait(HEALED, World::is_served) {
        violation!("nothing was granted: {}", world.views());
    }
    world.demolish(giver);
    world.await_forgetting();
    world.remove_peer(first, 0);
    let granted = world.owned_by(taker, taker);
    if granted.is_empty() || !granted.is_subset(&world.owned_by(first, first)) {
        violation!("not what should have been prepared: {}", world.views());
    }
    if used {
        for n in 0..world.owned_by(first, first).len() {
            world.fill_request(first, format!("0-used-{n}"));
        }
        world.run_for(Duration::from_secs(1));
    }
    let twice = world.used_twice();
    if twice.is_empty() == used {
        violation!("used twice are {twice:?}");
    }

    world.heal_nodes();
    world.reconnect_nodes();
    world.run_for(Duration::from_secs(120));
    world.always();
    // Both say so: who is the other, what they disagree about, what is in doubt, and what to do.
    for (id, other) in [(first, taker), (taker, first)].into_iter().filter(|_| used) {
        let other = world.host(other).name;
        let told = world.conflicts_of(id).into_iter().any(|doubt| {
            doubt.peer.name == other
                && !doubt.disputed.is_empty()
                && doubt.conflict.remedy().contains("reset")
        });
        if !told {
            violation!("host {} does not say that {twice:?} are used twice: {}", id.0, world.views());
        }
    }
    world.check_divided();
    // Everybody goes on: what has space of its own is served, who waits is told why (`always`), nothing more is given twice.
    for id in [first, second, taker] {
        world.allocate(id, 1, WHOLE);
    }
    world.run_for(Duration::from_secs(60));
    world.always();
    if world.used_twice() != twice {
        violation!("used twice are {:?}, were {twice:?}: {}", world.used_twice(), world.views());
    }
    for id in world.ids().filter(|&id| world.runs(id)) {
        let users: Vec<u32> =
            world.host(id).containers.values().flat_map(|c| c.addrs.iter().copied()).collect();
        if users.iter().collect::<BTreeSet<_>>().len() < users.len() {
            violation!("host {}: an address has two users: {users:?}", id.0);
        }
    }
    if !used {
        world.eventually();
    }
}

/// Three fixed peers elect; so many observers come, use addresses and go: some reset, some are killed and removed, some lose their
/// power and return. The fixed peers are never told of any of them.
///
/// # Panics
/// If anything does not hold that should.
pub fn observers_come_and_go(seed: u64, observers: u16) {
    let plan = Plan {
        nodes: true,
        observers,
        begin: Begin::Targets,
        graph: Graph::Line,
        loss: 0.0,
        duplication: 0.0,
        ranges: vec![subnet("10.32.0.0/16")],
        ..Plan::new("observers come and go", 3 + observers, 0)
    };
    let mut world = World::without_peers(seed, &plan);
    let fixed = [0, 1, 2].map(HostId);
    fixed.iter().for_each(|&id| world.start(id));
    let targets = |world: &World| fixed.map(|id| world.targets_of(id));
    let before = targets(&world);
    let mut gone = 0;
    for n in 3..plan.hosts {
        world.start(HostId(n));
        world.allocate(HostId(n), 0, WHOLE);
        world.allocate(HostId(n), 1, WHOLE);
        let pause = world.millis(1, 400);
        world.run_for(pause);
        let old = HostId(world.rng.random_range(3..=n));
        match world.rng.random_range(0..12) {
            0..3 => world.reset(old),
            3 => {
                world.demolish(old);
                gone += 1;
            }
            4 => world.kill(old, Death::PowerLost),
            _ => {}
        }
    }
    world.run_for(Duration::from_secs(5));
    for id in world.ids() {
        world.start(id);
    }
    world.await_forgetting();
    if !world.wait(HEALED, |world| world.is_served() && world.agree()) {
        violation!("{} requests wait, or no agreement", world.requests.len());
    }
    // By then everybody knows all that the dead gave away. Their space is taken over by several at once.
    let living: BTreeSet<_> =
        world.ids().filter(|&id| world.runs(id)).map(|id| world.host(id).name).collect();
    let owners = world.host(fixed[0]).view().map(|ring| ring.owners()).unwrap_or_default();
    for (n, dead) in owners.difference(&living).enumerate() {
        world.call(fixed[n % 3], |a, now| a.remove_peer(&dead.to_string(), false, now));
    }
    if !world.wait(HEALED, World::agree) {
        violation!("no agreement after the dead were removed");
    }
    world.always();
    world.ids().for_each(|id| world.check_single_owner(id));
    for id in world.ids().filter(|&id| world.runs(id)) {
        let owners = world.host(id).view().map(|ring| ring.owners()).unwrap_or_default();
        let lost: Vec<_> = owners.difference(&living).collect();
        if !lost.is_empty() || owners.is_empty() {
            violation!("host {}: {lost:?} own addresses, and are gone; {gone} were killed for good", id.0);
        }
    }
    if targets(&world) != before {
        violation!("the fixed peers were told of others: {:?}, before {before:?}", targets(&world));
    }
    if gone == 0 || world.graves.len() <= gone || living.len() < 10 {
        violation!("nobody came and went: {gone}, {}, {}", world.graves.len(), living.len());
    }
}

impl World {
    /// Cuts the new host, or one before it, off from another, if there are two.
    fn cut_one(&mut self, new: HostId) -> bool {
        let (a, b) = (self.rng.random_range(0..=new.0), self.rng.random_range(0..=new.0));
        if a != b {
            self.cut(HostId(a), HostId(b));
        }
        a != b
    }

    fn is_served(&self) -> bool {
        self.requests.is_empty()
    }

    /// The addresses that a peer has, as another sees it.
    fn owned_by(&self, peer: HostId, as_seen_by: HostId) -> BTreeSet<u32> {
        let view = self.host(as_seen_by).view();
        view.map(|ring| owned(ring, self.host(peer).name)).unwrap_or_default()
    }

    fn used_twice(&self) -> Vec<String> {
        self.ledger.iter().filter(|(_, users)| users.len() > 1).map(|(&addr, _)| show(addr)).collect()
    }
}
