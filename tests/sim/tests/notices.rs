//! The suites notice mistakes: each is planted in every driver of a world, and the runs must fail.

use weave_sim::scenario::{attempt, generate};
use weave_sim::{Sabotage, suites};

/// Most are found by the first.
const RUNS: u64 = 25;

#[test]
fn every_sabotage_is_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for sabotage in Sabotage::ALL {
        let found = (1..=RUNS).find_map(|seed| {
            suites::all().iter().take(4).find_map(|(name, plan)| {
                let mut plan = plan.clone();
                plan.sabotage = Some(sabotage);
                attempt(seed, &plan, &generate(seed, &plan)).err().map(|why| (seed, *name, why))
            })
        });
        match found {
            Some((run, name, why)) => {
                println!("{sabotage:?}: {name}, run {run}: {}", why.lines().next().unwrap_or_default());
            }
            None => missed.push(sabotage),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not noticed in {RUNS} runs: {missed:?}");
}
