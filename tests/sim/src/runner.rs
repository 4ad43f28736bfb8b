//! What all random runs have in common: they run seeds within a budget, catch failures, and shorten a failing list of transitions.

use std::cell::Cell;
use std::fmt::{Debug, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

thread_local! {
    static EXPECTS_PANIC: Cell<bool> = const { Cell::new(false) };
}

/// The result of a run, or the text of its panic, which is printed by the usual hook only with `SIM_TRACE`.
pub(crate) fn catch_failure<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !EXPECTS_PANIC.get() || std::env::var_os("SIM_TRACE").is_some() {
                print(panic);
            }
        }));
    });
    EXPECTS_PANIC.set(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    EXPECTS_PANIC.set(false);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })
}

/// Runs seeds within the budget of the environment, of whose time the suite gets one part in `parts`; prints the number of runs.
/// `attempt` returns the number of events.
///
/// # Panics
/// At the first failure, with the seed and the shortest list of transitions that fails.
pub(crate) fn run_seeds<'a, P: 'a, T: Clone + Debug>(
    name: &str,
    parts: u32,
    plan_of: impl Fn(u64) -> (&'a str, &'a P),
    generate: impl Fn(u64, &P) -> Vec<T>,
    attempt: impl Fn(u64, &P, &[T]) -> Result<u64, String>,
) {
    let mut budget = SeedBudget::from_environment(parts);
    let (mut runs, mut events) = (0u64, 0);
    while let Some(seed) = budget.next() {
        let (plan_name, plan) = plan_of(seed);
        let transitions = generate(seed, plan);
        match attempt(seed, plan, &transitions) {
            Ok(count) => events += count,
            Err(reason) => {
                let retry = |transitions: &[T]| attempt(seed, plan, transitions);
                panic!("{}", shorten_failure(plan_name, seed, transitions, reason, retry));
            }
        }
        runs += 1;
        if runs.is_multiple_of(10_000) {
            println!("{name}: {runs} runs so far, {} s", budget.elapsed_seconds());
        }
    }
    println!("{name}: {runs} runs, {events} events, {} s", budget.elapsed_seconds());
}

/// The seeds to run: one (`SIM_SEED`), a number of seeds (`SIM_RUNS`), or at least one for a time (`SIM_SECONDS`, 10 unless given).
/// `SIM_FIRST` is the first seed, 1 unless given.
struct SeedBudget {
    first: u64,
    next: u64,
    last: Option<u64>,
    time: Duration,
    started: Instant,
}

impl SeedBudget {
    fn from_environment(parts: u32) -> SeedBudget {
        let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
        let (seed, runs) = (number("SIM_SEED"), number("SIM_RUNS"));
        let first = seed.or_else(|| number("SIM_FIRST")).unwrap_or(1);
        let last = seed.or_else(|| runs.map(|runs| first.saturating_add(runs).saturating_sub(1)));
        let time = Duration::from_secs(number("SIM_SECONDS").unwrap_or(10)) / parts;
        SeedBudget { first, next: first, last, time, started: Instant::now() }
    }

    fn elapsed_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

impl Iterator for SeedBudget {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let over = match self.last {
            Some(last) => self.next > last,
            None => self.next > self.first && self.started.elapsed() >= self.time,
        };
        let seed = self.next;
        self.next += 1;
        (!over).then_some(seed)
    }
}

/// Shortens a failing list by leaving out smaller and smaller groups while the rest still fails; returns the text of the failure.
fn shorten_failure<T: Clone + Debug>(
    name: &str,
    seed: u64,
    mut transitions: Vec<T>,
    mut reason: String,
    attempt: impl Fn(&[T]) -> Result<u64, String>,
) -> String {
    let mut group = transitions.len().div_ceil(2);
    while group > 0 && std::env::var_os("SIM_NO_SHORTEN").is_none() {
        let mut start = 0;
        while start < transitions.len() {
            let mut shorter = transitions.clone();
            shorter.drain(start..(start + group).min(transitions.len()));
            match attempt(&shorter) {
                Err(text) => (transitions, reason) = (shorter, text),
                Ok(_) => start += group,
            }
        }
        group /= 2;
    }
    let mut text =
        format!("{name}: seed {seed} fails (SIM_SEED={seed} replays it): {reason}\nshortest transitions:\n");
    for transition in &transitions {
        let _ = writeln!(text, "  {transition:?}");
    }
    text
}
