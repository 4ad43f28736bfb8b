//! Nothing stays behind: not after Ctrl-C, nor after a panic in a build that aborts instead of unwinding.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::state::{labs_up, sweep};
use crate::{Lab, Topology, within};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Held while a lab is made: half a lab cannot be taken down.
static MAKING: Mutex<()> = Mutex::new(());

/// How long that may take.
const MAKING_TIME: Duration = Duration::from_secs(20);

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
        unless_interrupted();
        report(info);
        if cfg!(panic = "abort") {
            remove_all();
        }
    }));
    Ok(())
}

/// A lab with so many hosts, which is gone when the value is dropped, or when the process is told to end.
pub(super) fn lab(hosts: usize) -> Result<Lab> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    sweep();
    let id = format!("bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    Lab::create(&id, &Topology::hosts(hosts), false).with_context(|| format!("cannot make the lab {id}"))
}

/// Lets a failure that Ctrl-C caused go unsaid: does not return if it did.
pub(super) fn unless_interrupted() {
    std::thread::sleep(GRACE);
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn remove_all() {
    // For good: the process ends, and nobody is to begin another lab until then.
    let making = within("a lab to be made", MAKING_TIME, || MAKING.try_lock().ok());
    let own = std::process::id() as i32;
    for lab in labs_up().into_iter().filter(|lab| lab.owner.is_some_and(|owner| owner.pid == own)) {
        if let Err(e) = lab.remove() {
            eprintln!("lab {}: {e:#}", lab.id);
        }
    }
    std::mem::forget(making);
}
