//! Address allocation: all plans in turns, for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs; and planted bugs, which
//! they must find.

use weave_sim::ipam::{known, plans, scenario};

#[test]
fn addresses() {
    scenario::suite("addresses", &plans::all(), &known::ALONE);
}

/// Most are found by the first few.
const RUNS: u64 = 800;

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

#[test]
fn known_failures_are_still_there() {
    use known::FAILING;
    std::panic::set_hook(Box::new(|_| {}));
    let plans = plans::all();
    let mended: Vec<u64> = FAILING
        .into_iter()
        .filter(|&seed| {
            let plan = scenario::plan_of(seed, &plans);
            scenario::attempt(seed, plan, &scenario::generate(seed, plan)).is_ok()
        })
        .collect();
    let _ = std::panic::take_hook();
    println!("{} seeds are known to fail", FAILING.len());
    assert!(mended.is_empty(), "take these off the list in ipam/known.rs: {mended:?}");
}
