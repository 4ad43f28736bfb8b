//! Nothing stays behind: not after Ctrl-C, nor after a panic in a build that aborts instead of unwinding.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::state::labs_up;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The terminal signals commands inside hosts as well, so that the main thread may stumble over their end first.
const GRACE: Duration = Duration::from_millis(200);

/// To be called before any lab or thread is made: threads inherit the mask (commands do not).
pub(super) fn install() -> Result<()> {
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ends.add(signal);
    }
    ends.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        if let Ok(signal) = ends.wait() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("lab: {signal}, taking the labs down");
            remove_all();
            std::process::exit(128 + signal as i32);
        }
    });
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        std::thread::sleep(GRACE);
        while INTERRUPTED.load(Ordering::Relaxed) {
            // The other thread ends the process.
            std::thread::park();
        }
        report(info);
        if cfg!(panic = "abort") {
            remove_all();
        }
    }));
    Ok(())
}

/// Lets a failure that Ctrl-C caused go unsaid.
pub(super) fn unless_interrupted() {
    std::thread::sleep(GRACE);
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn remove_all() {
    static ONCE: Mutex<()> = Mutex::new(());
    let _one = ONCE.lock();
    let own = std::process::id() as i32;
    for lab in labs_up().into_iter().filter(|lab| lab.owner.is_some_and(|owner| owner.pid == own)) {
        if let Err(e) = lab.remove() {
            eprintln!("lab {}: {e:#}", lab.id);
        }
    }
}
