//! Failures on purpose. Every operation on the host passes a [`point`]; with feature `faults` a test can have this process
//! killed at one of them, or have the operation fail there.
//!
//! `WEAVE_FAULT=<mode>:<command>:<n>:<file>`: at the `n`th point (from 0) of a process whose first argument is `command`,
//! mode `kill` ends the process as SIGKILL does, and a number is the kernel's error with which the operation fails. The step
//! is written to `file` first; nothing happens if that exists. Without the feature points cost and do nothing.

use std::fmt::Display;

use nix::errno::Errno;

/// To be passed before an operation on the host. An error takes the place of the operation's own.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_step: &dyn Display) -> Result<(), Errno> {
    Ok(())
}

#[cfg(feature = "faults")]
pub use injected::point;

/// The same for operations that fail as files do.
///
/// # Errors
/// As [`point`].
pub fn io_point(step: &dyn Display) -> std::io::Result<()> {
    point(step).map_err(Into::into)
}

#[cfg(feature = "faults")]
mod injected {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use nix::sys::signal::{Signal, raise};

    use super::{Display, Errno};

    struct Plan {
        /// `None`: kill.
        errno: Option<Errno>,
        at: usize,
        file: String,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);

    fn plan() -> Option<Plan> {
        let text = std::env::var("WEAVE_FAULT").ok()?;
        let mut parts = text.splitn(4, ':');
        let (mode, command, at, file) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let errno = match mode {
            "kill" => None,
            number => Some(Errno::from_raw(number.parse().ok()?)),
        };
        (std::env::args().nth(1)? == command).then_some(Plan {
            errno,
            at: at.parse().ok()?,
            file: file.to_owned(),
        })
    }

    /// See the module.
    ///
    /// # Errors
    /// If the plan says so.
    pub fn point(step: &dyn Display) -> Result<(), Errno> {
        let Some(plan) = PLAN.get_or_init(plan) else { return Ok(()) };
        if PASSED.fetch_add(1, Ordering::Relaxed) != plan.at {
            return Ok(());
        }
        let Ok(mut file) = OpenOptions::new().write(true).create_new(true).open(&plan.file) else {
            return Ok(());
        };
        let _ = writeln!(file, "{step}");
        match plan.errno {
            Some(errno) => Err(errno),
            None => {
                let _ = raise(Signal::SIGKILL);
                Ok(())
            }
        }
    }
}
