//! What is known about a lab outside of the process that made it: a small file per lab.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait::within;

/// Where labs keep their state: one folder each.
const ROOT: &str = "/tmp/weave-lab";

/// A namespace holder: its pid as seen from outside, and the start time that tells it from a later process with that pid.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Holder {
    /// Process id in the outer pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub started: u64,
}

impl Holder {
    /// Describes a living process.
    pub fn of(pid: i32) -> Result<Holder> {
        Ok(Holder { pid, started: start_time(pid).with_context(|| format!("no process {pid}"))? })
    }

    /// Whether that very process still runs.
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    fn kill(&self) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    fn ended(&self) {
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

/// A host or a router as written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its name, also the name of its interface on the wire.
    pub name: String,
    /// Init of its namespaces.
    pub holder: Holder,
    /// The address under which others reach it.
    pub ip: std::net::Ipv4Addr,
    /// The router with MASQUERADE in front of it, if it is behind one.
    pub nat: Option<Holder>,
}

/// One lab as written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabState {
    /// Unique name.
    pub id: String,
    /// The process that made it and in whose absence it is rubbish; none for labs that stay.
    pub owner: Option<Holder>,
    /// The wire's namespace.
    pub wire: Option<Holder>,
    /// Hosts in order.
    pub members: Vec<Member>,
}

impl LabState {
    /// Folder of the lab with this id.
    pub fn dir(id: &str) -> PathBuf {
        Path::new(ROOT).join(id)
    }

    /// Makes the folder and the first state file.
    pub(crate) fn create(id: &str, owner: Option<Holder>) -> Result<LabState> {
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
        let state = LabState { id: id.to_owned(), owner, wire: None, members: Vec::new() };
        state.save()?;
        Ok(state)
    }

    /// Reads the state of a lab.
    pub fn load(id: &str) -> Result<LabState> {
        let file = LabState::dir(id).join("lab.json");
        let text = fs::read_to_string(&file).with_context(|| format!("no lab `{id}` is up"))?;
        serde_json::from_str(&text).with_context(|| format!("cannot read {}", file.display()))
    }

    /// Writes the state, atomically.
    pub(crate) fn save(&self) -> Result<()> {
        let dir = LabState::dir(&self.id);
        let temporary = dir.join("lab.json.new");
        fs::write(&temporary, serde_json::to_string_pretty(self)?)?;
        fs::rename(&temporary, dir.join("lab.json")).context("cannot write the lab's state")
    }

    /// Ends every process of the lab and removes its folder.
    pub fn remove(&self) -> Result<()> {
        // All at the same time: a host takes a while to end all that runs in it.
        let hosts = self.members.iter().flat_map(|member| [Some(&member.holder), member.nat.as_ref()]);
        let holders: Vec<&Holder> = hosts.chain([self.wire.as_ref()]).flatten().collect();
        holders.iter().for_each(|holder| holder.kill());
        holders.iter().for_each(|holder| holder.ended());
        let dir = LabState::dir(&self.id);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        // Fails while other labs are there, as it should.
        let _ = fs::remove_dir(ROOT);
        Ok(())
    }
}

/// Every lab that is written down.
pub fn labs_up() -> Vec<LabState> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    let mut labs: Vec<LabState> =
        entries.flatten().filter_map(|e| LabState::load(&e.file_name().to_string_lossy()).ok()).collect();
    labs.sort_by(|a, b| a.id.cmp(&b.id));
    labs
}

/// Removes what crashed test runs left behind.
pub(crate) fn sweep() {
    for lab in labs_up() {
        if lab.owner.is_some_and(|owner| !owner.alive()) {
            let _ = lab.remove();
        }
    }
}
