//! `list_failures FIRST RUNS [nodes]`: runs the plans of address allocation with RUNS seeds (1,000 unless given), over allocators alone
//! or over whole nodes, and lists every kind of failure with its seeds.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use weave_sim::ipam::plans::{self, plan_of};
use weave_sim::ipam::scenario::{attempt, generate};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let first: u64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(1);
    let runs: u64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(1000);
    let plans = if arguments.next().as_deref() == Some("nodes") { plans::nodes() } else { plans::all() };
    let started = std::time::Instant::now();
    let mut kinds: BTreeMap<String, (Vec<u64>, String)> = BTreeMap::new();
    let mut events = 0;
    for seed in first..first + runs {
        let plan = plan_of(seed, &plans);
        match attempt(seed, plan, &generate(seed, plan)) {
            Ok(count) => events += count,
            Err(reason) => {
                let letters = |c: char| c.is_ascii_alphabetic() || c == ' ';
                let line = reason.lines().next().unwrap_or_default();
                let kind: String = line.chars().filter(|&c| letters(c)).take(40).collect();
                let kind = format!("{}: {kind}", plan.name);
                let first = || {
                    eprintln!("seed {seed}: {line}");
                    (Vec::new(), reason.chars().take(if runs == 1 { 4000 } else { 300 }).collect())
                };
                kinds.entry(kind).or_insert_with(first).0.push(seed);
            }
        }
        if (seed - first + 1).is_multiple_of(10_000) {
            eprintln!("{} runs so far, {} s", seed - first + 1, started.elapsed().as_secs());
        }
    }
    for (kind, (seeds, line)) in &kinds {
        println!("{} times, by seeds {seeds:?}: {kind}\n    {line}", seeds.len());
    }
    let seconds = started.elapsed().as_secs();
    println!("{runs} runs, {events} events, {} kinds of failure, {seconds} s", kinds.len());
    std::process::exit(i32::from(!kinds.is_empty()));
}
