//! The state of labs on disk, one file per lab, so that other processes can use and remove them.

pub(crate) mod neighbour_limits;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait::within;

/// Holds a folder for each lab.
pub(crate) const ROOT: &str = "/tmp/weave-lab";

/// The process that holds the namespaces of a host: its pid outside of them, and its start time, because pids are used again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub started: u64,
}

impl Holder {
    pub fn of(pid: i32) -> Result<Holder> {
        Ok(Holder { pid, started: start_time(pid).with_context(|| format!("no process {pid}"))? })
    }

    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    fn kill(&self) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    fn wait_for_end(&self) {
        if self.alive() {
            let _ = within("the end of a namespace", std::time::Duration::from_secs(10), || !self.alive());
        }
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold anything, so fields are counted from its closing parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The name of the host and of its interface on the wire.
    pub name: String,
    pub holder: Holder,
    /// The address under which others reach it.
    pub ip: std::net::Ipv4Addr,
    /// The router with MASQUERADE in front of the host, if there is one.
    pub nat: Option<Holder>,
}

/// One lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabState {
    pub id: String,
    /// The process that made the lab, and after whose end it is removed; none for labs that stay.
    pub owner: Option<Holder>,
    pub wire: Option<Holder>,
    pub members: Vec<Member>,
    /// The lab has more hosts than the kernel's neighbour tables hold by default.
    #[serde(default)]
    pub raised_limits: bool,
}

impl LabState {
    pub fn dir(id: &str) -> PathBuf {
        Path::new(ROOT).join(id)
    }

    pub(crate) fn create(id: &str, owner: Option<Holder>, raised_limits: bool) -> Result<LabState> {
        if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            bail!("lab id `{id}`: only letters, digits and dashes");
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(ROOT)?;
        let meta = fs::symlink_metadata(ROOT)?;
        if !meta.is_dir() || meta.uid() != 0 {
            bail!("{ROOT} is not a folder of root");
        }
        let dir = LabState::dir(id);
        if dir.exists() {
            bail!("lab `{id}` is already up (`lab --id {id} down` removes it)");
        }
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let state = LabState { id: id.to_owned(), owner, wire: None, members: Vec::new(), raised_limits };
        state.save()?;
        Ok(state)
    }

    pub fn load(id: &str) -> Result<LabState> {
        let file = LabState::dir(id).join("lab.json");
        let text = fs::read_to_string(&file).with_context(|| format!("no lab `{id}` is up"))?;
        serde_json::from_str(&text).with_context(|| format!("cannot read {}", file.display()))
    }

    /// Replaces the file atomically.
    pub(crate) fn save(&self) -> Result<()> {
        let dir = LabState::dir(&self.id);
        let temporary = dir.join("lab.json.new");
        fs::write(&temporary, serde_json::to_string_pretty(self)?)?;
        fs::rename(&temporary, dir.join("lab.json")).context("cannot write the lab's state")
    }

    /// Ends every process of the lab, removes its folder, and restores the limits that it raised.
    pub fn remove(&self) -> Result<()> {
        // All hosts end at the same time, because each takes a while to end what runs in it.
        let hosts = self.members.iter().flat_map(|member| [Some(&member.holder), member.nat.as_ref()]);
        let holders: Vec<&Holder> = hosts.chain([self.wire.as_ref()]).flatten().collect();
        holders.iter().for_each(|holder| holder.kill());
        holders.iter().for_each(|holder| holder.wait_for_end());
        let dir = LabState::dir(&self.id);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        neighbour_limits::restore()?;
        // This fails as long as there are other labs.
        let _ = fs::remove_dir(ROOT);
        Ok(())
    }
}

/// All labs, by their ids.
pub fn labs_up() -> Vec<LabState> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    let mut labs: Vec<LabState> =
        entries.flatten().filter_map(|e| LabState::load(&e.file_name().to_string_lossy()).ok()).collect();
    labs.sort_by(|a, b| a.id.cmp(&b.id));
    labs
}

/// Removes the labs of processes that ended without removing them.
pub(crate) fn remove_abandoned() {
    for lab in labs_up() {
        if lab.owner.is_some_and(|owner| !owner.alive()) {
            let _ = lab.remove();
        }
    }
}
