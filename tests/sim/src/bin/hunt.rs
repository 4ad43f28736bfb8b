//! Runs every suite for so many seconds (20 unless given), in turns, and says at which run each first failed. For mutants:
//! change a machine, run this, change it back (docs/testing.md).
#![forbid(unsafe_code)]

use std::panic;
use std::time::Duration;

use weave_sim::scenario::{attempt, generate};
use weave_sim::suites;

#[expect(clippy::disallowed_methods, reason = "how long to hunt is real time")]
fn main() {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(20);
    panic::set_hook(Box::new(|_| {}));
    let started = std::time::Instant::now();
    let mut found = 0;
    let suites = suites::all();
    let mut failed = suites.clone().map(|_| false);
    let mut runs = 0u64;
    while started.elapsed() < Duration::from_secs(seconds) && !failed.iter().all(|f| *f) {
        runs += 1;
        for ((name, plan), failed) in suites.iter().zip(&mut failed) {
            if *failed {
                continue;
            }
            if let Err(reason) = attempt(runs, plan, &generate(runs, plan)) {
                *failed = true;
                found += 1;
                println!("{name}: run {runs}: {}", reason.lines().next().unwrap_or_default());
            }
        }
    }
    println!(
        "{found} of {} suites failed, {runs} runs each, {} s",
        suites.len(),
        started.elapsed().as_secs()
    );
    std::process::exit(i32::from(found > 0));
}
