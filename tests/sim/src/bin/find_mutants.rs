//! Runs the simulation until a run fails, and exits with 1 then: for bugs that were planted (`make mutants`).
//!
//! * `find_mutants allocators RUNS [PLAN]`, `find_mutants nodes RUNS [PLAN]`: the plans of address allocation whose names begin with
//!   PLAN, in turns; stops at the first failure.
//! * `find_mutants mesh SECONDS`: the suites of the mesh, in turns, until each has failed.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use weave_sim::ipam::plans::{self, AllocationPlan, plan_of};
use weave_sim::ipam::scenario as ipam;
use weave_sim::{scenario, suites};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let amount = arguments.get(1).and_then(|text| text.parse().ok());
    let plan = arguments.get(2..).unwrap_or_default().join(" ");
    let found = match (arguments.first().map(String::as_str), amount) {
        (Some("allocators"), Some(runs)) => find_in_plans(&plans::all(), runs, &plan),
        (Some("nodes"), Some(runs)) => find_in_plans(&plans::nodes(), runs, &plan),
        (Some("mesh"), Some(seconds)) => find_in_suites(Duration::from_secs(seconds)),
        _ => {
            eprintln!("usage: find_mutants allocators|nodes RUNS [PLAN], find_mutants mesh SECONDS");
            std::process::exit(2);
        }
    };
    std::process::exit(i32::from(found));
}

fn find_in_plans(plans: &[AllocationPlan], runs: u64, plan_name: &str) -> bool {
    for seed in 1..=runs {
        let plan = plan_of(seed, plans);
        if !plan.name.starts_with(plan_name) {
            continue;
        }
        if let Err(reason) = ipam::attempt(seed, plan, &ipam::generate(seed, plan)) {
            println!("run {seed}, {}: {}", plan.name, reason.lines().next().unwrap_or_default());
            return true;
        }
    }
    println!("no failure in {runs} runs");
    false
}

fn find_in_suites(time: Duration) -> bool {
    let started = Instant::now();
    let suites = suites::all();
    let mut failed = suites.clone().map(|_| false);
    let mut runs = 0u64;
    while started.elapsed() < time && !failed.iter().all(|failed| *failed) {
        runs += 1;
        for ((name, plan), failed) in suites.iter().zip(&mut failed).filter(|(_, failed)| !**failed) {
            if let Err(reason) = scenario::attempt(runs, plan, &scenario::generate(runs, plan)) {
                *failed = true;
                println!("{name}: run {runs}: {}", reason.lines().next().unwrap_or_default());
            }
        }
    }
    let found = failed.iter().filter(|failed| **failed).count();
    println!("{found} of {} suites failed, {runs} runs each", suites.len());
    found > 0
}
