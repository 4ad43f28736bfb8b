//! Failures on purpose. Every operation on the host passes a [`point`]; with feature `faults` a test can have this process
//! killed at one of them, or have the operation fail there.
//!
//! `WEAVE_FAULT=<mode>:<command>:<n>:<file>`: at the `n`th point (from 0) of a process whose first argument is `command`,
//! mode `kill` ends the process as SIGKILL does, and a number is the kernel's error with which the operation fails. The step
//! is written to `file` first; nothing happens if that exists. Points count until [`started`].
//!
//! What a process does for somebody who asks it runs in a [`scope`] with a name of its own. `WEAVE_FAULT_PLAN` names a file
//! that is read whenever one begins and has the same form: points count that are passed in scopes of that name, for as long as
//! the file stays as it is. Without the feature points cost and do nothing.

use std::fmt::Display;

use nix::errno::Errno;

/// To be passed before an operation on the host. An error takes the place of the operation's own.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn point(_step: &dyn Display) -> Result<(), Errno> {
    Ok(())
}

/// While it lives, this thread works for somebody.
#[cfg(not(feature = "faults"))]
#[derive(Debug)]
pub struct Scope;

/// Begins a [`Scope`].
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn scope(_name: &'static str) -> Scope {
    Scope
}

/// The process has done what its command is: what it does from here on is not counted, except in scopes.
#[cfg(not(feature = "faults"))]
#[inline(always)]
pub fn started() {}

#[cfg(feature = "faults")]
pub use injected::{Scope, point, scope, started};

/// The same for operations that fail as files do.
///
/// # Errors
/// As [`point`].
pub fn io_point(step: &dyn Display) -> std::io::Result<()> {
    point(step).map_err(Into::into)
}

#[cfg(feature = "faults")]
mod injected {
    use std::cell::Cell;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    use nix::sys::signal::{Signal, raise};

    use super::{Display, Errno};

    #[derive(Clone, Debug)]
    struct Plan {
        /// `None`: kill.
        errno: Option<Errno>,
        of: String,
        at: usize,
        file: String,
    }

    /// The plan for scopes, as it was last read, and how many of its points were passed.
    #[derive(Debug)]
    struct Asked {
        text: String,
        plan: Option<Plan>,
        passed: usize,
    }

    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    static STARTED: AtomicBool = AtomicBool::new(false);
    static ASKED: Mutex<Asked> = Mutex::new(Asked { text: String::new(), plan: None, passed: 0 });

    thread_local! {
        static SCOPE: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// See the module.
    #[derive(Debug)]
    pub struct Scope(());

    impl Drop for Scope {
        fn drop(&mut self) {
            SCOPE.set(None);
        }
    }

    /// See the module.
    pub fn scope(name: &'static str) -> Scope {
        let text = std::env::var("WEAVE_FAULT_PLAN").ok().and_then(|path| std::fs::read_to_string(path).ok());
        let text = text.unwrap_or_default();
        let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.text != text {
            *asked = Asked { plan: parse(text.trim()), text, passed: 0 };
        }
        SCOPE.set(Some(name));
        Scope(())
    }

    /// See the module.
    pub fn started() {
        STARTED.store(true, Ordering::Relaxed);
    }

    fn parse(text: &str) -> Option<Plan> {
        let mut parts = text.splitn(4, ':');
        let (mode, of, at, file) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let errno = match mode {
            "kill" => None,
            number => Some(Errno::from_raw(number.parse().ok()?)),
        };
        Some(Plan { errno, of: of.to_owned(), at: at.parse().ok()?, file: file.to_owned() })
    }

    /// The plan whose turn it is at this point.
    fn due() -> Option<Plan> {
        if let Some(name) = SCOPE.get() {
            let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
            let plan = asked.plan.clone().filter(|plan| plan.of == name)?;
            asked.passed += 1;
            return (asked.passed == plan.at + 1).then_some(plan);
        }
        let plan = PLAN.get_or_init(|| {
            let plan = parse(&std::env::var("WEAVE_FAULT").ok()?)?;
            (std::env::args().nth(1)? == plan.of).then_some(plan)
        });
        let plan = plan.as_ref().filter(|_| !STARTED.load(Ordering::Relaxed))?;
        (PASSED.fetch_add(1, Ordering::Relaxed) == plan.at).then(|| plan.clone())
    }

    /// See the module.
    ///
    /// # Errors
    /// If the plan says so.
    pub fn point(step: &dyn Display) -> Result<(), Errno> {
        let Some(plan) = due() else { return Ok(()) };
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
