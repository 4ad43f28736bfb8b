//! The seeded suites. Each gets `SIM_SECONDS` (10 unless given) and prints how many runs it did.

use weave_sim::Faults;
use weave_sim::scenario::{Plan, suite};

fn plan(hosts: u16, length: usize) -> Plan {
    Plan { hosts, length, password: None, discovery: true, faults: Faults::default() }
}

#[test]
fn mesh_of_five_plain() {
    suite("mesh of five, plain", &plan(5, 40));
}

#[test]
fn mesh_of_four_encrypted_on_a_bad_network() {
    let faults = Faults { loss: 0.05, duplication: 0.02, ..Faults::default() };
    suite("mesh of four, encrypted, lossy", &Plan { password: Some("wEaVe"), faults, ..plan(4, 40) });
}

#[test]
fn line_without_discovery() {
    suite("line of six without discovery", &Plan { discovery: false, ..plan(6, 40) });
}
