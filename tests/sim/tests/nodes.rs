//! Address allocation over whole nodes: all plans in turns, for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs; mistakes
//! of the driver, which they must find; and stories.

use weave_sim::Sabotage;
use weave_sim::ipam::scenario::{Plan, attempt, generate, plan_of, suite};
use weave_sim::ipam::{plans, stories};

/// Says which rows of docs/claims.md were shown; `make claims` looks for the call and for the lines.
macro_rules! claims {
    ($($id:literal),+) => {
        $(println!("claim {} shown", $id);)+
    };
}

#[test]
fn addresses_over_nodes() {
    suite("addresses over nodes", &plans::nodes());
}

/// Most are found by the first few.
const RUNS: u64 = 300;

/// The first run that fails with a mistake in the driver, and how.
fn find(sabotage: Sabotage) -> Option<(u64, &'static str, String)> {
    let plans = plans::nodes();
    (1..=RUNS).find_map(|seed| {
        let plan = Plan { sabotage: Some(sabotage), ..plan_of(seed, &plans).clone() };
        let why = attempt(seed, &plan, &generate(seed, &plan)).err()?;
        Some((seed, plan.name, why))
    })
}

#[test]
fn every_mistake_of_the_driver_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for sabotage in Sabotage::OF_ADDRESSES {
        match find(sabotage) {
            Some((seed, plan, why)) => {
                let line: String = why.lines().next().unwrap_or_default().chars().take(120).collect();
                println!("{sabotage:?}: run {seed}, {plan}: {line}");
            }
            None => missed.push(sabotage),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found in {RUNS} runs: {missed:?}");
}

/// Row S-8 of docs/claims.md, but for its run with real hosts.
#[test]
fn s_8_peers_added_one_by_one_with_consense_are_one_ring() {
    for seed in 1..=20 {
        println!("seed {seed}");
        stories::one_by_one(seed);
    }
}

#[test]
fn s_29_observers_come_and_go() {
    stories::observers_come_and_go(1, 200);
    claims!("S-29");
}

#[test]
fn p_16_a_giver_is_removed_before_its_gift_is_known() {
    for seed in 1..=10 {
        println!("seed {seed}");
        stories::removed_before_it_was_known(seed, true);
        stories::removed_before_it_was_known(seed, false);
    }
    claims!("P-16");
}
