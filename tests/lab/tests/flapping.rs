//! Full rate while links come and go.

use std::time::{Duration, Instant};

use weave_lab::{Host, Lab, Topology};

use crate::common::addresses::long_tests_enabled;
use crate::common::*;

/// Ten minutes with LAB_LONG=1.
#[test]
fn full_rate_while_links_flap() {
    for (name, options) in [
        ("flapfast", &[][..]),
        ("flapwarp", &["--password", "wEaVe", "--data-threads", "2"]),
        ("flapslee", &["--overlays=sleeve"]),
    ] {
        flap(name, options, Duration::from_secs(if long_tests_enabled() { 200 } else { 6 }));
    }
}

/// What a daemon and its kernel path hold: file descriptors, devices, entries for Ethernet addresses.
fn held(host: &Host) -> [usize; 3] {
    let report = host.report().unwrap();
    let kernel = &report["Router"]["OverlayDiagnostics"]["fastdp"];
    let entries = |name: &str| kernel[name].as_array().map_or(0, Vec::len);
    [host.daemon_fds(), entries("Vports"), entries("Flows")]
}

/// TCP goes on between two corners of a square, of which another link is cut each second. Then every connection works again, no daemon
/// has ended or keeps memory, descriptors or entries of the kernel of what is over, and no frame was delivered twice.
fn flap(name: &str, options: &[&str], time: Duration) {
    let Some(lab) = Lab::start(name, &Topology::hosts(4)) else { return };
    launch_square(&lab, options);
    let members = attach_each(&[lab.host("h1"), lab.host("h3")]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let daemons = || lab.hosts().iter().map(|host| host.daemon_pid()).collect::<Vec<_>>();
    let (pids, memory) = (daemons(), lab.hosts().iter().map(|host| host.daemon_rss()).max());
    let before: Vec<[usize; 3]> = lab.hosts().iter().map(held).collect();
    let pinger = a.container.pinging(&c.ip, 100);
    let seconds = time.as_secs().to_string();
    let iperf = |member: &Member, args: &[&str]| {
        let namespace = format!("--net=/run/netns/{}", member.container.name());
        let command = [&["nsenter", &namespace, "iperf3"], args].concat();
        member.container.host().background(&command, false).unwrap()
    };
    let server = iperf(c, &["-s"]);
    let client = iperf(a, &["-c", &c.ip, "-t", &seconds]);
    let links = [("h1", "h2"), ("h3", "h4"), ("h2", "h3"), ("h4", "h1")];
    let end = Instant::now() + time;
    let mut next = Instant::now();
    for (x, y) in links.into_iter().cycle() {
        if next >= end {
            break;
        }
        lab.cut(x, y);
        next += Duration::from_secs(1);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        lab.heal(x, y);
    }
    drop((client, server));
    let pings = pinger.finish();
    assert_eq!(pings.duplicates, 0, "{pings:?}");
    assert!(pings.received > 0, "{pings:?}");
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
    }
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    assert_eq!(daemons(), pids, "no daemon has ended");
    let now = lab.hosts().iter().map(|host| host.daemon_rss()).max();
    println!(
        "{name}: {:.0} % of the pings were answered, longest silence {:.1} s, memory {memory:?} then {now:?} kB",
        pings.received as f64 * 100.0 / pings.sent as f64,
        pings.longest_gap_ms / 1e3
    );
    for (host, before) in lab.hosts().iter().zip(&before) {
        let name = host.name();
        host.wait("descriptors and entries of the kernel path to be those of before", SHORT_TIMEOUT, || {
            let now = held(host);
            // A connection may be made at this moment, and the bridge of a host be heard for the first time.
            let is_same =
                now[0] <= before[0] + 2 && now[1] <= before[1] && now[2] <= before[2] + lab.hosts().len();
            if is_same { Ok(()) } else { Err(format!("{name}: {before:?}, then {now:?}")) }
        });
    }
    println!("{name}: descriptors, devices, entries of each host: {before:?}, and not more afterwards");
    assert!(now < memory.map(|kb| kb + 20_000), "memory of a daemon: {memory:?} kB, then {now:?} kB");
}
