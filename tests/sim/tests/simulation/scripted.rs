//! Fixed sequences of events of address allocation in whole nodes.

use weave_sim::ipam::scripted;

/// Names the rows of docs/claims.md that were shown; `make claims` looks for the call and for the lines.
macro_rules! claims {
    ($($id:literal),+) => {
        $(println!("claim {} shown", $id);)+
    };
}

/// Row S-8 of docs/claims.md, except for its run with real hosts.
#[test]
fn s_8_peers_added_one_by_one_with_consensus_are_one_ring() {
    for seed in 1..=20 {
        println!("seed {seed}");
        scripted::peers_are_added_one_by_one(seed);
    }
}

#[test]
fn s_29_fixed_cluster_continues_while_observers_come_and_go() {
    scripted::observers_come_and_go(1, 200);
    claims!("S-29");
}

#[test]
fn p_16_premature_removal_of_a_donor_causes_no_unreported_duplicates() {
    for seed in 1..=10 {
        println!("seed {seed}");
        scripted::donor_removed_before_donation_is_known(seed, true);
        scripted::donor_removed_before_donation_is_known(seed, false);
    }
    claims!("P-16");
}
