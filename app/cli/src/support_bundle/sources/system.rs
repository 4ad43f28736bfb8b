//! Reads files and runs programs of the host, with limits on size and time.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::utsname::uname;
use weave_types::MacAddr;

/// Bytes of a file that is read from its beginning.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of a log that are read from its end, and of what a program prints.
const MAX_LOG: u64 = 8 << 20;
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Settings below `/proc/sys`. `*` is any entry of a directory.
const SYSCTLS: [&str; 24] = [
    "kernel/unprivileged_bpf_disabled",
    "net/bridge/*",
    "net/core/bpf_jit_enable",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/conf/*/arp_ignore",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/promote_secondaries",
    "net/ipv4/conf/*/proxy_arp",
    "net/ipv4/conf/*/route_localnet",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/neigh/default/gc_thresh1",
    "net/ipv4/neigh/default/gc_thresh2",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv4/tcp_mtu_probing",
    "net/ipv6/conf/*/accept_ra",
    "net/ipv6/conf/*/disable_ipv6",
    "net/ipv6/conf/*/forwarding",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
];

/// The beginning of a file.
pub(super) fn read_start(path: impl AsRef<Path>) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log file.
pub(super) fn read_end(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let skipped = file.metadata()?.len().saturating_sub(MAX_LOG);
        file.seek(SeekFrom::Start(skipped))?;
        let mut bytes = Vec::new();
        file.take(MAX_LOG).read_to_end(&mut bytes)?;
        if skipped > 0 {
            let first_line = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
            bytes.drain(..first_line);
        }
        Ok(bytes)
    };
    let bytes = read().map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a program prints on stdout, or why it failed. It is killed when its time is over.
fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let called = format!("{program} {}", arguments.join(" "));
    let failed = |e: io::Error| format!("{called}: {e}");
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let streams = [
        child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        child.stderr.take().map(|s| Box::new(s) as _),
    ];
    let readers = streams.map(|stream| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.by_ref().take(MAX_LOG).read_to_end(&mut bytes);
                let _ = io::copy(&mut stream, &mut io::sink());
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    let deadline = Instant::now() + PROGRAM_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{called}: killed after {} s", PROGRAM_TIMEOUT.as_secs()));
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let [stdout, stderr] = readers.map(|reader| reader.join().unwrap_or_default());
    if status.success() {
        return Ok(stdout);
    }
    let complaint = stderr.lines().find(|line| !line.trim().is_empty());
    Err(format!("{called}: {}", complaint.map_or_else(|| status.to_string(), str::to_owned)))
}

/// What programs print, each under its command line. Fails if all of them do.
fn outputs(calls: &[&[&str]]) -> Result<String, String> {
    let (mut text, mut failures) = (String::new(), Vec::new());
    for call in calls {
        let Some((program, arguments)) = call.split_first() else { continue };
        match output(program, arguments) {
            Ok(printed) => {
                let _ = writeln!(text, "== {}\n{printed}", call.join(" "));
            }
            Err(why) => {
                let _ = writeln!(text, "== missing: {why}\n");
                failures.push(why);
            }
        }
    }
    if failures.len() == calls.len() { Err(failures.join("; ")) } else { Ok(text) }
}

pub(super) fn network() -> Result<String, String> {
    outputs(&[
        &["ip", "-s", "-d", "link"],
        &["ip", "addr"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
    ])
}

pub(super) fn firewall() -> Result<String, String> {
    outputs(&[&["iptables-save", "-c"], &["iptables-legacy-save", "-c"], &["nft", "list", "ruleset"]])
}

pub(super) fn journal(unit: &str, lines: u32) -> Result<String, String> {
    let lines = lines.to_string();
    let text =
        output("journalctl", &["--unit", unit, "--lines", &lines, "--no-pager", "--output", "short-iso"])?;
    if text.trim() == "-- No entries --" {
        Err(format!("the journal has nothing of {unit}"))
    } else {
        Ok(text)
    }
}

/// `report` is that of the daemon.
pub(super) fn versions(report: Option<&str>) -> Result<String, String> {
    let mut text = format!("weave: {}\n", weave_daemon::VERSION);
    let daemon = report.and_then(|json| weave_api::Report::from_json(json).ok());
    let _ = writeln!(
        text,
        "daemon: {}",
        daemon.map_or_else(|| "does not answer".to_owned(), |report| report.version)
    );
    if let Ok(system) = uname() {
        let words = [system.sysname(), system.release(), system.version(), system.machine()];
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        let _ = writeln!(text, "kernel: {}", words.join(" "));
    }
    for file in ["/etc/os-release", "/proc/loadavg", "/proc/uptime", "/proc/meminfo"] {
        let lines = read_start(file).unwrap_or_else(|e| format!("missing: {e}\n"));
        let _ = writeln!(text, "\n== {file}\n{}", lines.trim_end());
    }
    let programs = [
        &["iptables", "--version"][..],
        &["nft", "--version"],
        &["ip", "-V"],
        &["systemctl", "--version"],
        &["docker", "--version"],
        &["dockerd", "--version"],
        &["podman", "--version"],
        &["containerd", "--version"],
        &["runc", "--version"],
    ];
    text.push('\n');
    text.push_str(&outputs(&programs).unwrap_or_default());
    Ok(text)
}

/// The arguments of a process.
pub(super) fn arguments(pid: i32) -> io::Result<Vec<String>> {
    let line = read_start(format!("/proc/{pid}/cmdline"))?;
    Ok(line.split_terminator('\0').map(str::to_owned).collect())
}

pub(super) fn processes(pids: &[i32]) -> Result<String, String> {
    if pids.is_empty() {
        return Err("no daemon runs".to_owned());
    }
    let mut text = String::new();
    for pid in pids {
        // As JSON, in which one sees where an argument ends.
        let arguments = arguments(*pid).map(|arguments| serde_json::json!(arguments).to_string());
        let _ = writeln!(text, "== {pid}: {}", arguments.unwrap_or_else(|e| e.to_string()));
        for file in ["status", "limits"] {
            text.push_str(
                &read_start(format!("/proc/{pid}/{file}")).unwrap_or_else(|e| format!("{file}: {e}\n")),
            );
        }
        text.push('\n');
    }
    Ok(text)
}

/// The contents of files, each under its path.
pub(super) fn with_headings(files: &[(PathBuf, String)]) -> Result<String, String> {
    if files.is_empty() {
        return Err("there are none".to_owned());
    }
    Ok(files.iter().map(|(path, content)| format!("== {}\n{content}\n", path.display())).collect())
}

pub(super) fn sysctls() -> String {
    let mut text = String::new();
    for pattern in SYSCTLS {
        let (folder, rest) = pattern.split_once('*').unwrap_or((pattern, ""));
        let root = Path::new("/proc/sys");
        let names: BTreeSet<String> = if folder == pattern {
            [pattern.to_owned()].into()
        } else {
            let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
            entries.map(|entry| format!("{folder}{}{rest}", entry.file_name().to_string_lossy())).collect()
        };
        for name in names {
            if let Ok(value) = read_start(root.join(&name)) {
                let _ = writeln!(text, "{name} = {}", value.trim_end());
            }
        }
    }
    text
}

/// The addresses of interfaces that are devices.
pub(super) fn hardware() -> BTreeSet<MacAddr> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let devices = entries.map(|entry| entry.path()).filter(|path| path.join("device").exists());
    devices.filter_map(|path| read_start(path.join("address")).ok()?.trim().parse().ok()).collect()
}

/// The domains of the host's resolver.
pub(super) fn search_domains() -> Vec<String> {
    let text = read_start("/etc/resolv.conf").unwrap_or_default();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let words = lines
        .filter(|words| matches!(words.first(), Some(&("search" | "domain"))))
        .flat_map(|words| words[1..].to_vec());
    words.map(|word| word.trim_end_matches('.').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_limited() {
        assert_eq!(output("echo", &["a", "b"]), Ok("a b\n".to_owned()));
        assert_eq!(
            output("sh", &["-c", "echo; echo no >&2; exit 3"]),
            Err("sh -c echo; echo no >&2; exit 3: no".to_owned())
        );
        let missing = output("/no/such/program", &[]).expect_err("missing");
        assert!(missing.starts_with("/no/such/program : "), "{missing}");
        assert!(outputs(&[&["/no/such"], &["echo", "x"]]).is_ok_and(|text| text.contains("== echo x\nx\n")));
        assert!(outputs(&[&["/no/such"]]).is_err());
    }

    #[test]
    fn last_lines_of_a_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        std::fs::write(&path, "one\ntwo\n").expect("written");
        assert_eq!(read_end(&path), Ok("one\ntwo\n".to_owned()));
        let file = File::create(&path).expect("created");
        file.set_len(MAX_LOG).expect("extended");
        std::fs::write(folder.path().join("tail"), "").expect("written");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("opened");
        io::Write::write_all(&mut file, b"\nlast\n").expect("written");
        assert_eq!(read_end(&path), Ok("last\n".to_owned()));
        assert!(read_end(&folder.path().join("none")).is_err());
    }

    #[test]
    fn settings_of_all_interfaces() {
        let text = sysctls();
        assert!(
            text.contains("net/ipv4/ip_forward = ") && text.contains("net/ipv4/conf/lo/forwarding = "),
            "{text}"
        );
    }
}
