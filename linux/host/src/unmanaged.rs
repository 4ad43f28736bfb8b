//! Configuration files by which NetworkManager, systemd-networkd and udev do not manage our devices. The first two would remove their
//! addresses and routes, and udev by default changes the Ethernet address of every new virtual device.
//!
//! A file is written only if the directory of the program exists, and removed only if this program has written it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{DeviceNames, Error, endpoint, fault_injection, files};

/// The first line of our files, which identifies them.
const MARK: &str = "# Written by 'weave launch', removed by 'weave reset'.";

struct ConfigFile {
    directory: &'static str,
    /// Path below `directory`.
    file: String,
    text: String,
    /// Command that makes the program read its configuration again.
    reload: &'static [&'static str],
    /// Exists while the program is running.
    runtime_directory: &'static str,
}

fn files(names: &DeviceNames) -> [ConfigFile; 3] {
    // An instance has files of its own.
    let name = if names.only_bridge_ports { names.bridge.as_str() } else { "weave" };
    let mut devices = vec![names.bridge.clone()];
    if names.only_bridge_ports {
        devices.extend([names.port.clone(), names.device.clone()]);
    }
    devices.push(format!("{}*", names.prefix));
    if !names.only_bridge_ports {
        devices.extend(endpoint::PREFIXES.map(|prefix| format!("{prefix}*")));
    }
    let (list, listed) = (devices.join(" "), devices.iter().map(|d| format!("interface-name:{d}")));
    let listed = listed.collect::<Vec<_>>().join(";");
    let networkd = |suffix: &str, text: String, reload, runtime_directory| ConfigFile {
        directory: "etc/systemd/network",
        file: format!("05-{name}.{suffix}"),
        text: format!("{MARK}\n{text}"),
        reload,
        runtime_directory,
    };
    [
        ConfigFile {
            directory: "etc/NetworkManager",
            file: format!("conf.d/90-{name}.conf"),
            text: format!("{MARK}\n[keyfile]\nunmanaged-devices+={listed}\n"),
            reload: &["nmcli", "general", "reload", "conf"],
            runtime_directory: "run/NetworkManager",
        },
        networkd(
            "network",
            format!("[Match]\nName={list}\n\n[Link]\nUnmanaged=yes\n"),
            &["networkctl", "reload"],
            "run/systemd/netif",
        ),
        // udev notices new files by itself, but only three seconds after the previous event, which is too late for our devices.
        networkd(
            "link",
            format!("[Match]\nOriginalName={list}\n\n[Link]\nMACAddressPolicy=none\n"),
            &["udevadm", "control", "--reload"],
            "run/udev",
        ),
    ]
}

/// Writes the missing files below `root` (`/`) and returns their paths. A file with the same name that this program has not written is
/// kept. Files are written atomically.
///
/// # Errors
/// A file cannot be written; those that were written are removed.
pub fn install(root: &Path, names: &DeviceNames) -> Result<Vec<PathBuf>, Error> {
    let mut written = Vec::new();
    for config in files(names) {
        let directory = root.join(config.directory);
        if !directory.is_dir() {
            continue;
        }
        let path = directory.join(&config.file);
        match fs::read_to_string(&path) {
            Ok(present) if present == config.text || !present.starts_with(MARK) => continue,
            _ => {}
        }
        if let Err(e) = replace(&path, &config.text) {
            written.iter().for_each(|path| drop(fs::remove_file(path)));
            return Err(Error::io(format!("writing {}", path.display()), &e));
        }
        written.push(path);
        reload(root, config.reload, config.runtime_directory);
    }
    Ok(written)
}

/// Result of [`remove`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files that were removed.
    pub removed: Vec<PathBuf>,
    /// Files that stay because their file system is read-only. They have no effect on other devices.
    pub read_only: Vec<PathBuf>,
    /// Other failures.
    pub errors: Vec<Error>,
}

/// Removes our files below `root`.
pub fn remove(root: &Path, names: &DeviceNames) -> Removed {
    let mut result = Removed::default();
    for config in files(names) {
        let path = root.join(config.directory).join(&config.file);
        if !fs::read_to_string(&path).is_ok_and(|text| text.starts_with(MARK)) {
            continue;
        }
        let gone = fault_injection::io_fail_point(&format_args!("removing {}", path.display()));
        match gone.and_then(|()| fs::remove_file(&path)) {
            Ok(()) => {
                result.removed.push(path);
                reload(root, config.reload, config.runtime_directory);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => result.read_only.push(path),
            Err(e) => result.errors.push(Error::io(format!("removing {}", path.display()), &e)),
        }
    }
    result
}

/// Our files that exist below `root`.
pub fn present(root: &Path, names: &DeviceNames) -> Vec<PathBuf> {
    let paths = files(names).into_iter().map(|config| root.join(config.directory).join(config.file));
    paths.filter(|p| fs::read_to_string(p).is_ok_and(|text| text.starts_with(MARK))).collect()
}

fn replace(path: &Path, content: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    files::write_atomically(path, content.as_bytes(), 0o644)
}

/// Makes a program read its configuration again, if it is running. A failure is only logged, since the file takes effect at the next
/// start of the program.
fn reload(root: &Path, command: &[&str], runtime_directory: &str) {
    if let [program, arguments @ ..] = command
        && root.join(runtime_directory).is_dir()
    {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = fault_injection::io_fail_point(&format_args!("running {program}"))
            .and_then(|()| command.status());
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(
                "{program} failed to reload its configuration, so it may change our devices: {status}"
            ),
            Err(e) => tracing::warn!(
                "{program} failed to reload its configuration, so it may change our devices: {e}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_for_installed_programs_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let names = DeviceNames::default();
        assert_eq!(install(root.path(), &names), Ok(vec![]));
        let network = root.path().join("etc/systemd/network");
        fs::create_dir_all(&network).unwrap();
        fs::create_dir_all(root.path().join("etc/NetworkManager")).unwrap();
        assert_eq!(install(root.path(), &names).unwrap().len(), 3);
        assert_eq!(install(root.path(), &names), Ok(vec![]));
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert!(text(network.join("05-weave.link")).ends_with(
            "[Match]\nOriginalName=weave vethwe* vethwl* vethwg*\n\n[Link]\nMACAddressPolicy=none\n"
        ));
        assert!(
            text(network.join("05-weave.network"))
                .ends_with("[Match]\nName=weave vethwe* vethwl* vethwg*\n\n[Link]\nUnmanaged=yes\n")
        );
        let manager = root.path().join("etc/NetworkManager/conf.d/90-weave.conf");
        assert!(text(manager).ends_with("unmanaged-devices+=interface-name:weave;interface-name:vethwe*;interface-name:vethwl*;interface-name:vethwg*\n"));
        // With another bridge our files are written again; the file of another program is neither written nor removed.
        fs::write(network.join("05-weave.link"), "[Match]\n").unwrap();
        let names = DeviceNames { bridge: "w2".into(), ..DeviceNames::default() };
        let written = install(root.path(), &names).unwrap();
        assert_eq!(written.len(), 2);
        assert_eq!(present(root.path(), &names), written);
        let other = DeviceNames::instance("b");
        assert_eq!(install(root.path(), &other).unwrap().len(), 3);
        assert!(text(network.join("05-weave-b.link")).contains("=weave-b vethwb-b vethwd-b vethwe*"));
        assert_eq!(remove(root.path(), &other).removed.len(), 3);
        assert_eq!(remove(root.path(), &names), Removed { removed: written, ..Removed::default() });
        assert_eq!(remove(root.path(), &names), Removed::default());
        assert_eq!(text(network.join("05-weave.link")), "[Match]\n");
        assert_eq!(fs::read_dir(&network).unwrap().count(), 1);
    }

    #[test]
    fn failure_removes_the_files_that_were_written() {
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
