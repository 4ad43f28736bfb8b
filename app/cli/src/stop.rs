//! `weave stop` and `weave reset` (spec cli 4.5, 4.6).

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weave_daemon::lock;

use crate::args::Parsed;
use crate::options::{self, Env};
use crate::{Failure, notice, query, require_root};

/// How long the daemon gets to end in order, as `docker stop` gives it.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Files in the run directory that end with the daemon.
const RUN_FILES: [&str; 3] = ["restart.sentinel", "password", "weave.sock"];

pub(crate) fn stop(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    require_root()?;
    if !stop_daemon(&options::run_dir(parsed, env))? {
        notice("Weave is not running (ignore on Kubernetes).");
    }
    Ok(())
}

/// Ends supervisor and daemon; `false` if there was neither.
fn stop_daemon(run_dir: &Path) -> Result<bool, Failure> {
    let files = [run_dir.join("supervisor.pid"), run_dir.join("weave.pid")];
    let running = || files.iter().filter_map(|f| lock::holder(f)).collect::<Vec<_>>();
    let found = !running().is_empty();
    let deadline = Instant::now() + GRACE;
    // The supervisor is first in the list and takes the daemon with it.
    let mut told: Vec<i32> = Vec::new();
    while let Some(&pid) = running().first() {
        let late = Instant::now() >= deadline;
        if late || !told.contains(&pid) {
            let signal = if late { Signal::SIGKILL } else { Signal::SIGTERM };
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => told.push(pid),
                Err(e) => return Err(Failure::new(1, format_args!("cannot stop weave (pid {pid}): {e}"))),
            }
            if Instant::now() >= deadline + GRACE {
                return Err(Failure::new(1, format_args!("weave (pid {pid}) does not end")));
            }
        }
        std::thread::sleep(LOOK);
    }
    for name in RUN_FILES {
        remove_file(&run_dir.join(name))?;
    }
    Ok(found)
}

fn remove_file(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(1, format_args!("cannot remove {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

pub(crate) fn reset(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let run_dir = options::run_dir(parsed, env);
    let state_dir = options::state_dir(parsed, env);
    let bridge = parsed.text("weave-bridge").unwrap_or("weave");
    let state_files = ["weave-netdata.db", "weavedata.db", weave_daemon::store::FILE_NAME];
    if parsed.flag("dry-run") {
        for pid in ["supervisor.pid", "weave.pid"].iter().filter_map(|f| lock::holder(&run_dir.join(f))) {
            crate::print(&format!("process {pid}\n"))?;
        }
        for file in state_files.map(|f| state_dir.join(f)).iter().filter(|f| f.exists()) {
            crate::print(&format!("file {}\n", file.display()))?;
        }
        return crate::print(&format!("bridge {bridge}, devices vethwe*, devices of attached containers\n"));
    }
    require_root()?;
    if lock::holder(&run_dir.join("weave.pid")).is_some() {
        // Address space goes to the others; a daemon that allocates none answers 404.
        let handed_over = query::client(parsed, env).request("DELETE", "/peer", &[], &[]);
        if let Err(e) = handed_over
            && !parsed.flag("force")
        {
            return Err(Failure::new(
                1,
                format_args!(
                    "weave does not answer ({e}); unable to remove it from the cluster. \
                     Stop it with 'weave stop' and launch it again, or use --force to override."
                ),
            ));
        }
    }
    stop_daemon(&run_dir)?;
    // Everything is tried; what failed is told at the end.
    let mut failures = Vec::new();
    for file in state_files.map(|f| state_dir.join(f)) {
        failures.extend(remove_file(&file).err().map(|f| f.message));
    }
    for dir in [&state_dir, &run_dir] {
        for name in ["supervisor.pid", "weave.pid", "launch.pid"] {
            failures.extend(remove_file(&dir.join(name)).err().map(|f| f.message));
        }
        // Only if nothing else lives there.
        let _ = std::fs::remove_dir(dir);
    }
    failures.extend(remove_devices(bridge));
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(1, failures.join("\n"))) }
}

/// Bridge and devices; what could not be removed.
fn remove_devices(bridge: &str) -> Vec<String> {
    let names = weave_host::Names { bridge: bridge.to_owned(), ..weave_host::Names::default() };
    let (_removed, errors) = weave_host::remove_all(&names);
    let rule = weave_host::remove_forwarding(bridge).err();
    errors.iter().map(ToString::to_string).chain(rule.map(|e| e.to_string())).collect()
}
