//! Random runs of address allocation: all plans in turn, for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs. `make mutants` shows
//! that they find planted bugs.

use weave_sim::ipam::{plans, scenario};

#[test]
fn addresses_over_allocators() {
    scenario::run_seeds("addresses over allocators", &plans::all());
}

#[test]
fn addresses_over_nodes() {
    scenario::run_seeds("addresses over nodes", &plans::nodes());
}
