//! Fixed sequences of events with whole nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;

use super::cluster::Cluster;
use super::member::{owned, show_addr};
use super::plans::{AllocationPlan, InitMode, Topology, subnet};
use crate::host::CrashKind;
use crate::net::HostId;

/// Longest time until a peer is reconnected after a cut: a dial that times out, the pause after it, gossip.
const HEAL_TIMEOUT: Duration = Duration::from_secs(400);

/// Index of the whole range among the subnets of a plan.
const WHOLE_RANGE: usize = 4;

/// Five peers are launched one after the other, each with the addresses of those before it, and each waits for consensus.
/// Before and after, links are cut and healed at random.
pub fn peers_are_added_one_by_one(seed: u64) {
    let plan =
        AllocationPlan { init: InitMode::Chain, nodes: true, ..AllocationPlan::new("one by one", 5, 0) };
    let mut cluster = Cluster::stopped(seed, &plan);
    for new in cluster.ids() {
        let cut = cluster.cut_one(new);
        cluster.start(new);
        cluster.prime(new);
        let pause = cluster.random_millis(1, 15_000);
        cluster.run_for(pause);
        let second_alone = new == HostId(1) && cut;
        assert!(!second_alone || !cluster.member(new).is_ready(), "the second peer is alone, but has a ring");
        cluster.check_always();
        cluster.heal();
        let served = cluster.wait_until(HEAL_TIMEOUT, Cluster::is_served);
        assert!(served, "consensus on {new} is not answered: {}", cluster.views());
        cluster.check_always();
        cluster.cut_one(new);
        let at = HostId(cluster.rng.random_range(0..=new.0));
        cluster.allocate(at, 0, WHOLE_RANGE);
        let pause = cluster.random_millis(1, 90_000);
        cluster.run_for(pause);
        cluster.check_always();
        cluster.heal();
        cluster.wait_until_served_and_agreed();
    }
    cluster.check_eventually();
}

/// A peer receives a donation, and both peers are cut off before others know of it; then the donor fails and is removed, so that
/// its successor and the receiver own the same addresses. With `used` the successor allocates all of them before the receiver
/// returns.
pub fn donor_removed_before_donation_is_known(seed: u64, used: bool) {
    let plan = AllocationPlan {
        nodes: true,
        observers: 1,
        init: InitMode::Targets,
        double_takeover: true,
        conflicts: true,
        ..AllocationPlan::new("donor removed before its donation is known", 4, 0)
    };
    let receiver = HostId(3);
    let mut cluster = Cluster::new(seed, &plan);
    cluster.prime(receiver);
    cluster.wait_until_served_and_agreed();
    // The ring may be divided between two of the three.
    let mut electors = [0, 1, 2].map(HostId);
    electors.sort_by_key(|&id| std::cmp::Reverse(cluster.owned_by(id, id).len()));
    let [first, donor, second] = electors;
    for here in [first, second] {
        for there in [donor, receiver] {
            cluster.world.net.set_cut(here, there, true);
        }
    }
    cluster.allocate(receiver, 0, WHOLE_RANGE);
    let served = cluster.wait_until(HEAL_TIMEOUT, Cluster::is_served);
    assert!(served, "no donation: {}", cluster.views());
    cluster.destroy_host(donor);
    cluster.await_removed_peers_forgotten();
    cluster.remove_peer(first, 0);
    let donated = cluster.owned_by(receiver, receiver);
    assert!(
        !donated.is_empty() && donated.is_subset(&cluster.owned_by(first, first)),
        "the donated addresses do not have two owners: {}",
        cluster.views()
    );
    if used {
        for n in 0..cluster.owned_by(first, first).len() {
            cluster.allocate_named(first, format!("0-used-{n}"));
        }
        cluster.run_for(Duration::from_secs(1));
    }
    let twice = cluster.used_twice();
    assert!(twice.is_empty() != used, "addresses with two users: {twice:?}");

    cluster.heal();
    cluster.reconnect_nodes();
    cluster.run_for(Duration::from_secs(120));
    cluster.check_always();
    // Both report the conflict: the other peer, the disputed addresses, and the remedy.
    for (id, other) in [(first, receiver), (receiver, first)].into_iter().filter(|_| used) {
        let other = cluster.member(other).name;
        let reported = cluster.conflicts_of(id).into_iter().any(|status| {
            status.peer.name == other
                && !status.disputed.is_empty()
                && status.conflict.remedy().contains("reset")
        });
        assert!(reported, "{id} does not report that {twice:?} have two users: {}", cluster.views());
    }
    cluster.check_conflict_reported();
    // Allocation continues, and no more addresses get two users.
    for id in [first, second, receiver] {
        cluster.allocate(id, 1, WHOLE_RANGE);
    }
    cluster.run_for(Duration::from_secs(60));
    cluster.check_always();
    let twice_now = cluster.used_twice();
    assert!(
        twice_now == twice,
        "addresses with two users: {twice_now:?}, before {twice:?}: {}",
        cluster.views()
    );
    for id in cluster.ids().filter(|&id| cluster.is_running(id)) {
        let users: Vec<u32> =
            cluster.member(id).containers.values().flat_map(|c| c.addrs.iter().copied()).collect();
        let distinct: BTreeSet<_> = users.iter().collect();
        assert!(distinct.len() == users.len(), "{id}: an address has two users: {users:?}");
    }
    if !used {
        cluster.check_eventually();
    }
}

/// Observers of a fixed cluster of three start and use addresses. Some are reset, some fail for good and are removed, some lose
/// their power and return. The targets of the fixed peers never change.
pub fn observers_come_and_go(seed: u64, observers: u16) {
    let plan = AllocationPlan {
        nodes: true,
        observers,
        init: InitMode::Targets,
        topology: Topology::Line,
        loss: 0.0,
        duplication: 0.0,
        ranges: vec![subnet("10.32.0.0/16")],
        ..AllocationPlan::new("observers come and go", 3 + observers, 0)
    };
    let mut cluster = Cluster::stopped(seed, &plan);
    let fixed = [0, 1, 2].map(HostId);
    fixed.iter().for_each(|&id| cluster.start(id));
    let targets = |cluster: &Cluster| fixed.map(|id| cluster.current_targets(id));
    let before = targets(&cluster);
    let mut failed = 0;
    for n in 3..plan.hosts {
        cluster.start(HostId(n));
        cluster.allocate(HostId(n), 0, WHOLE_RANGE);
        cluster.allocate(HostId(n), 1, WHOLE_RANGE);
        let pause = cluster.random_millis(1, 400);
        cluster.run_for(pause);
        let old = HostId(cluster.rng.random_range(3..=n));
        match cluster.rng.random_range(0..12) {
            0..3 => cluster.reset(old),
            3 => {
                cluster.destroy_host(old);
                failed += 1;
            }
            4 => cluster.crash(old, CrashKind::PowerLost),
            _ => {}
        }
    }
    cluster.run_for(Duration::from_secs(5));
    for id in cluster.ids() {
        cluster.start(id);
    }
    cluster.await_removed_peers_forgotten();
    cluster.wait_until_served_and_agreed();
    // All donations of the removed peers are known by then. Several peers take over their space at the same time.
    let running: BTreeSet<_> =
        cluster.ids().filter(|&id| cluster.is_running(id)).map(|id| cluster.member(id).name).collect();
    let owners = cluster.member(fixed[0]).view().map(|ring| ring.owners()).unwrap_or_default();
    for (n, removed) in owners.difference(&running).enumerate() {
        cluster.with_allocator(fixed[n % 3], |a, now| a.remove_peer(&removed.to_string(), false, now));
    }
    assert!(cluster.wait_until(HEAL_TIMEOUT, Cluster::agree), "no agreement after the takeovers");
    cluster.check_always();
    cluster.ids().for_each(|id| cluster.check_single_owner(id));
    for id in cluster.ids().filter(|&id| cluster.is_running(id)) {
        let owners = cluster.member(id).view().map(|ring| ring.owners()).unwrap_or_default();
        let removed: Vec<_> = owners.difference(&running).collect();
        assert!(
            removed.is_empty() && !owners.is_empty(),
            "{id}: {removed:?} own addresses, but do not run; {failed} hosts failed for good"
        );
    }
    assert_eq!(targets(&cluster), before, "targets of the fixed peers");
    let (removed, running) = (cluster.removed_peers.len(), running.len());
    assert!(
        failed > 0 && removed > failed && running >= 10,
        "too few observers left or stayed: {failed} failed, {removed} were removed, {running} run"
    );
}

impl Cluster {
    /// Cuts a random link among the hosts up to `new`; false if the same host was drawn twice.
    fn cut_one(&mut self, new: HostId) -> bool {
        let (a, b) = (self.rng.random_range(0..=new.0), self.rng.random_range(0..=new.0));
        if a != b {
            self.world.net.set_cut(HostId(a), HostId(b), true);
        }
        a != b
    }

    fn is_served(&self) -> bool {
        self.requests.is_empty()
    }

    fn wait_until_served_and_agreed(&mut self) {
        let agreed = self.wait_until(HEAL_TIMEOUT, |cluster| cluster.is_served() && cluster.agree());
        assert!(agreed, "no agreement, or pending requests: {:?}{}", self.requests, self.views());
    }

    /// The addresses of a peer in the ring of another.
    fn owned_by(&self, peer: HostId, as_seen_by: HostId) -> BTreeSet<u32> {
        let view = self.member(as_seen_by).view();
        view.map(|ring| owned(ring, self.member(peer).name)).unwrap_or_default()
    }

    fn used_twice(&self) -> Vec<String> {
        self.users.iter().filter(|(_, users)| users.len() > 1).map(|(&addr, _)| show_addr(addr)).collect()
    }
}
