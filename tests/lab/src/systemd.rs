//! A host whose process 1 is the machine's own systemd, with nothing of the machine within its reach.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::Host;
use crate::run::Background;
use crate::wait::within;

/// Booting takes a second, more on a busy machine.
const START: Duration = Duration::from_secs(60);
/// What runs before systemd does (`$$` is a shell in the host's own namespaces).
const BOOT: &str = include_str!("boot.sh");
/// The program.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// A systemd in a host. The host's disk is its disk; `/run`, `/tmp` and `/dev` are its own, the rest is read-only.
#[derive(Debug)]
pub struct Systemd {
    inside: Host,
    group: PathBuf,
    /// Gone once the system is off.
    process: Option<Background>,
}

impl Systemd {
    /// Boots: `None` (after a loud line) where systemd is not installed or gets no control group of its own.
    #[track_caller]
    pub fn boot(host: &Host) -> Option<Systemd> {
        if !Path::new(SYSTEMD).exists() {
            return skipped("systemd is not installed (package systemd)");
        }
        let hierarchy = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter();
        let Some(hierarchy) = hierarchy
            .map(Path::new)
            .find(|p| p.join("cgroup.procs").exists() && p.join("cgroup.controllers").exists())
        else {
            return skipped("there are no control groups of version 2");
        };
        let group = hierarchy.join(format!("weave-lab-{}", host.pid()));
        if let Err(e) = std::fs::create_dir_all(&group) {
            return skipped(&format!("there can be no control group {}: {e}", group.display()));
        }
        let enter = format!(
            "echo $$ > {}/cgroup.procs; exec unshare --mount --pid --cgroup --fork sh -ec \"$0\"",
            group.display()
        );
        let process = match host.background(&["sh", "-ec", &enter, BOOT], false) {
            Ok(process) => process,
            Err(e) => panic!("{}: {e:#}", host.name()),
        };
        let mut system = Systemd { inside: host.clone(), group, process: Some(process) };
        let pid = host.wait("process 1", START, || system.process.as_ref().and_then(Background::process_one));
        system.inside = match host.inside(pid) {
            Ok(inside) => inside,
            Err(e) => panic!("{}: {e:#}", host.name()),
        };
        system.inside.wait("systemd", START, || {
            let state = system.inside.command(&["systemctl", "is-system-running"]);
            if matches!(state.stdout.trim(), "running" | "degraded") {
                Ok(())
            } else {
                Err(state.to_string())
            }
        });
        Some(system)
    }

    /// The host as it is for those who are logged in.
    pub fn host(&self) -> &Host {
        &self.inside
    }

    /// `systemctl <args>`, which has to succeed.
    #[track_caller]
    pub fn systemctl(&self, args: &[&str]) -> String {
        let mut argv = vec!["systemctl", "--no-pager"];
        argv.extend(args);
        self.inside.command_ok(&argv)
    }

    /// What the units of this name have logged.
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        self.inside.command_ok(&["journalctl", "--no-pager", "--output=cat", "--unit", unit])
    }

    /// Shuts down in order. What is in the kernel stays for [`Host::reboot`].
    #[track_caller]
    pub fn power_off(mut self) {
        // The answer may be lost with the one who gives it.
        self.inside.command(&["systemctl", "poweroff"]);
        let mut process = self.process.take();
        let off = within("the end of systemd", START, || !process.as_mut().is_some_and(Background::running));
        assert!(off.is_ok(), "{off:?}");
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        if std::thread::panicking() && self.process.is_some() {
            let log = self.inside.command(&["journalctl", "--no-pager", "--output=cat", "--lines=60"]);
            eprintln!("--- journal of {} ---\n{}", self.inside.name(), log.stdout);
        }
        drop(self.process.take());
        // The kernel needs a moment for the last of its processes.
        let group = self.group.display().to_string();
        let _ = within("the end of a control group", START, || {
            let _ = std::process::Command::new("find")
                .args([&group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .stderr(std::process::Stdio::null())
                .status();
            !self.group.exists()
        });
    }
}

fn skipped(reason: &str) -> Option<Systemd> {
    // Unlike everything else in the lab, this depends on how the machine itself was started.
    eprintln!("SKIPPED: lab test with systemd: {reason}");
    None
}
