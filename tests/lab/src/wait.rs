//! Steps of a test, and waiting for a condition with a deadline. The lab waits in no other way.

use std::cell::Cell;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// The result of a condition: `bool`, `Option` or `Result`.
pub trait Attempt {
    type Value;
    /// The value, or why the condition does not hold yet.
    fn attempt(self) -> Result<Self::Value, String>;
}

impl Attempt for bool {
    type Value = ();
    fn attempt(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not yet".to_owned()) }
    }
}

impl<T> Attempt for Option<T> {
    type Value = T;
    fn attempt(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl<T, E: Display> Attempt for Result<T, E> {
    type Value = T;
    fn attempt(self) -> Result<T, String> {
        self.map_err(|e| format!("{e:#}"))
    }
}

thread_local! {
    static STEP: Cell<&'static str> = const { Cell::new("") };
}

/// Names the next part of a long test. If the test fails, the name is printed.
pub fn step(name: &'static str) {
    STEP.set(name);
}

/// The part that this thread is in.
pub(crate) fn current_step() -> &'static str {
    STEP.get()
}

/// Tries `condition` until it holds or `deadline` has passed. The error contains `what` and the last reason.
pub fn within<A: Attempt>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> A,
) -> Result<A::Value, String> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match condition().attempt() {
            Ok(value) => return Ok(value),
            Err(reason) if start.elapsed() >= deadline => {
                return Err(format!("waited {deadline:?} for {what}: {reason}"));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// As [`within`], but panics after the deadline.
#[track_caller]
pub fn eventually<A: Attempt>(what: &str, deadline: Duration, condition: impl FnMut() -> A) -> A::Value {
    match within(what, deadline, condition) {
        Ok(value) => value,
        Err(text) => panic!("{text}"),
    }
}

/// Checks for a while that a condition keeps holding, for what must not happen.
#[track_caller]
pub fn throughout<A: Attempt>(what: &str, time: Duration, mut condition: impl FnMut() -> A) {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Err(reason) = condition().attempt() {
            panic!("{what} held for {:?} only: {reason}", start.elapsed());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
