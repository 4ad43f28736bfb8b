//! Counting host operations, so that a test can make each of them fail in turn.

use std::cell::Cell;

use nix::errno::Errno;

use crate::Error;

/// Passed along a verb that consists of several host operations: it counts them and, for tests, makes one fail before
/// it happens. What was done until then must be undone.
#[derive(Debug, Default)]
pub struct Steps {
    taken: Cell<usize>,
    fail_at: Option<usize>,
    failed: Cell<bool>,
}

impl Steps {
    /// Nothing fails on purpose.
    pub fn all() -> Steps {
        Steps::default()
    }

    /// Operation `n` (from 0) fails.
    pub fn fail_at(n: usize) -> Steps {
        Steps { fail_at: Some(n), ..Steps::default() }
    }

    /// Whether the failure asked for has happened.
    pub fn failed(&self) -> bool {
        self.failed.get()
    }

    /// How many operations were begun.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// To be called before each operation.
    pub(crate) fn begin(&self, step: &str) -> Result<(), Error> {
        let n = self.taken.replace(self.taken.get() + 1);
        if self.fail_at == Some(n) {
            self.failed.set(true);
            return Err(Error::refused(
                format!("{step} (operation {n}, made to fail)"),
                Errno::ECANCELED,
                "",
            ));
        }
        Ok(())
    }
}
