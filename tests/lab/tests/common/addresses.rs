//! Allocated addresses: getting them, and checking in the kernel which container has which.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weave_lab::{Container, Host, Lab, Outcome};

/// Runs `weave attach` without an address; returns the allocated one.
#[track_caller]
pub fn allocate(container: &Container) -> String {
    let ip = container.attach(&[]);
    assert!(ip.parse::<std::net::Ipv4Addr>().is_ok(), "{ip}");
    ip
}

/// A new container with an allocated address.
#[track_caller]
pub fn allocated_container(host: &Host, name: &str) -> (Container, String) {
    let container = host.container(name);
    let ip = allocate(&container);
    (container, ip)
}

/// The value of this label in the section `ipam` of `weave status`.
pub fn status_field(host: &Host, label: &str) -> String {
    let page = host.weave_ok(&["status"]);
    let service = page.split("Service: ").find(|s| s.starts_with("ipam")).unwrap_or_default();
    let line = service.lines().find_map(|l| l.trim_start().strip_prefix(label)?.strip_prefix(": "));
    line.unwrap_or_default().to_owned()
}

/// Waits until `weave status` shows this state of the consensus: deferred, waiting, achieved.
#[track_caller]
pub fn wait_consensus(host: &Host, word: &str, deadline: Duration) {
    host.wait("consensus", deadline, || {
        let now = status_field(host, "Consensus");
        if now == word { Ok(()) } else { Err(format!("{now}, not {word}")) }
    });
}

/// `weave status ipam`.
pub fn ipam_page(host: &Host) -> String {
    host.weave_ok(&["status", "ipam"])
}

/// Tokens and owners of the ring, from the report.
pub fn ring_entries(host: &Host) -> Vec<(String, String)> {
    let report = host.report().unwrap_or_default();
    let entries = report["IPAM"]["Entries"].as_array().cloned().unwrap_or_default();
    let text = |e: &serde_json::Value, key: &str| e[key].as_str().unwrap_or_default().to_owned();
    entries.iter().map(|e| (text(e, "Token"), text(e, "Peer"))).collect()
}

/// Waits until these hosts have the same ring.
#[track_caller]
pub fn wait_equal_rings(hosts: &[&Host], deadline: Duration) {
    weave_lab::eventually("one ring", deadline, || {
        let rings: Vec<_> = hosts.iter().map(|h| ring_entries(h)).collect();
        if rings.iter().all(|r| !r.is_empty() && *r == rings[0]) {
            Ok(())
        } else {
            Err(format!("{rings:#?}"))
        }
    });
}

/// The containers that have an address, by address.
type Holders = BTreeMap<String, Vec<String>>;

/// The addresses of all containers of these hosts, from the kernel.
fn holders(hosts: &[Host]) -> Result<Holders, String> {
    let mut found = Holders::new();
    for host in hosts {
        for (name, addresses) in host.holders()? {
            for ip in addresses {
                found.entry(ip).or_default().push(format!("{name}@{}", host.name()));
            }
        }
    }
    Ok(found)
}

fn duplicates(holders: Holders) -> Holders {
    holders.into_iter().filter(|(_, all)| all.len() > 1).collect()
}

/// Every address in use, with its container; fails if two containers have the same.
#[track_caller]
pub fn assert_unique_addresses(lab: &Lab) -> BTreeMap<String, String> {
    let all = holders(lab.hosts()).unwrap_or_else(|e| panic!("{e}"));
    let doubled = duplicates(all.clone());
    assert!(doubled.is_empty(), "used twice: {doubled:#?}");
    all.into_iter().filter_map(|(ip, mut holders)| Some((ip, holders.pop()?))).collect()
}

/// Checks continuously in the background that no two containers of a lab have the same address.
pub struct DuplicateAddressMonitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u32, Holders)>>,
}

impl DuplicateAddressMonitor {
    /// Starts the checks. Dropping the value fails the test if an address was in use twice; that must happen before the lab ends.
    pub fn of(lab: &Lab) -> DuplicateAddressMonitor {
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, hosts) = (Arc::clone(&stop), lab.hosts().to_vec());
        let thread = std::thread::spawn(move || {
            let (mut looks, mut before) = (0, BTreeMap::new());
            while !ended.load(Ordering::Relaxed) {
                // Hosts are checked one after the other, and an address may move in between: two checks must agree.
                // A host that is being rebooted has no containers.
                let begin = Instant::now();
                let now = duplicates(holders(&hosts).unwrap_or_default());
                looks += 1;
                let still = now.iter().filter(|(ip, all)| before.get(*ip) == Some(*all));
                let doubled: Holders = still.map(|(ip, all)| (ip.clone(), all.clone())).collect();
                if !doubled.is_empty() {
                    return (looks, doubled);
                }
                before = now;
                // The checks use at most a ninth of the time.
                std::thread::park_timeout(begin.elapsed().max(Duration::from_millis(100)) * 8);
            }
            (looks, BTreeMap::new())
        });
        DuplicateAddressMonitor { stop, thread: Some(thread) }
    }
}

impl Drop for DuplicateAddressMonitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        let seen = thread.join();
        if !std::thread::panicking() {
            let (looks, doubled) = seen.unwrap_or_else(|_| panic!("the outside observer failed"));
            assert!(doubled.is_empty(), "used twice, as seen from outside: {doubled:#?}");
            println!("looked {looks} times from outside");
        }
    }
}

/// Makes `n` namespaces `<prefix>1`... on a host and attaches all concurrently without an address; returns the addresses.
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

/// Runs a command that must still wait after this time, ends it, and checks that it says why it waited.
#[track_caller]
pub fn assert_command_waits(host: &Host, seconds: u32, args: &[&str]) -> Outcome {
    let seconds = seconds.to_string();
    let mut argv = vec!["timeout", "--foreground", &seconds, weave_lab::weave_binary()];
    argv.extend(args);
    let outcome = host.command(&argv);
    assert_eq!(outcome.code, Some(124), "has to wait\n{outcome}");
    assert!(outcome.stderr.contains("interrupted while waiting for"), "{outcome}");
    outcome
}

/// Launches several peers concurrently.
#[track_caller]
pub fn launch_concurrently(calls: &[(&Host, &[&str])]) {
    std::thread::scope(|scope| {
        for (host, args) in calls {
            scope.spawn(move || {
                let mut argv = vec!["launch", "--no-restart"];
                argv.extend(*args);
                host.weave_ok(&argv);
            });
        }
    });
}

/// Does the same on several hosts concurrently.
pub fn on_each_host(hosts: &[&Host], what: impl Fn(&Host) + Sync) {
    std::thread::scope(|scope| {
        for host in hosts {
            scope.spawn(|| what(host));
        }
    });
}

/// Whether `LAB_LONG=1` is set, as by `make soak`, which allows for tests that take minutes.
pub fn long_tests_enabled() -> bool {
    std::env::var("LAB_LONG").as_deref() == Ok("1")
}

/// Cuts all links between these hosts.
pub fn cut_all_links(lab: &Lab, hosts: &[&str]) {
    for (i, a) in hosts.iter().enumerate() {
        hosts[i + 1..].iter().for_each(|b| lab.cut(a, b));
    }
}
