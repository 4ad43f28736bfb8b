//! Addresses that nobody chose: getting them, and looking from outside who has which.

use std::collections::BTreeMap;
use std::time::Duration;

use weave_lab::{Container, Host, Lab, Outcome};

/// `weave attach` without an address; what it printed.
#[track_caller]
pub fn allocate(container: &Container) -> String {
    let ip = container.attach(&[]);
    assert!(ip.parse::<std::net::Ipv4Addr>().is_ok(), "{ip}");
    ip
}

/// A new container with an address of its own.
#[track_caller]
pub fn member(host: &Host, name: &str) -> (Container, String) {
    let container = host.container(name);
    let ip = allocate(&container);
    (container, ip)
}

/// The line of `weave status` with this label; of the service `ipam` if several have it.
pub fn summary(host: &Host, label: &str) -> String {
    let page = host.weave_ok(&["status"]);
    let service = page.split("Service: ").find(|s| s.starts_with("ipam")).unwrap_or_default();
    let line = service.lines().find_map(|l| l.trim_start().strip_prefix(label)?.strip_prefix(": "));
    line.unwrap_or_default().to_owned()
}

/// Waits until `weave status` says so about the first division of the range: deferred, waiting, achieved.
#[track_caller]
pub fn wait_consensus(host: &Host, word: &str, deadline: Duration) {
    host.wait("consensus", deadline, || {
        let now = summary(host, "Consensus");
        if now == word { Ok(()) } else { Err(format!("{now}, not {word}")) }
    });
}

/// `weave status ipam`.
pub fn shares(host: &Host) -> String {
    host.weave_ok(&["status", "ipam"])
}

/// The ring's first owners as all peers must have them: from the entries, who began.
pub fn ring(host: &Host) -> Vec<(String, String)> {
    let report = host.report().unwrap_or_default();
    let entries = report["IPAM"]["Entries"].as_array().cloned().unwrap_or_default();
    let text = |e: &serde_json::Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
    entries.iter().map(|e| (text(e, "Token"), text(e, "Peer"))).collect()
}

/// Waits until these hosts have one and the same ring.
#[track_caller]
pub fn wait_one_ring(hosts: &[&Host], deadline: Duration) {
    weave_lab::eventually("one ring", deadline, || {
        let rings: Vec<_> = hosts.iter().map(|h| ring(h)).collect();
        if rings.iter().all(|r| !r.is_empty() && *r == rings[0]) {
            Ok(())
        } else {
            Err(format!("{rings:#?}"))
        }
    });
}

/// Every address that any namespace of any host has on `ethwe`, looked at from outside; fails if two have the same.
#[track_caller]
pub fn check_unique(lab: &Lab) -> BTreeMap<String, String> {
    let mut holders = BTreeMap::new();
    for host in lab.hosts() {
        let script = "for n in /run/netns/*; do n=${n##*/}; \
                      ip -n $n -4 -o addr show dev ethwe 2>/dev/null | sed \"s|^|$n |\"; done; true";
        for line in host.sh(script).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(name), Some(at)) = (words.first(), words.iter().position(|w| *w == "inet")) else {
                continue;
            };
            let Some(ip) = words.get(at + 1).and_then(|c| c.split('/').next()) else { continue };
            let holder = format!("{name}@{}", host.name());
            if let Some(other) = holders.insert(ip.to_owned(), holder.clone()) {
                panic!("{ip} is used twice: by {other} and by {holder}");
            }
        }
    }
    holders
}

/// `n` bare namespaces `<prefix>1`... on a host, all attached at the same time without an address; what was printed.
#[track_caller]
pub fn attach_many(host: &Host, prefix: &str, n: usize) -> Vec<String> {
    let weave = weave_lab::weave_binary();
    let script = format!(
        "cd /run; for i in $(seq {n}); do ip netns add {prefix}$i; done; \
         for i in $(seq {n}); do {weave} attach netns:{prefix}$i > {prefix}$i.out 2>&1 & done; wait; \
         for i in $(seq {n}); do cat {prefix}$i.out; rm {prefix}$i.out; done"
    );
    let outcome = host.command_with(&[], &["sh", "-ec", &script], Duration::from_secs(120));
    let lines: Vec<String> = outcome.clone().expect_ok().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), n, "{outcome}");
    for line in &lines {
        assert!(line.parse::<std::net::Ipv4Addr>().is_ok(), "{line}");
    }
    lines
}

/// A command that has to wait: run with this much time, after which it is told to end. It says why it waited.
#[track_caller]
pub fn blocked(host: &Host, seconds: u32, args: &[&str]) -> Outcome {
    let seconds = seconds.to_string();
    let mut argv = vec!["timeout", "--foreground", &seconds, weave_lab::weave_binary()];
    argv.extend(args);
    let outcome = host.command(&argv);
    assert_eq!(outcome.code, Some(124), "has to wait\n{outcome}");
    assert!(outcome.stderr.contains("broken off while waiting for"), "{outcome}");
    outcome
}
