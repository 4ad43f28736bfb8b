//! Waiting for a condition with a deadline: the only way in which the lab waits.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// What a condition may answer: `bool`, `Option` or `Result`.
pub trait Attempt {
    /// What is handed out when the condition holds.
    type Value;
    /// The value, or why it does not hold yet.
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

/// Tries `condition` until it holds or `deadline` has passed. The error tells what was waited for and the last reason.
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

/// As [`within`], but panics when the deadline has passed.
#[track_caller]
pub fn eventually<A: Attempt>(what: &str, deadline: Duration, condition: impl FnMut() -> A) -> A::Value {
    match within(what, deadline, condition) {
        Ok(value) => value,
        Err(text) => panic!("{text}"),
    }
}

/// Watches for a while that something stays so; for what must *not* happen.
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
