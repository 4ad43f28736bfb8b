//! Random runs find faults of the driver: each is planted in every host, and a run must fail.

use weave_sim::ipam::plans::{AllocationPlan, plan_of};
use weave_sim::plans::Plan;
use weave_sim::scenario::{attempt, generate};
use weave_sim::{DriverFault, ipam, plans};

/// Bounds; most faults are found by the first run.
const MESH_RUNS: u64 = 25;
/// Number of plans that are run with each fault; the first ones suffice.
const MESH_PLANS: usize = 4;
const ALLOCATION_RUNS: u64 = 300;

/// Seed, plan and reason.
type Failure = (u64, &'static str, String);

#[test]
fn mesh_plans_find_every_driver_fault() {
    let plans = plans::all();
    require_all(&DriverFault::MESH, |fault| {
        (1..=MESH_RUNS).find_map(|seed| {
            plans.iter().take(MESH_PLANS).find_map(|plan| {
                let plan = Plan { driver_fault: Some(fault), ..plan.clone() };
                let why = attempt(seed, &plan, &generate(seed, &plan)).err()?;
                Some((seed, plan.name, why))
            })
        })
    });
}

#[test]
fn allocation_plans_find_every_driver_fault() {
    let plans = ipam::plans::nodes();
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
            Some((seed, plan, why)) => {
                println!("{fault:?}: {plan}, run {seed}: {}", why.lines().next().unwrap_or_default());
            }
            None => missed.push(fault),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
