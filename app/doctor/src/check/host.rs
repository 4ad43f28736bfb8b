//! Rights, files, the resolver and container engines of the host.

use crate::facts::{Daemon, Directory, Facts};
use crate::finding::Finding;
use crate::finding::Severity::{Error, Notice, Warning};

/// The daemon writes a few kilobytes at a time; below this any other program may fill the disk at once.
const LITTLE_SPACE: u64 = 16 << 20;
/// Less may not be enough for the daemon's files.
const NO_SPACE: u64 = 256 << 10;

pub(super) fn rights(facts: &Facts) -> Vec<Finding> {
    let effect = "weave cannot change the network of this host";
    if !facts.is_root {
        let problem = "this is not root: little can be examined";
        return vec![Finding::new(
            Error,
            "rights",
            problem,
            effect,
            "run 'sudo weave doctor', and the peer as root, too",
        )];
    }
    let mut findings = Vec::new();
    if !facts.missing_capabilities.is_empty() {
        let names = facts.missing_capabilities.join(" ");
        let remedy = "run it outside of a container, or give the container --privileged and --net=host";
        findings.push(Finding::new(
            Error,
            "rights",
            format!("capabilities are missing: {names}"),
            effect,
            remedy,
        ));
    }
    if facts.sysctls_read_only {
        findings.push(Finding::new(
            Error,
            "rights",
            "/proc/sys is read-only",
            "the daemon cannot set up its interfaces and does not start",
            "run it outside of a container, or give the container --privileged",
        ));
    }
    findings
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Daemon::Silent(error) = &facts.daemon {
        findings.push(Finding::new(
            Error,
            "daemon",
            format!("the daemon runs but does not answer: {error}"),
            "commands wait or fail; traffic may still pass",
            "read its log ('journalctl -u weave' or /var/log/weave.log), then 'weave stop' and 'weave launch'",
        ));
    }
    findings.extend(facts.unread.iter().map(|what| {
        let effect = "a part of this host was not examined";
        Finding::new(
            Warning,
            "not-examined",
            what,
            effect,
            "repeat 'weave doctor'; if it stays, what it names hangs",
        )
    }));
    findings.extend(facts.directories.iter().filter_map(directory));
    resolver(facts, &mut findings);
    findings.extend(facts.engines.iter().filter_map(|engine| {
        let name = engine.name;
        let problem = format!("{name} does not answer: {}", engine.problem.as_ref()?);
        let effect = "its containers are neither attached nor started again, and the end of those that run is not noticed";
        let unit = name.to_lowercase();
        let remedy = format!("systemctl restart {unit}; 'journalctl -u {unit}' says why it ended");
        Some(Finding::new(Warning, "engine", problem, effect, remedy))
    }));
    findings.extend(facts.missing_plugins.iter().map(|(path, command)| {
        let problem = format!("container runtimes do not find {}, or it leads nowhere", path.display());
        let effect = "containers of networks that need it do not start";
        Finding::new(Error, "plugin", problem, effect, *command)
    }));
    findings
}

fn directory(directory: &Directory) -> Option<Finding> {
    let path = directory.path.display();
    let effect = "addresses, peers and names are not saved: requests for addresses fail, and a restart forgets changes";
    if let Some(problem) = &directory.problem {
        let problem = format!("{path} cannot be written: {problem}");
        let remedy = format!(
            "make it writable ('findmnt -T {path}' and 'mount -o remount,rw ...'), or use another with --state-dir or --run-dir"
        );
        return Some(Finding::new(Error, "directory", problem, effect, remedy));
    }
    let remedy =
        format!("remove what is not needed there; 'df -h {path}' and 'df -i {path}' show what is left");
    if directory.is_out_of_inodes {
        let problem = format!("no more files can be created in {path}: its file system has no free inodes");
        return Some(Finding::new(Error, "disk-full", problem, effect, remedy));
    }
    let free = directory.free_bytes.filter(|free| *free < LITTLE_SPACE)?;
    let problem = format!("the file system of {path} has {} kB left", free >> 10);
    Some(match free {
        0..NO_SPACE => Finding::new(Error, "disk-full", problem, effect, remedy),
        _ => Finding::new(Warning, "disk-full", problem, format!("once it is full, {effect}"), remedy),
    })
}

fn resolver(facts: &Facts, findings: &mut Vec<Finding>) {
    const EFFECT: &str =
        "containers that use weaveDNS do not resolve names outside of its domain, and peers cannot be named";
    let resolv_conf = &facts.resolv_conf;
    if let Some(problem) = &resolv_conf.problem {
        let problem = format!("/etc/resolv.conf cannot be read: {problem}");
        let remedy = "write it with a line 'nameserver <address>', or restart what makes it, as 'systemctl restart systemd-resolved'";
        findings.push(Finding::new(Warning, "resolv-conf", problem, EFFECT, remedy));
    }
    for line in &resolv_conf.bad_lines {
        let problem = format!("/etc/resolv.conf has a line that is not understood: {line:?}");
        let remedy = "correct the line: 'nameserver <address>'";
        findings.push(Finding::new(Warning, "resolv-conf", problem, EFFECT, remedy));
    }
    let silent: Vec<_> =
        resolv_conf.servers.iter().filter(|s| !s.answers).map(|s| s.address.ip().to_string()).collect();
    if silent.is_empty() {
        return;
    }
    let problem = format!("DNS servers of /etc/resolv.conf do not answer: {}", silent.join(" "));
    let remedy = "name servers that answer in /etc/resolv.conf, or let UDP port 53 through to these";
    findings.push(if silent.len() == resolv_conf.servers.len() {
        Finding::new(Warning, "resolv-conf", problem, EFFECT, remedy)
    } else {
        Finding::new(Notice, "resolv-conf", problem, "resolving names takes longer", remedy)
    });
}
