//! A sparse mesh that is larger than those of the plans. `make scale` runs up to 1,000 peers.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_sim::{CrashKind, Faults, HostId, HostOptions, World, invariants};

#[test]
fn sixty_peers_agree_again_after_six_have_restarted() {
    let mut world = World::new(1, Faults { split_stream_randomly: true, ..Faults::default() });
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let options = HostOptions { discovery: false, ..HostOptions::default() };
    for n in 0..60u16 {
        let mut targets: BTreeSet<HostId> = n.checked_sub(1).map(HostId).into_iter().collect();
        for _ in 0..2 {
            targets.extend((n > 1).then(|| HostId(rng.random_range(0..n - 1))));
        }
        world.add(HostId(n), options.clone(), &targets.into_iter().collect::<Vec<_>>());
    }
    invariants::wait_for_convergence(&mut world, false);
    invariants::check_tables(&world);
    // Six of them restart, with a new UID each.
    for n in (0..60u16).step_by(10) {
        world.crash(HostId(n), CrashKind::Killed);
    }
    world.run_for(std::time::Duration::from_secs(10));
    for n in (0..60u16).step_by(10) {
        world.start(HostId(n), &[]);
    }
    invariants::wait_for_convergence(&mut world, false);
    invariants::check_always(&mut world);
    invariants::check_tables(&world);
}
