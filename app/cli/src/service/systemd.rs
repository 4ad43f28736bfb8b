//! The daemon as a unit of systemd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::files::{Undo, is_read_only, remove_if_writable};
use super::manager::{LaunchRequest, ServiceManager};
use super::unit::{MARK, Unit};
use crate::{Failure, notice, proxy_options};

/// Exists only while systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
const UNITS: &str = "/etc/systemd/system";
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// A unit that systemd has not begun to start by then will not be started.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Systemd<'a> {
    request: &'a LaunchRequest<'a>,
    unit: String,
    path: PathBuf,
    undo: Undo,
    /// Whether the unit was enabled before.
    enabled: bool,
    started: Instant,
    polled: Instant,
}

pub(crate) fn unit_name(service: &str) -> String {
    format!("{service}.service")
}

/// The unit file, if `launch` wrote it.
pub(crate) fn ours(unit: &str) -> Option<PathBuf> {
    let path = Path::new(UNITS).join(unit);
    std::fs::read_to_string(&path).is_ok_and(|text| text.starts_with(MARK)).then_some(path)
}

fn booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// A unit file of the host's operator with that name. That of a package has less precedence than the one that `launch` writes.
fn foreign(unit: &str) -> Option<PathBuf> {
    let path = Path::new(UNITS).join(unit);
    (path.exists() && ours(unit).is_none()).then_some(path)
}

/// Whether this process is part of the unit: an operator's unit of that name runs this command.
fn runs_inside(unit: &str) -> bool {
    let Ok(groups) = std::fs::read_to_string("/proc/self/cgroup") else { return false };
    groups.lines().any(|l| l.rsplit('/').any(|part| part == unit))
}

/// Runs systemctl and returns its output.
fn systemctl(args: &[&str]) -> Result<String, Failure> {
    let output = weave_host::fault_injection::io_fail_point(&format_args!("systemctl {}", args.join(" ")))
        .and_then(|()| Command::new("systemctl").args(args).output())
        .map_err(|e| Failure::new(1, format_args!("cannot run systemctl: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let reason = errors.lines().next().unwrap_or("no reason given");
    Err(Failure::new(1, format_args!("systemctl {} failed: {reason}", args.join(" "))))
}

/// Stops the unit if `launch` wrote it, or if one of these processes is its main process, which systemd would start again. Returns whether
/// it was running.
pub(crate) fn stop(unit: &str, processes: &[i32]) -> Result<bool, Failure> {
    if !booted() {
        return Ok(false);
    }
    let is_main = || -> Result<bool, Failure> {
        let pid = systemctl(&["show", "--property=MainPID", "--value", unit])?;
        Ok(pid.trim().parse().is_ok_and(|pid| processes.contains(&pid)))
    };
    if ours(unit).is_none() && (processes.is_empty() || runs_inside(unit) || !is_main()?) {
        return Ok(false);
    }
    let state = systemctl(&["show", "--property=ActiveState", "--value", unit])?;
    // Also for one that is not active: it may be waiting for its next restart.
    systemctl(&["stop", unit])?;
    Ok(!matches!(state.trim(), "inactive" | "failed"))
}

/// Whether systemd starts a unit at boot that `launch` did not write.
pub(crate) fn starts_other(unit: &str) -> bool {
    booted() && ours(unit).is_none() && systemctl(&["is-enabled", unit]).is_ok()
}

/// Removes the unit if `launch` wrote it. Continues after failures.
pub(crate) fn remove(unit: &str) -> Vec<Failure> {
    let Some(path) = ours(unit) else { return Vec::new() };
    let mut failures = Vec::new();
    // `systemctl disable` removes it, but systemd may not be running.
    let link = Path::new(UNITS).join("multi-user.target.wants").join(unit);
    if is_read_only(Path::new(UNITS)) {
        if link.symlink_metadata().is_ok() {
            notice(format_args!(
                "Notice: systemd starts {unit} at the next boot, because its file system is read-only"
            ));
        }
    } else if booted() {
        failures.extend(systemctl(&["disable", unit]).err());
    }
    failures.extend(remove_if_writable(&link).err());
    failures.extend(remove_if_writable(&path).err());
    if booted() {
        failures.extend(systemctl(&["daemon-reload"]).err());
    }
    failures
}

impl<'a> Systemd<'a> {
    /// If systemd runs, and no other unit has the name.
    pub(super) fn if_usable(request: &'a LaunchRequest<'a>) -> Option<Systemd<'a>> {
        let unit = unit_name(&request.named("weave"));
        if runs_inside(&unit) || systemctl(&["--version"]).is_err() {
            return None;
        }
        Self::new(request).ok()
    }

    pub(super) fn new(request: &'a LaunchRequest<'a>) -> Result<Systemd<'a>, Failure> {
        let unit = unit_name(&request.named("weave"));
        if !booted() {
            return Err(Failure::new(
                1,
                format_args!("--service systemd: systemd does not run here ({BOOTED})"),
            ));
        }
        if let Some(path) = foreign(&unit) {
            let path = path.display();
            return Err(Failure::new(
                1,
                format_args!(
                    "--service systemd: {path} was not written by 'weave launch'; start it with 'systemctl start {unit}' or \
                     remove it"
                ),
            ));
        }
        if is_read_only(Path::new(UNITS)) {
            return Err(Failure::new(
                1,
                format_args!(
                    "--service systemd: {UNITS} is on a read-only file system, so {unit} cannot be written; use --service docker, \
                     or --service supervisor with a job that launches at boot"
                ),
            ));
        }
        let path = Path::new(UNITS).join(&unit);
        let now = Instant::now();
        Ok(Systemd { request, unit, path, undo: Undo::default(), enabled: false, started: now, polled: now })
    }

    fn text(&self) -> Result<String, Failure> {
        let program = std::env::current_exe()?;
        let options = self.request.options().canonical();
        let host = proxy_options::docker_host(self.request.env);
        let environment: Vec<_> = host.map(|host| ("DOCKER_HOST".to_owned(), host)).into_iter().collect();
        Ok(Unit {
            program: &program.to_string_lossy(),
            instance: self.request.config.instance.as_deref(),
            options: &options,
            peers: &self.request.parsed.rest,
            resume: self.request.config.resume,
            restart: self.request.restart,
            environment: &environment,
        }
        .text())
    }

    fn install_and_start(&mut self) -> Result<(), Failure> {
        let text = self.text()?;
        self.enabled = systemctl(&["is-enabled", &self.unit]).is_ok();
        self.undo.directory(Path::new(UNITS), 0o755)?;
        self.undo.replace(&self.path, Some(text.as_bytes()), 0o644)?;
        systemctl(&["daemon-reload"])?;
        // A link to the unit of a package would be in the way.
        let verb: &[&str] = if self.request.restart { &["enable", "--force"] } else { &["disable"] };
        systemctl(&[verb, &[&self.unit]].concat())?;
        // Earlier failures count against the unit's start limit.
        let _ = systemctl(&["reset-failed", &self.unit]);
        self.started = Instant::now();
        systemctl(&["restart", "--no-block", &self.unit]).map(|_| ())
    }
}

impl ServiceManager for Systemd<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let result = self.install_and_start();
        if result.is_err() {
            self.roll_back();
        }
        result
    }

    fn exit_reason(&mut self) -> Result<Option<String>, Failure> {
        if self.polled.elapsed() < POLL_INTERVAL {
            return Ok(None);
        }
        self.polled = Instant::now();
        let shown = systemctl(&["show", "--property=ActiveState,SubState,Result", &self.unit])?;
        let value = |name: &str| {
            shown.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        let (active, sub, result) = (value("ActiveState"), value("SubState"), value("Result"));
        let over = match active.as_str() {
            "failed" => true,
            "inactive" => self.started.elapsed() > QUEUE_TIMEOUT,
            _ => sub == "auto-restart",
        };
        let unit = &self.unit;
        Ok(over.then(|| {
            format!(
                "the daemon ended before it was ready ({active}, {result}); see 'journalctl --unit {unit}'"
            )
        }))
    }

    fn roll_back(&mut self) {
        let _ = systemctl(&["stop", &self.unit]);
        if !self.enabled {
            let _ = systemctl(&["disable", &self.unit]);
        }
        drop(std::mem::take(&mut self.undo));
        let _ = systemctl(&["daemon-reload"]);
        if self.enabled {
            // It was the unit of a package, which is there again.
            let _ = systemctl(&["enable", "--force", &self.unit]);
        }
        let _ = systemctl(&["reset-failed", &self.unit]);
    }

    fn commit(&mut self) {
        std::mem::take(&mut self.undo).keep();
    }
}
