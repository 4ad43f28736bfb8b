//! Makes operations on the host fail, for tests. Every such operation passes a [`fail_point`]; with the feature
//! `fault-injection` one of them can be made to fail, or the process can be killed there. Without the feature a fail point does
//! nothing and costs nothing.
//!
//! A whole process is told by the environment:
//!
//! * `WEAVE_FAULT=<mode>:<command>:<n>:<file>` applies to a process whose first argument is `command`, up to its call of
//!   [`startup_complete`]. At the `n`th fail point (from 0), mode `kill` ends the process with SIGKILL, and a number is the error
//!   with which the operation fails. The name of the operation is written to `file` first; nothing happens if the file exists.
//! * `WEAVE_FAULT_PLAN` names a file of the same form, which is read whenever an [`operation`] begins. Only fail points inside
//!   operations of that name count, for as long as the content of the file stays the same.
//!
//! A test of this crate uses `fail_nth` in its own thread.

use std::fmt::Display;

use nix::errno::Errno;

/// Marks an operation on the host that can be made to fail. Called before the operation; an error replaces the operation's own.
///
/// # Errors
/// A test asked for it.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn fail_point(_step: &dyn Display) -> Result<(), Errno> {
    Ok(())
}

/// While it lives, the fail points that this thread passes belong to a named operation.
#[cfg(not(feature = "fault-injection"))]
#[derive(Debug)]
pub struct Operation;

/// Begins an [`Operation`].
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn operation(_name: &'static str) -> Operation {
    Operation
}

/// The operation of a thread, to be continued in another thread.
#[cfg(not(feature = "fault-injection"))]
#[derive(Clone, Copy, Debug)]
pub struct Context;

#[cfg(not(feature = "fault-injection"))]
impl Context {
    /// The operation of the calling thread.
    #[inline(always)]
    pub fn current() -> Context {
        Context
    }

    /// Continues it in the calling thread.
    #[inline(always)]
    pub fn enter(self) -> Operation {
        Operation
    }
}

/// Ends the part of the process that `WEAVE_FAULT` applies to.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn startup_complete() {}

#[cfg(feature = "fault-injection")]
pub use injected::{Context, Injection, Operation, fail_nth, fail_point, operation, startup_complete};

/// [`fail_point`] for operations that report an I/O error.
///
/// # Errors
/// As [`fail_point`].
pub fn io_fail_point(step: &dyn Display) -> std::io::Result<()> {
    fail_point(step).map_err(Into::into)
}

#[cfg(feature = "fault-injection")]
mod injected {
    use std::cell::RefCell;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, OnceLock, PoisonError};

    use nix::sys::signal::{Signal, raise};

    use super::{Display, Errno};

    #[derive(Clone, Debug)]
    struct Plan {
        /// `None` kills the process.
        errno: Option<Errno>,
        command: String,
        at: usize,
        file: String,
    }

    /// The plan for operations as it was last read, and how many of its fail points were passed.
    #[derive(Debug)]
    struct OperationPlan {
        text: String,
        plan: Option<Plan>,
        passed: usize,
    }

    static PROCESS_PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    static STARTED: AtomicBool = AtomicBool::new(false);
    static OPERATION_PLAN: Mutex<OperationPlan> =
        Mutex::new(OperationPlan { text: String::new(), plan: None, passed: 0 });

    thread_local! {
        static CONTEXT: RefCell<Context> = const { RefCell::new(Context(None)) };
    }

    /// The operation of a thread, to be continued in another thread.
    #[derive(Clone, Debug)]
    pub struct Context(Option<Scope>);

    #[derive(Clone, Debug)]
    enum Scope {
        Operation(&'static str),
        Test(Arc<TestPlan>),
    }

    #[derive(Debug)]
    struct TestPlan {
        at: usize,
        passed: AtomicUsize,
        failed: Mutex<Option<String>>,
    }

    impl Context {
        /// The operation of the calling thread.
        pub fn current() -> Context {
            CONTEXT.with_borrow(Clone::clone)
        }

        /// Continues it in the calling thread.
        pub fn enter(self) -> Operation {
            Operation { previous: CONTEXT.replace(self) }
        }
    }

    /// While it lives, the fail points that this thread passes belong to a named operation.
    #[derive(Debug)]
    pub struct Operation {
        previous: Context,
    }

    impl Drop for Operation {
        fn drop(&mut self) {
            CONTEXT.set(std::mem::replace(&mut self.previous, Context(None)));
        }
    }

    /// Begins an [`Operation`], and reads the plan for it.
    pub fn operation(name: &'static str) -> Operation {
        let text = std::env::var("WEAVE_FAULT_PLAN").ok().and_then(|path| std::fs::read_to_string(path).ok());
        let text = text.unwrap_or_default();
        let mut current = OPERATION_PLAN.lock().unwrap_or_else(PoisonError::into_inner);
        if current.text != text {
            *current = OperationPlan { plan: parse(text.trim()), text, passed: 0 };
        }
        Context(Some(Scope::Operation(name))).enter()
    }

    /// Ends the part of the process that `WEAVE_FAULT` applies to.
    pub fn startup_complete() {
        STARTED.store(true, Ordering::Relaxed);
    }

    /// Returned by [`fail_nth`].
    #[derive(Debug)]
    pub struct Injection {
        plan: Arc<TestPlan>,
        _operation: Operation,
    }

    impl Injection {
        /// The operation that was made to fail, if it was reached.
        pub fn failed(&self) -> Option<String> {
            self.plan.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }

    /// Makes the `n`th operation (from 0) of this thread fail with ECANCELED, until the value is dropped.
    pub fn fail_nth(n: usize) -> Injection {
        let plan = Arc::new(TestPlan { at: n, passed: AtomicUsize::new(0), failed: Mutex::new(None) });
        Injection { _operation: Context(Some(Scope::Test(plan.clone()))).enter(), plan }
    }

    fn parse(text: &str) -> Option<Plan> {
        let mut parts = text.splitn(4, ':');
        let (mode, command, at, file) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let errno = match mode {
            "kill" => None,
            number => Some(Errno::from_raw(number.parse().ok()?)),
        };
        Some(Plan { errno, command: command.to_owned(), at: at.parse().ok()?, file: file.to_owned() })
    }

    /// The plan that applies to the present fail point, of an operation or of the process.
    fn due(operation: Option<&'static str>) -> Option<Plan> {
        if let Some(name) = operation {
            let mut current = OPERATION_PLAN.lock().unwrap_or_else(PoisonError::into_inner);
            let plan = current.plan.clone().filter(|plan| plan.command == name)?;
            current.passed += 1;
            return (current.passed == plan.at + 1).then_some(plan);
        }
        let plan = PROCESS_PLAN.get_or_init(|| {
            let plan = parse(&std::env::var("WEAVE_FAULT").ok()?)?;
            (std::env::args().nth(1)? == plan.command).then_some(plan)
        });
        let plan = plan.as_ref().filter(|_| !STARTED.load(Ordering::Relaxed))?;
        (PASSED.fetch_add(1, Ordering::Relaxed) == plan.at).then(|| plan.clone())
    }

    /// Marks an operation on the host that can be made to fail. Called before the operation; an error replaces the operation's
    /// own.
    ///
    /// # Errors
    /// A test asked for it.
    pub fn fail_point(step: &dyn Display) -> Result<(), Errno> {
        let operation = match Context::current().0 {
            Some(Scope::Test(plan)) => {
                if plan.passed.fetch_add(1, Ordering::Relaxed) != plan.at {
                    return Ok(());
                }
                *plan.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(step.to_string());
                return Err(Errno::ECANCELED);
            }
            Some(Scope::Operation(name)) => Some(name),
            None => None,
        };
        let Some(plan) = due(operation) else { return Ok(()) };
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
