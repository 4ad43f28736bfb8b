//! A network card loses what it cuts: that host does without, and nobody else. Loss alone is not mistaken for that.

use weave_sim::broken_segmentation::{loss_and_slowness_are_no_evidence, notices_and_recovers};

#[test]
fn a_card_that_loses_segments_is_noticed_and_its_repair_too() {
    (1..=10).for_each(notices_and_recovers);
}

#[test]
fn loss_and_slow_machines_are_not_mistaken_for_a_broken_card() {
    (1..=20).for_each(loss_and_slowness_are_no_evidence);
}
