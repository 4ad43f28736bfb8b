//! Machines are slow under traffic: no connection ends, no path MTU falls, and afterwards all is as before.

use std::time::Duration;

use weave_node::WarpConfig;
use weave_sim::slow_machines::run;

fn check(overlay: &str, fastdp: bool, warp: bool) {
    let warp = warp.then(|| WarpConfig::new(true));
    let longest: Option<Duration> = (1..=12).map(|seed| run(seed, fastdp, warp)).max();
    println!("{overlay}: recovery after the load: {longest:?} at most");
}

#[test]
fn slow_machines_with_sleeve() {
    check("sleeve", false, false);
}

#[test]
fn slow_machines_with_fastdp() {
    check("fastdp", true, false);
}

#[test]
fn slow_machines_with_warp() {
    check("warp", false, true);
}
