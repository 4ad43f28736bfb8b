//! A link fails under traffic.

use std::ops::RangeInclusive;

use weave_sim::failover::{Hosts, silences};

/// Every pair of hosts talks again within a second, with loss of up to 2 % and round trips of up to 60 ms.
#[test]
fn cut_under_traffic_is_routed_around_within_a_second() {
    check("sleeve", 1..=40, Hosts::None, Hosts::None);
}

#[test]
fn cut_under_traffic_of_fastdp_is_routed_around_within_a_second() {
    check("fastdp", 1..=40, Hosts::All, Hosts::None);
}

#[test]
fn cut_under_traffic_of_warp_is_routed_around_within_a_second() {
    check("warp", 1..=40, Hosts::None, Hosts::All);
}

#[test]
fn cut_under_traffic_of_mixed_overlays_is_routed_around_within_a_second() {
    check("fastdp and sleeve", 1..=40, Hosts::Some, Hosts::None);
    check("all", 1..=60, Hosts::Some, Hosts::Some);
}

fn check(overlays: &str, seeds: RangeInclusive<u64>, fastdp: Hosts, warp: Hosts) {
    let mut all: Vec<u128> = seeds.flat_map(|seed| silences(seed, fastdp, warp)).collect();
    all.sort_unstable();
    let part = |per_cent: usize| all[(all.len() - 1) * per_cent / 100];
    println!(
        "{overlays}: longest silence of a pair: median {} ms, 99 % {} ms, all {} ms",
        part(50),
        part(99),
        part(100)
    );
    assert!(part(99) <= 1000 && part(100) <= 1100, "{:?}", &all[all.len() - 5..]);
}
