//! Runs the simulation until a run fails, and then exits with 1: for planted bugs (`make mutants`).
//!
//! * `find_mutants allocators RUNS [PLAN]`, `find_mutants nodes RUNS [PLAN]`: the plans of address allocation whose names begin with
//!   PLAN, in turn; stops at the first failure.
//! * `find_mutants names RUNS [PLAN]`: the same for names.
//! * `find_mutants mesh SECONDS`: the plans of the mesh, in turn, until each has failed.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use weave_sim::ipam::plans::{self as allocation_plans, AllocationPlan, plan_of};
use weave_sim::ipam::scenario as allocation;
use weave_sim::names::{plans as name_plans, scenario as names};
use weave_sim::{plans, scenario};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let amount = arguments.get(1).and_then(|text| text.parse().ok());
    let plan = arguments.get(2..).unwrap_or_default().join(" ");
    let found = match (arguments.first().map(String::as_str), amount) {
        (Some("allocators"), Some(runs)) => find_in_allocation(&allocation_plans::all(), runs, &plan),
        (Some("nodes"), Some(runs)) => find_in_allocation(&allocation_plans::nodes(), runs, &plan),
        (Some("names"), Some(runs)) => find_in_names(runs, &plan),
        (Some("mesh"), Some(seconds)) => find_in_mesh(Duration::from_secs(seconds)),
        _ => {
            eprintln!("usage: find_mutants allocators|nodes|names RUNS [PLAN], find_mutants mesh SECONDS");
            std::process::exit(2);
        }
    };
    std::process::exit(i32::from(found));
}

fn find_in_allocation(plans: &[AllocationPlan], runs: u64, plan_name: &str) -> bool {
    for seed in 1..=runs {
        let plan = plan_of(seed, plans);
        if !plan.name.starts_with(plan_name) {
            continue;
        }
        if let Err(reason) = allocation::attempt(seed, plan, &allocation::generate(seed, plan)) {
            println!("run {seed}, {}: {}", plan.name, reason.lines().next().unwrap_or_default());
            return true;
        }
    }
    println!("no failure in {runs} runs");
    false
}

fn find_in_names(runs: u64, plan_name: &str) -> bool {
    let plans = name_plans::all();
    for seed in 1..=runs {
        let plan = name_plans::plan_of(seed, &plans);
        if !plan.name.starts_with(plan_name) {
            continue;
        }
        if let Err(reason) = names::attempt(seed, plan, &names::generate(seed, plan)) {
            println!("run {seed}, {}: {}", plan.name, reason.lines().next().unwrap_or_default());
            return true;
        }
    }
    println!("no failure in {runs} runs");
    false
}

fn find_in_mesh(time: Duration) -> bool {
    let started = Instant::now();
    let mut plans = plans::all();
    let count = plans.len();
    let mut runs = 0u64;
    while started.elapsed() < time && !plans.is_empty() {
        runs += 1;
        plans.retain(|plan| {
            let result = scenario::attempt(runs, plan, &scenario::generate(runs, plan));
            if let Err(reason) = &result {
                println!("{}: run {runs}: {}", plan.name, reason.lines().next().unwrap_or_default());
            }
            result.is_ok()
        });
    }
    let failed = count - plans.len();
    println!("{failed} of {count} plans failed, {runs} runs each");
    failed > 0
}
