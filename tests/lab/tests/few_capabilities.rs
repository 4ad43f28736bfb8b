//! The peer with the capabilities that its unit gives it, and with fewer, where no bpffs is mounted.

use weave_lab::{Host, Lab, Topology, weave_binary};

use crate::common::*;

const UNIT: &str = include_str!("../../../app/cli/weave.service");

/// Runs a command with these capabilities, in a mount namespace without bpffs.
const CONFINED: &str =
    "umount -l /sys/fs/bpf 2>/dev/null; grep -q ' /sys/fs/bpf ' /proc/self/mounts && exit 99
exec setpriv --no-new-privs --bounding-set \"$CAPS\" --inh-caps \"$CAPS\" \"$@\"";

/// Capabilities of the unit that a test machine may not have itself, with their numbers.
const OPTIONAL: [(&str, u32); 2] = [("sys_module", 16), ("sys_resource", 24)];

/// Whether this process, and so its children, could have the capability.
fn is_available(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() & 1 << number != 0
}

/// The capabilities of the unit, without `except`, as `setpriv` takes them.
fn capabilities(except: &[&str]) -> String {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let names = line.split_whitespace().map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase());
    let is_missing = |name: &str| OPTIONAL.iter().any(|(optional, n)| *optional == name && !is_available(*n));
    let kept = names.filter(|name| !except.contains(&name.as_str()) && !is_missing(name));
    let kept = kept.map(|name| format!(",+{name}"));
    format!("-all{}", kept.collect::<String>())
}

fn launch_confined(host: &Host, capabilities: &str, peers: &[&str]) {
    host.sh("mkdir -p /run/mount");
    let capabilities = format!("CAPS={capabilities}");
    let confined = ["env", &capabilities, "unshare", "-m", "sh", "-c", CONFINED, "sh"];
    let launch = [weave_binary(), "launch", "--no-restart"];
    host.command_ok(&[&confined[..], &launch, peers].concat());
}

#[test]
fn the_capabilities_of_the_unit_suffice_without_bpffs() {
    let Some(lab) = Lab::start("fewcaps", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let unit = capabilities(&[]);
    launch_confined(h1, &unit, &[]);
    launch_confined(h2, &unit, &["h1"]);
    let pid = h1.daemon_pid().expect("the daemon runs");
    let set = h1.sh(&format!("grep CapBnd /proc/{pid}/status"));
    assert!(!set.contains("ffffffff"), "{set}");
    h1.wait_established(1, LONG_TIMEOUT);
    wait_overlay(h1, "fastdp");
    let members = attach_each(&[h1, h2]);
    check_all_traffic(&members);

    step("a restarted daemon takes programs and maps over");
    let [a, b] = &members[..] else { unreachable!() };
    let pinger = a.container.pinging(&b.ip, 10);
    h1.weave_ok(&["stop"]);
    launch_confined(h1, &unit, &[]);
    h1.wait_established(1, LONG_TIMEOUT);
    wait_overlay(h1, "fastdp");
    let pings = pinger.finish();
    assert_eq!((pings.received, pings.duplicates), (pings.sent, 0), "{pings:?}");
}

/// Containers cannot be attached without SYS_ADMIN; frames of the host pass.
#[test]
fn without_capabilities_for_programs_the_next_overlay_is_used() {
    let Some(lab) = Lab::start("nobpf", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch_confined(h2, &capabilities(&["bpf", "perfmon", "sys_admin"]), &["h1"]);
    h2.wait_established(1, LONG_TIMEOUT);
    wait_overlay(h2, "warp");
    let reasons = h2.log().lines().filter(|line| line.contains("fastdp is not used")).count();
    assert_eq!(reasons, 1, "{}", h2.log());
    for (host, cidr) in [(h1, "10.2.1.1/24"), (h2, "10.2.1.2/24")] {
        host.weave_ok(&["expose", cidr]);
    }
    h2.wait("h1 to answer", SHORT_TIMEOUT, || {
        h2.command(&["ping", "-c", "1", "-W", "1", "10.2.1.1"]).success()
    });

    step("without SYS_ADMIN programs work, and only maps are not taken over");
    h2.weave_ok(&["stop"]);
    launch_confined(h2, &capabilities(&["sys_admin"]), &["h1"]);
    h2.wait_established(1, LONG_TIMEOUT);
    wait_overlay(h2, "fastdp");
    h2.wait("h1 to answer", SHORT_TIMEOUT, || {
        h2.command(&["ping", "-c", "1", "-W", "1", "10.2.1.1"]).success()
    });
}
