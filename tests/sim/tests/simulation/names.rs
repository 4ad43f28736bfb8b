//! Random runs of the registry of names: all plans in turn, for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs. `make mutants`
//! shows that they find planted bugs.

use weave_sim::names::{plans, scenario};

#[test]
fn names_over_nodes() {
    scenario::run_seeds(&plans::all());
}

#[test]
fn tombstones_are_forgotten() {
    scenario::forget_tombstones(&plans::all()[0]);
}
