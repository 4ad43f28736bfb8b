//! Address allocation: all plans in turns, for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs. `make mutants` shows that they find
//! planted bugs.

use weave_sim::ipam::{plans, scenario};

#[test]
fn addresses() {
    scenario::suite("addresses", &plans::all());
}
