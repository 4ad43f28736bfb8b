//! Random runs find faults of the driver: each is planted in every host, and a run must fail.

use weave_sim::ipam::plans::{self, AllocationPlan, plan_of};
use weave_sim::scenario::{attempt, generate};
use weave_sim::{DriverFault, ipam, suites};

/// Most faults are found by the first run.
const MESH_RUNS: u64 = 25;
const ALLOCATION_RUNS: u64 = 300;

type Failure = (u64, &'static str, String);

#[test]
fn mesh_suites_find_every_driver_fault() {
    let suites = suites::all();
    require_all(&DriverFault::MESH, |fault| {
        (1..=MESH_RUNS).find_map(|seed| {
            suites.iter().take(4).find_map(|(name, plan)| {
                let plan = suites::Plan { driver_fault: Some(fault), ..plan.clone() };
                let why = attempt(seed, &plan, &generate(seed, &plan)).err()?;
                Some((seed, *name, why))
            })
        })
    });
}

#[test]
fn allocation_plans_find_every_driver_fault() {
    let plans = plans::nodes();
    require_all(&DriverFault::ALLOCATION, |fault| {
        (1..=ALLOCATION_RUNS).find_map(|seed| {
            let plan = AllocationPlan { driver_fault: Some(fault), ..plan_of(seed, &plans).clone() };
            let transitions = ipam::scenario::generate(seed, &plan);
            let why = ipam::scenario::attempt(seed, &plan, &transitions).err()?;
            Some((seed, plan.name, why))
        })
    });
}

fn require_all(faults: &[DriverFault], find: impl Fn(DriverFault) -> Option<Failure>) {
    let mut missed = Vec::new();
    for &fault in faults {
        match find(fault) {
            Some((run, plan, why)) => {
                println!("{fault:?}: {plan}, run {run}: {}", why.lines().next().unwrap_or_default());
            }
            None => missed.push(fault),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
