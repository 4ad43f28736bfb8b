//! Files that tell NetworkManager, systemd-networkd and udev to leave our devices alone: the first two would take addresses and
//! routes from them, and udev's usual policy gives every new virtual device another Ethernet address after it was made.
//!
//! A file is written only where the program's directory exists, and removed only if it is still one of ours.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{DeviceNames, Error, fault_injection, files};

/// The first line, by which our files are known.
const MARK: &str = "# Written by 'weave launch', removed by 'weave reset'.";

/// A file: its directory below `/etc` and name, what it says, the program to tell of it, the directory that shows that it runs.
struct Kept {
    directory: &'static str,
    file: String,
    text: String,
    reload: &'static [&'static str],
    running: &'static str,
}

fn files(names: &DeviceNames) -> [Kept; 3] {
    // One of several peers on the host has files of its own.
    let name = if names.only_bridge_ports { names.bridge.as_str() } else { "weave" };
    let mut devices = vec![names.bridge.clone()];
    if names.only_bridge_ports {
        devices.extend([names.port.clone(), names.device.clone()]);
    }
    devices.push(format!("{}*", names.prefix));
    let (list, listed) = (devices.join(" "), devices.iter().map(|d| format!("interface-name:{d}")));
    let listed = listed.collect::<Vec<_>>().join(";");
    let networkd = |suffix: &str, text: String, reload, running| Kept {
        directory: "etc/systemd/network",
        file: format!("05-{name}.{suffix}"),
        text: format!("{MARK}\n{text}"),
        reload,
        running,
    };
    [
        Kept {
            directory: "etc/NetworkManager",
            file: format!("conf.d/90-{name}.conf"),
            text: format!("{MARK}\n[keyfile]\nunmanaged-devices+={listed}\n"),
            reload: &["nmcli", "general", "reload", "conf"],
            running: "run/NetworkManager",
        },
        networkd(
            "network",
            format!("[Match]\nName={list}\n\n[Link]\nUnmanaged=yes\n"),
            &["networkctl", "reload"],
            "run/systemd/netif",
        ),
        // udev looks for other files at an event, but not within three seconds of the one before, and ours come at once.
        networkd(
            "link",
            format!("[Match]\nOriginalName={list}\n\n[Link]\nMACAddressPolicy=none\n"),
            &["udevadm", "control", "--reload"],
            "run/udev",
        ),
    ]
}

/// Writes the files that are missing below `root` (`/`); gives those that were written. Where somebody put a file of his own in the
/// place of ours, his stays. Nothing is left half-written.
///
/// # Errors
/// A file cannot be written; those before it are taken back.
pub fn install(root: &Path, names: &DeviceNames) -> Result<Vec<PathBuf>, Error> {
    let mut written = Vec::new();
    for kept in files(names) {
        let directory = root.join(kept.directory);
        if !directory.is_dir() {
            continue;
        }
        let path = directory.join(&kept.file);
        match fs::read_to_string(&path) {
            Ok(present) if present == kept.text || !present.starts_with(MARK) => continue,
            _ => {}
        }
        if let Err(e) = replace(&path, &kept.text) {
            written.iter().for_each(|path| drop(fs::remove_file(path)));
            return Err(Error::io(format!("writing {}", path.display()), &e));
        }
        written.push(path);
        tell(root, kept.reload, kept.running);
    }
    Ok(written)
}

/// Removes our files below `root`; gives those that were there, and every failure.
pub fn remove(root: &Path, names: &DeviceNames) -> (Vec<PathBuf>, Vec<Error>) {
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for kept in files(names) {
        let path = root.join(kept.directory).join(&kept.file);
        if !fs::read_to_string(&path).is_ok_and(|text| text.starts_with(MARK)) {
            continue;
        }
        let gone = fault_injection::io_fail_point(&format_args!("removing {}", path.display()));
        match gone.and_then(|()| fs::remove_file(&path)) {
            Ok(()) => {
                removed.push(path);
                tell(root, kept.reload, kept.running);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => errors.push(Error::io(format!("removing {}", path.display()), &e)),
        }
    }
    (removed, errors)
}

/// Our files below `root` that are there.
pub fn present(root: &Path, names: &DeviceNames) -> Vec<PathBuf> {
    let paths = files(names).into_iter().map(|kept| root.join(kept.directory).join(kept.file));
    paths.filter(|p| fs::read_to_string(p).is_ok_and(|text| text.starts_with(MARK))).collect()
}

fn replace(path: &Path, content: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    files::write_atomically(path, content.as_bytes(), 0o644)
}

/// A program that does not run reads the file when it starts; one that does not listen is no reason to stop.
fn tell(root: &Path, command: &[&str], running: &str) {
    if let [program, arguments @ ..] = command
        && root.join(running).is_dir()
    {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let told = fault_injection::io_fail_point(&format_args!("running {program}"))
            .and_then(|()| command.status());
        match told {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!("{program} did not read its configuration again: {status}"),
            Err(e) => tracing::warn!("{program} did not read its configuration again: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_where_the_program_is_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let names = DeviceNames::default();
        assert_eq!(install(root.path(), &names), Ok(vec![]));
        let network = root.path().join("etc/systemd/network");
        fs::create_dir_all(&network).unwrap();
        fs::create_dir_all(root.path().join("etc/NetworkManager")).unwrap();
        assert_eq!(install(root.path(), &names).unwrap().len(), 3);
        assert_eq!(install(root.path(), &names), Ok(vec![]));
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert!(
            text(network.join("05-weave.link"))
                .ends_with("[Match]\nOriginalName=weave vethwe*\n\n[Link]\nMACAddressPolicy=none\n")
        );
        assert!(
            text(network.join("05-weave.network"))
                .ends_with("[Match]\nName=weave vethwe*\n\n[Link]\nUnmanaged=yes\n")
        );
        let manager = root.path().join("etc/NetworkManager/conf.d/90-weave.conf");
        assert!(text(manager).ends_with("unmanaged-devices+=interface-name:weave;interface-name:vethwe*\n"));
        // Another bridge: ours are written anew; a stranger's is neither written nor removed.
        fs::write(network.join("05-weave.link"), "[Match]\n").unwrap();
        let names = DeviceNames { bridge: "w2".into(), ..DeviceNames::default() };
        let written = install(root.path(), &names).unwrap();
        assert_eq!(written.len(), 2);
        assert_eq!(present(root.path(), &names), written);
        let other = DeviceNames::instance("b");
        assert_eq!(install(root.path(), &other).unwrap().len(), 3);
        assert!(text(network.join("05-weave-b.link")).contains("=weave-b vethwb-b vethwd-b vethwe*"));
        assert_eq!(remove(root.path(), &other).0.len(), 3);
        assert_eq!(remove(root.path(), &names), (written, vec![]));
        assert_eq!(remove(root.path(), &names), (vec![], vec![]));
        assert_eq!(text(network.join("05-weave.link")), "[Match]\n");
        assert_eq!(fs::read_dir(&network).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_takes_back_what_was_written() {
        let root = tempfile::tempdir().unwrap();
        let network = root.path().join("etc/systemd/network");
        fs::create_dir_all(&network).unwrap();
        fs::create_dir(network.join(".05-weave.network.new")).unwrap();
        fs::create_dir_all(root.path().join("etc/NetworkManager")).unwrap();
        let error = install(root.path(), &DeviceNames::default()).unwrap_err();
        assert!(error.to_string().starts_with("writing "), "{error}");
        assert_eq!(present(root.path(), &DeviceNames::default()), Vec::<PathBuf>::new());
    }
}
