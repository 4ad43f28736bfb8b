//! The addresses in every network namespace of a host, as the kernel has them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

#[derive(Args, Debug)]
pub struct HoldersArgs {
    /// The interface to look at.
    #[arg(long, default_value = "ethwe")]
    device: String,
}

/// Every namespace that has the interface, named by its file or else by one of its processes, with its IPv4 addresses.
pub(super) fn holders(args: &HoldersArgs) -> Result<Value> {
    // A namespace may have a file and processes. Files come last, so that their names are used.
    let mut spaces: BTreeMap<u64, (String, File)> = BTreeMap::new();
    for (path, name) in by_process().into_iter().chain(by_name()) {
        // A process may have ended.
        let Ok(file) = File::open(&path) else { continue };
        let Ok(meta) = file.metadata() else { continue };
        spaces.insert(meta.ino(), (name, file));
    }
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, file) in spaces.into_values() {
        // While a namespace is being added or removed, its file is an ordinary one.
        if setns(file, CloneFlags::CLONE_NEWNET).is_err() {
            continue;
        }
        for interface in nix::ifaddrs::getifaddrs()? {
            let address = interface.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip());
            if let Some(ip) = address.filter(|_| interface.interface_name == args.device) {
                found.entry(name.clone()).or_default().push(ip.to_string());
            }
        }
    }
    Ok(json!(found))
}

fn by_name() -> Vec<(PathBuf, String)> {
    let files = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    files.map(|f| (f.path(), f.file_name().to_string_lossy().into_owned())).collect()
}

fn by_process() -> Vec<(PathBuf, String)> {
    let files = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = files.filter_map(|f| f.file_name().to_string_lossy().parse::<u32>().ok());
    pids.map(|pid| (PathBuf::from(format!("/proc/{pid}/ns/net")), format!("pid:{pid}"))).collect()
}
