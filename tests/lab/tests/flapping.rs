//! Full rate while links come and go.

use std::time::{Duration, Instant};

use weave_lab::{Lab, Topology};

use crate::common::addresses::long_tests_enabled;
use crate::common::*;

/// Ten minutes with LAB_LONG=1.
#[test]
fn full_rate_while_links_flap() {
    for (name, options) in
        [("flapfast", &[][..]), ("flapwarp", &["--password", "wEaVe"]), ("flapslee", &["--overlays=sleeve"])]
    {
        flap(name, options, Duration::from_secs(if long_tests_enabled() { 200 } else { 6 }));
    }
}

/// TCP goes on between two corners of a square, of which another link is cut each second. Then every connection works again, no daemon
/// has ended or keeps memory of what is over, and no frame was delivered twice.
fn flap(name: &str, options: &[&str], time: Duration) {
    let Some(lab) = Lab::start(name, &Topology::hosts(4)) else { return };
    launch_square(&lab, options);
    let members = attach_each(&[lab.host("h1"), lab.host("h3")]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let daemons = || lab.hosts().iter().map(|host| host.daemon_pid()).collect::<Vec<_>>();
    let (pids, memory) = (daemons(), lab.hosts().iter().map(|host| host.daemon_rss()).max());
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
    assert!(now < memory.map(|kb| kb + 20_000), "memory of a daemon: {memory:?} kB, then {now:?} kB");
}
