//! Address allocation: all plans in turns, for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs; and planted bugs, which
//! they must find.

use weave_sim::ipam::{plans, scenario};

#[test]
fn addresses() {
    scenario::suite("addresses", &plans::all());
}

/// Most are found by the first few.
const RUNS: u64 = 2000;

#[test]
fn every_planted_bug_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for mutation in plans::PLANTED {
        let found = scenario::hunt(mutation, &plans::all(), RUNS);
        match found {
            Some((seed, plan, why)) => {
                let line: String = why.lines().next().unwrap_or_default().chars().take(120).collect();
                println!("{mutation:?}: run {seed}, SIM_SEED={seed}, {plan}: {line}");
            }
            None => missed.push(mutation),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found in {RUNS} runs: {missed:?}");
}
