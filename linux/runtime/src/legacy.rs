//! Daemons of 2.8.1 on this host (docs/spec/cli.md 1).

use weave_host::NetNs;

use crate::Error;

/// Name of the daemon's process.
const DAEMON: &str = "weaver";
/// Length of a container's full id.
const ID_LENGTH: usize = 64;

/// A running daemon of 2.8.1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LegacyProcess {
    /// Its process id.
    pub pid: u32,
    /// Full id of its container, if it runs in one.
    pub container: Option<String>,
    /// Whether it belongs to a pod, which Kubernetes would restart.
    pub kubernetes: bool,
    /// Its options.
    pub arguments: Vec<String>,
    /// Whether its environment has a password.
    pub has_password: bool,
}

/// The daemons of 2.8.1 in the network namespace of the caller, in order of their process ids. Processes that the caller may
/// not inspect are left out.
///
/// # Errors
/// The namespace, or the list of processes, cannot be read.
pub fn legacy_processes() -> Result<Vec<LegacyProcess>, Error> {
    let here = NetNs::current()?.id();
    let unreadable = |e| Error::Processes(format!("listing processes: {e}"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(unreadable)?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("comm").trim_end() != DAEMON || !NetNs::of_process(pid).is_ok_and(|ns| ns.id() == here) {
            continue;
        }
        let bytes = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let mut arguments = strings(&bytes("cmdline"));
        // The command line of a zombie is empty.
        if arguments.is_empty() {
            continue;
        }
        arguments.remove(0);
        let has_password = |s: &String| s.strip_prefix("WEAVE_PASSWORD=").is_some_and(|p| !p.is_empty());
        let has_password = strings(&bytes("environ")).iter().any(has_password);
        let groups = read("cgroup");
        let container = container_id(&groups).or_else(|| container_id(&read("mountinfo")));
        found.push(LegacyProcess {
            pid,
            container,
            kubernetes: groups.contains("kubepods"),
            arguments,
            has_password,
        });
    }
    found.sort_by_key(|p| p.pid);
    Ok(found)
}

/// The strings of a command line or an environment, each of which ends with a zero. A string may be empty, as in `--ipalloc-range ''`.
fn strings(bytes: &[u8]) -> Vec<String> {
    let ended = bytes.split_inclusive(|b| *b == 0).map(|s| s.strip_suffix(&[0]).unwrap_or(s));
    ended.map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

/// The first id of a container in a process's list of control groups or mounts.
fn container_id(text: &str) -> Option<String> {
    let is_id = |word: &&str| word.len() == ID_LENGTH && word.bytes().all(|b| b.is_ascii_hexdigit());
    // `/docker/<id>`, `docker-<id>.scope`, `.../containers/<id>/hostname`.
    let of_container =
        |line: &&str| line.contains("docker") || line.contains("/containers/") || line.contains("cri-");
    let mut words = text.lines().filter(of_container).flat_map(|l| l.split(['/', '-', '.', ':', ' ']));
    words.find(is_id).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_arguments_are_arguments() {
        assert_eq!(
            strings(b"weaver\0--ipalloc-range\0\0--port\x006783\x00"),
            ["weaver", "--ipalloc-range", "", "--port", "6783"]
        );
        assert_eq!(strings(b""), [""; 0]);
    }

    #[test]
    fn container_ids_are_found_in_control_groups_and_mounts() {
        let id = "0123456789abcdef".repeat(4);
        for text in [
            format!("12:pids:/docker/{id}\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/kubepods/besteffort/pod1-2/cri-containerd-{id}.scope\n"),
            format!(
                "700 600 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"
            ),
        ] {
            assert_eq!(container_id(&text).as_deref(), Some(&id[..]), "{text}");
        }
        for text in ["0::/user.slice/session-1.scope\n", "", "0::/docker/abc\n"] {
            assert_eq!(container_id(text), None, "{text}");
        }
    }
}
