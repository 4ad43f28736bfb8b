//! While a command changes the host it is not to be interrupted: it takes a moment, and half of it is worse than all or nothing.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, Signal, signal};

static ENTERED: AtomicBool = AtomicBool::new(false);

/// This process is to get SIGTERM when its parent dies, until [`enter`].
///
/// # Errors
/// The kernel refuses.
pub fn end_with_parent() -> Result<(), Errno> {
    prctl::set_pdeathsig(Signal::SIGTERM)
}

/// From here on, and until this process ends, SIGINT, SIGTERM, SIGHUP and the end of its parent do not interrupt it.
pub fn enter() {
    ENTERED.store(true, Ordering::Relaxed);
    // What is refused leaves things as they are: interruptible.
    let _ = prctl::set_pdeathsig(None);
    for interruption in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: no handler of ours is installed, so none is replaced that other code relies on, and none can run.
        let _ = unsafe { signal(interruption, SigHandler::SigIgn) };
    }
}

/// Whether [`enter`] was called.
pub fn entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}
