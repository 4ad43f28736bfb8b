//! What all seeded suites share: runs that may fail, how long to go on, and the shortest list that still fails.

use std::fmt::{Debug, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a run gives, or what it failed with.
pub(crate) fn guarded<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })
}

/// Which seeds to run: one (`SIM_SEED`), so many (`SIM_RUNS`), or for so long (`SIM_SECONDS`, 10 unless given).
pub(crate) struct Budget {
    next: u64,
    last: Option<u64>,
    seconds: u64,
    started: Instant,
    begun: bool,
}

impl Budget {
    /// As the environment says.
    pub(crate) fn from_environment() -> Budget {
        let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
        let (seed, runs) = (number("SIM_SEED"), number("SIM_RUNS"));
        let first = seed.or_else(|| number("SIM_FIRST")).unwrap_or(1);
        let last = seed.or_else(|| runs.map(|runs| first.saturating_add(runs).saturating_sub(1)));
        let seconds = number("SIM_SECONDS").unwrap_or(10);
        Budget { next: first, last, seconds, started: Instant::now(), begun: false }
    }

    /// Seconds since the first.
    pub(crate) fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

impl Iterator for Budget {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let over = match self.last {
            Some(last) => self.next > last,
            None => self.begun && self.started.elapsed() >= Duration::from_secs(self.seconds),
        };
        let seed = self.next;
        self.next += 1;
        self.begun = true;
        (!over).then_some(seed)
    }
}

/// Leaves out transitions, ever smaller groups, as long as the rest still fails; the text that a failure shows.
pub(crate) fn describe<T: Clone + Debug>(
    name: &str,
    seed: u64,
    mut transitions: Vec<T>,
    mut reason: String,
    attempt: impl Fn(&[T]) -> Result<(), String>,
) -> String {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
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
    std::panic::set_hook(hook);
    let mut text =
        format!("{name}: seed {seed} fails (SIM_SEED={seed} replays it): {reason}\nshortest transitions:\n");
    for transition in &transitions {
        let _ = writeln!(text, "  {transition:?}");
    }
    text
}
