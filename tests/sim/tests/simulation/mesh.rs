//! Random runs of the mesh: each plan for `SIM_SECONDS` (10 unless given) or `SIM_RUNS` runs.

use weave_sim::plans;
use weave_sim::scenario::run_seeds;

/// A test for each plan, which is given by its index.
macro_rules! tests_of_plans {
    ($($name:ident = $index:literal,)*) => {
        $(
            #[test]
            fn $name() {
                run_seeds(&plans::all()[$index]);
            }
        )*
    };
}

tests_of_plans! {
    mesh_of_five_plain = 0,
    mesh_of_four_encrypted_on_a_bad_network = 1,
    sparse_mesh_without_discovery = 2,
    colliding_short_ids = 3,
    connection_limit = 4,
    firewalls = 5,
}
