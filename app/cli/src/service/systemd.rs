//! The daemon as a unit of systemd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::files::Undo;
use super::unit::{MARK, Unit};
use super::{Job, Keeper};
use crate::Failure;

/// There only while systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where an operator's units are.
const UNITS: &str = "/etc/systemd/system";
/// Where distributions' units are.
const PACKAGED: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];
/// How often systemd is asked.
const LOOK: Duration = Duration::from_millis(300);
/// A unit that is not being started by then never will.
const QUEUE: Duration = Duration::from_secs(5);

pub(super) struct Systemd<'a> {
    job: &'a Job<'a>,
    unit: String,
    path: PathBuf,
    undo: Undo,
    /// The unit was started at boot before.
    enabled: bool,
    begun: Instant,
    looked: Instant,
}

/// The unit of this peer.
pub(crate) fn unit_name(usual: &str) -> String {
    format!("{usual}.service")
}

/// Whether a unit file is there that `launch` wrote.
pub(crate) fn ours(unit: &str) -> Option<PathBuf> {
    let path = Path::new(UNITS).join(unit);
    std::fs::read_to_string(&path).is_ok_and(|text| text.starts_with(MARK)).then_some(path)
}

fn booted() -> bool {
    Path::new(BOOTED).is_dir()
}

fn foreign(unit: &str) -> Option<PathBuf> {
    let there = |dir: &str| Some(Path::new(dir).join(unit)).filter(|p| p.exists());
    if ours(unit).is_none()
        && let Some(path) = there(UNITS)
    {
        return Some(path);
    }
    PACKAGED.iter().find_map(|dir| there(dir))
}

/// Whether this process belongs to the unit: it is what an operator's unit of that name runs.
fn inside(unit: &str) -> bool {
    let Ok(groups) = std::fs::read_to_string("/proc/self/cgroup") else { return false };
    groups.lines().any(|l| l.rsplit('/').any(|part| part == unit))
}

/// Runs systemctl; its output.
fn systemctl(args: &[&str]) -> Result<String, Failure> {
    let output = weave_host::fault_injection::io_fail_point(&format_args!("systemctl {}", args.join(" ")))
        .and_then(|()| Command::new("systemctl").args(args).output())
        .map_err(|e| Failure::new(1, format_args!("cannot run systemctl: {e}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("no reason given");
    Err(Failure::new(1, format_args!("systemctl {} failed: {said}", args.join(" "))))
}

/// Stops the unit if it is ours; whether it was running.
pub(crate) fn stop(unit: &str) -> Result<bool, Failure> {
    if !booted() || ours(unit).is_none() {
        return Ok(false);
    }
    let state = systemctl(&["show", "--property=ActiveState", "--value", unit])?;
    // Also ends the attempts to start one that crashes each time.
    systemctl(&["stop", unit])?;
    Ok(!matches!(state.trim(), "inactive" | "failed"))
}

/// Removes the unit if it is ours; everything is tried.
pub(crate) fn remove(unit: &str) -> Vec<Failure> {
    let Some(path) = ours(unit) else { return Vec::new() };
    let mut failures = Vec::new();
    if booted() {
        failures.extend(systemctl(&["disable", unit]).err());
    }
    // What systemctl would have removed, had it run.
    let link = Path::new(UNITS).join("multi-user.target.wants").join(unit);
    failures.extend(super::files::remove(&link).err());
    failures.extend(super::files::remove(&path).err());
    if booted() {
        failures.extend(systemctl(&["daemon-reload"]).err());
    }
    failures
}

impl<'a> Systemd<'a> {
    /// If there is a systemd, and the unit's name is free or ours.
    pub(super) fn if_usable(job: &'a Job<'a>) -> Option<Systemd<'a>> {
        let unit = unit_name(&job.named("weave"));
        if !booted() || inside(&unit) || foreign(&unit).is_some() || systemctl(&["--version"]).is_err() {
            return None;
        }
        Self::new(job).ok()
    }

    pub(super) fn new(job: &'a Job<'a>) -> Result<Systemd<'a>, Failure> {
        let unit = unit_name(&job.named("weave"));
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
                    "--service systemd: {path} is there and not of our making; start it with 'systemctl start {unit}' or \
                     remove it"
                ),
            ));
        }
        let path = Path::new(UNITS).join(&unit);
        let now = Instant::now();
        Ok(Systemd { job, unit, path, undo: Undo::default(), enabled: false, begun: now, looked: now })
    }

    fn text(&self) -> Result<String, Failure> {
        let program = std::env::current_exe()?;
        let options = self.job.options().canonical();
        let environment: Vec<_> = ["DOCKER_HOST"]
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.job.env.var(name)?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        Ok(Unit {
            program: &program.to_string_lossy(),
            instance: self.job.config.instance.as_deref(),
            options: &options,
            peers: &self.job.parsed.rest,
            resume: self.job.config.resume,
            restart: self.job.restart,
            environment: &environment,
        }
        .text())
    }

    fn begin(&mut self) -> Result<(), Failure> {
        let text = self.text()?;
        self.enabled = systemctl(&["is-enabled", &self.unit]).is_ok();
        self.undo.directory(Path::new(UNITS), 0o755)?;
        self.undo.replace(&self.path, Some(text.as_bytes()), 0o644)?;
        systemctl(&["daemon-reload"])?;
        systemctl(&[if self.job.restart { "enable" } else { "disable" }, &self.unit])?;
        // Forgets earlier failures.
        let _ = systemctl(&["reset-failed", &self.unit]);
        self.begun = Instant::now();
        systemctl(&["restart", "--no-block", &self.unit]).map(|_| ())
    }
}

impl Keeper for Systemd<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let result = self.begin();
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn ended(&mut self) -> Result<Option<String>, Failure> {
        if self.looked.elapsed() < LOOK {
            return Ok(None);
        }
        self.looked = Instant::now();
        let shown = systemctl(&["show", "--property=ActiveState,SubState,Result", &self.unit])?;
        let value = |name: &str| {
            shown.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        };
        let (active, sub, result) = (value("ActiveState"), value("SubState"), value("Result"));
        let over = match active.as_str() {
            "failed" => true,
            "inactive" => self.begun.elapsed() > QUEUE,
            _ => sub == "auto-restart",
        };
        let unit = &self.unit;
        Ok(over.then(|| {
            format!(
                "the daemon ended before it was ready ({active}, {result}); see 'journalctl --unit {unit}'"
            )
        }))
    }

    fn abandon(&mut self) {
        let _ = systemctl(&["stop", &self.unit]);
        if !self.enabled {
            let _ = systemctl(&["disable", &self.unit]);
        }
        drop(std::mem::take(&mut self.undo));
        let _ = systemctl(&["daemon-reload"]);
        let _ = systemctl(&["reset-failed", &self.unit]);
    }

    fn done(&mut self) {
        std::mem::take(&mut self.undo).keep();
    }
}
