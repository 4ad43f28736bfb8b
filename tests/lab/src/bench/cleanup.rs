//! Removes the labs of a benchmark after Ctrl-C and after a panic, which does not unwind in a release build.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::state::{labs_up, remove_abandoned};
use crate::{Lab, Topology, within};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Locked while a lab is being made, because half a lab cannot be removed.
static MAKING: Mutex<()> = Mutex::new(());

const MAKING_TIMEOUT: Duration = Duration::from_secs(20);

/// Ctrl-C ends commands in hosts as well, and the main thread may see that before the signal thread has set [`INTERRUPTED`].
const SIGNAL_DELAY: Duration = Duration::from_millis(200);

/// Must be called before any thread is started, because threads inherit the signal mask (commands do not).
pub(super) fn install() -> Result<()> {
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        ends.add(signal);
    }
    ends.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        if let Ok(signal) = ends.wait() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("lab: {signal}, removing the labs");
            remove_all();
            std::process::exit(128 + signal as i32);
        }
    });
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        unless_interrupted();
        remove_all();
        report(info);
    }));
    Ok(())
}

/// A lab that is removed when the value is dropped or the process gets a signal.
pub(super) fn lab(hosts: usize) -> Result<Lab> {
    lab_of(&Topology::hosts(hosts))
}

/// The same for another topology.
pub(super) fn lab_of(topology: &Topology) -> Result<Lab> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    remove_abandoned();
    let id = format!("bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    Lab::create(&id, topology, false).with_context(|| format!("cannot make the lab {id}"))
}

/// Does not return after Ctrl-C, so that the failures that it causes are not reported.
pub(super) fn unless_interrupted() {
    std::thread::sleep(SIGNAL_DELAY);
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

fn remove_all() {
    // Stays locked, so that no other lab is made before the process ends.
    let making = within("a lab to be made", MAKING_TIMEOUT, || MAKING.try_lock().ok());
    let own = std::process::id() as i32;
    for lab in labs_up().into_iter().filter(|lab| lab.owner.is_some_and(|owner| owner.pid == own)) {
        if let Err(e) = lab.remove() {
            eprintln!("lab {}: {e:#}", lab.id);
        }
    }
    std::mem::forget(making);
}
