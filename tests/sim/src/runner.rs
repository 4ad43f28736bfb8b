//! Common parts of all seeded suites: runs that may fail, the budget of seeds, and the shortest failing list of transitions.

use std::cell::Cell;
use std::fmt::{Debug, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

thread_local! {
    static EXPECTS_PANIC: Cell<bool> = const { Cell::new(false) };
}

/// The result of a run, or the text of its panic, which is printed at once only with `SIM_TRACE`.
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

/// Runs seeds within the budget of the environment; prints the number of runs. `attempt` returns the number of events.
///
/// # Panics
/// At the first failure, with the seed and the shortest list of transitions that fails.
pub(crate) fn suite<'a, P: 'a, T: Clone + Debug>(
    name: &str,
    plan_of: impl Fn(u64) -> (&'a str, &'a P),
    generate: impl Fn(u64, &P) -> Vec<T>,
    attempt: impl Fn(u64, &P, &[T]) -> Result<u64, String>,
) {
    let mut budget = SeedBudget::from_environment();
    let (mut runs, mut events) = (0u64, 0);
    while let Some(seed) = budget.next() {
        let (plan_name, plan) = plan_of(seed);
        let transitions = generate(seed, plan);
        match attempt(seed, plan, &transitions) {
            Ok(count) => events += count,
            Err(reason) => {
                let again = |transitions: &[T]| attempt(seed, plan, transitions).map(|_| ());
                panic!("{}", shorten_failure(plan_name, seed, transitions, reason, again));
            }
        }
        runs += 1;
        if runs.is_multiple_of(10_000) {
            println!("{name}: {runs} runs so far, {} s", budget.seconds());
        }
    }
    println!("{name}: {runs} runs, {events} events, {} s", budget.seconds());
}

/// The seeds to run: one (`SIM_SEED`), a number of seeds (`SIM_RUNS`), or seeds for a time (`SIM_SECONDS`, 10 unless given).
struct SeedBudget {
    next: u64,
    last: Option<u64>,
    seconds: u64,
    started: Instant,
    started_one: bool,
}

impl SeedBudget {
    fn from_environment() -> SeedBudget {
        let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
        let (seed, runs) = (number("SIM_SEED"), number("SIM_RUNS"));
        let first = seed.or_else(|| number("SIM_FIRST")).unwrap_or(1);
        let last = seed.or_else(|| runs.map(|runs| first.saturating_add(runs).saturating_sub(1)));
        let seconds = number("SIM_SECONDS").unwrap_or(10);
        SeedBudget { next: first, last, seconds, started: Instant::now(), started_one: false }
    }

    /// Seconds since the first run.
    fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

impl Iterator for SeedBudget {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let over = match self.last {
            Some(last) => self.next > last,
            None => self.started_one && self.started.elapsed() >= Duration::from_secs(self.seconds),
        };
        let seed = self.next;
        self.next += 1;
        self.started_one = true;
        (!over).then_some(seed)
    }
}

/// Shortens a failing list by leaving out smaller and smaller groups while the rest still fails; returns the text of the failure.
fn shorten_failure<T: Clone + Debug>(
    name: &str,
    seed: u64,
    mut transitions: Vec<T>,
    mut reason: String,
    attempt: impl Fn(&[T]) -> Result<(), String>,
) -> String {
    let mut group = transitions.len().div_ceil(2);
    while group > 0 && std::env::var_os("SIM_NO_SHORTEN").is_none() {
        let mut start = 0;
        while start < transitions.len() {
            let mut shorter = transitions.clone();
            shorter.drain(start..(start + group).min(transitions.len()));
            match attempt(&shorter) {
                Err(text) => (transitions, reason) = (shorter, text),
                Ok(()) => start += group,
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
