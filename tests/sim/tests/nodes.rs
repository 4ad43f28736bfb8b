//! Address allocation over whole nodes: all plans in turns, for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs; planted
//! bugs, which they must find; and stories.

use weave_sim::ipam::{plans, scenario};

#[test]
fn addresses_over_nodes() {
    scenario::suite("addresses over nodes", &plans::nodes());
}
