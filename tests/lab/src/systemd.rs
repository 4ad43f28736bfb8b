//! A host that runs the machine's systemd as process 1, without access to the rest of the machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::Host;
use crate::programs::weave_binary;
use crate::run::Background;
use crate::wait::within;

/// Booting takes a second, more on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The script that prepares the file system and starts systemd. Its arguments are the programs `weave` and `lab`.
const BOOT: &str = include_str!("boot.sh");
const SYSTEMD: &str = "/lib/systemd/systemd";
/// `boot.sh` installs the programs here: a unit with a sandbox does not see `/tmp` or `/home`, where they may have been built.
const PROGRAM_FOLDER: &str = "/usr/local/bin";

/// A systemd in a host. It uses the disk of the host and has `/run`, `/tmp` and `/dev` of its own; the rest is read-only.
#[derive(Debug)]
pub struct Systemd {
    inside: Host,
    group: PathBuf,
    /// `None` after [`Systemd::power_off`].
    process: Option<Background>,
}

impl Systemd {
    /// Boots, or returns `None` after a notice if systemd is not installed or there are no control groups of version 2.
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
            "echo $$ > {}/cgroup.procs; exec unshare --mount --pid --cgroup --fork sh -ec \"$0\" boot.sh \"$@\"",
            group.display()
        );
        let lab = host.lab_program();
        let process = host.background(&["sh", "-ec", &enter, BOOT, weave_binary(), &lab], false);
        let process = process.unwrap_or_else(|e| panic!("{}: {e:#}", host.name()));
        let mut system = Systemd { inside: host.clone(), group, process: Some(process) };
        let pid = host
            .wait("process 1", START_TIMEOUT, || system.process.as_ref().and_then(Background::process_one));
        system.inside = host.inside(pid, PROGRAM_FOLDER).unwrap_or_else(|e| panic!("{}: {e:#}", host.name()));
        system.inside.wait("systemd", START_TIMEOUT, || {
            let state = system.inside.command(&["systemctl", "is-system-running"]);
            if matches!(state.stdout.trim(), "running" | "degraded") {
                Ok(())
            } else {
                Err(state.to_string())
            }
        });
        Some(system)
    }

    /// The host, in the namespaces of systemd.
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

    /// The log of a unit.
    #[track_caller]
    pub fn journal(&self, unit: &str) -> String {
        self.inside.command_ok(&["journalctl", "--no-pager", "--output=cat", "--unit", unit])
    }

    /// Shuts systemd down. Devices and firewall rules stay until [`Host::reboot`].
    #[track_caller]
    pub fn power_off(mut self) {
        // The answer may be lost because systemd ends.
        self.inside.command(&["systemctl", "poweroff"]);
        let mut process = self.process.take();
        let off = within("the end of systemd", START_TIMEOUT, || {
            !process.as_mut().is_some_and(Background::running)
        });
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
        // The group is busy until the kernel has removed its last process.
        let group = self.group.display().to_string();
        let _ = within("the end of a control group", START_TIMEOUT, || {
            let _ = std::process::Command::new("find")
                .args([&group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .stderr(std::process::Stdio::null())
                .status();
            !self.group.exists()
        });
    }
}

fn skipped(reason: &str) -> Option<Systemd> {
    // Not even WEAVE_LAB_REQUIRED asks for it: unlike the rest of the lab, it depends on how the machine was started.
    eprintln!("SKIPPED: lab test with systemd: {reason}");
    None
}
