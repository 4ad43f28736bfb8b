//! The seeded suites. Each gets `SIM_SECONDS` (10 unless given) and prints how many runs it did.

use weave_sim::scenario::suite;
use weave_sim::suites;

macro_rules! suites {
    ($($name:ident = $index:literal,)*) => {
        $(
            #[test]
            fn $name() {
                let (name, plan) = &suites::all()[$index];
                suite(name, plan);
            }
        )*
    };
}

suites! {
    mesh_of_five_plain = 0,
    mesh_of_four_encrypted_on_a_bad_network = 1,
    sparse_mesh_without_discovery = 2,
    colliding_short_ids = 3,
    connection_limit = 4,
    firewalls = 5,
}
