//! Limits of the kernel's neighbour tables. All network namespaces of a machine share these tables, and in a full mesh each host has an
//! entry for every other host: with the kernel's defaults they overflow at about 32 hosts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

use crate::state::{ROOT, labs_up};

/// Labs with at most this many hosts stay within the kernel's defaults, also several at the same time.
pub(crate) const HOSTS_WITHIN_DEFAULTS: usize = 16;

/// Entries, enough for a full mesh of 250 hosts.
const LIMITS: [(&str, u32); 3] = [("gc_thresh1", 1 << 17), ("gc_thresh2", 1 << 18), ("gc_thresh3", 1 << 19)];

/// The limits before the first lab raised them: a path and a number on each line.
fn saved_limits() -> PathBuf {
    Path::new(ROOT).join("neighbour-limits")
}

fn lock() -> Result<Flock<File>> {
    let folder = File::open(ROOT).with_context(|| format!("cannot open {ROOT}"))?;
    Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, e)| anyhow!("cannot lock {ROOT}: {e}"))
}

/// Raises the limits until [`restore`] finds no lab that needs them.
pub(crate) fn raise() -> Result<()> {
    let _lock = lock()?;
    let (mut before, mut raised) = (String::new(), Vec::new());
    for family in ["ipv4", "ipv6"] {
        for (name, wanted) in LIMITS {
            let path = format!("/proc/sys/net/{family}/neigh/default/{name}");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            before.push_str(&format!("{path} {text}"));
            if text.trim().parse::<u32>().is_ok_and(|now| now < wanted) {
                raised.push((path, wanted));
            }
        }
    }
    if !saved_limits().exists() {
        fs::write(saved_limits(), before)?;
    }
    for (path, wanted) in raised {
        fs::write(&path, wanted.to_string()).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(())
}

/// Sets the limits back to what they were, if no lab needs more.
pub(crate) fn restore() -> Result<()> {
    if !saved_limits().exists() {
        return Ok(());
    }
    let _lock = lock()?;
    if labs_up().iter().any(|lab| lab.raised_limits) {
        return Ok(());
    }
    let before = fs::read_to_string(saved_limits())?;
    for (path, value) in before.lines().filter_map(|line| line.split_once(' ')) {
        fs::write(path, value).with_context(|| format!("cannot write {path}"))?;
    }
    fs::remove_file(saved_limits()).with_context(|| format!("cannot remove {}", saved_limits().display()))
}
