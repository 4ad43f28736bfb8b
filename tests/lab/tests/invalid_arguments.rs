//! Invalid arguments give an error of one line and change nothing.

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("S-1");

/// Runs a command that must fail and change nothing.
#[track_caller]
fn refused(host: &Host, args: &[&str], words: &[&str]) {
    let before = host.snapshot();
    let outcome = host.weave(args);
    let after = host.snapshot();
    assert!(!outcome.timed_out && outcome.code.is_some_and(|c| c != 0), "has to be refused\n{outcome}");
    assert_eq!(outcome.stdout, "", "results only on stdout\n{outcome}");
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    // 2.8.1 adds one line that names the help.
    let one = lines.len() == 1 || (lines.len() == 2 && lines[1].starts_with("See '"));
    assert!(one, "one line has to tell\n{outcome}");
    for word in words {
        assert!(lines[0].contains(word), "`{word}` has to be named\n{outcome}");
    }
    assert_eq!(before, after, "nothing may change\n{outcome}");
}

#[test]
fn invalid_arguments_without_a_daemon() {
    let Some(lab) = Lab::start("bad", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let c = h1.container("c");
    for (args, words) in [
        (&["launch", "--bogus"][..], &["bogus"][..]),
        (&["launch", "--port"], &["port"]),
        (&["launch", "--port", "abc"], &["abc", "port"]),
        (&["launch", "--port", "70000"], &["port"]),
        (&["launch", "--name", "zz"], &["zz"]),
        (&["launch", "--name", "01:02:03:04:05"], &["01:02:03:04:05"]),
        (&["launch", "--trusted-subnets", "10.0.0.0/40"], &["10.0.0.0/40"]),
        (&["launch", "--mtu", "x"], &["mtu", "x"]),
        (&["launch", "--conn-limit", "-"], &["conn-limit"]),
        (&["launch", "--log-level", "loud"], &["loud"]),
        (&["launch", "--resume", "h2"], &["resume"]),
        (&["launch", "h2:port"], &["port"]),
        (&["launch", "h2:0"], &["h2:0"]),
        (&["launch", "--host", "1.2.3"], &["1.2.3"]),
        (&["lunch"], &["lunch"]),
        (&["status", "nonsense"], &[]),
        (&["attach", "10.2.1.1/24", "netns:c"], &[]),
        (&["connect", "h2"], &[]),
        (&["status"], &[]),
    ] {
        refused(h1, args, words);
    }
    assert!(!c.has_interface());

    step("a port that is in use, by TCP or by UDP");
    for listen in ["TCP-LISTEN:6783", "UDP-LISTEN:6783"] {
        let holder = match listen {
            "TCP-LISTEN:6783" => h1.probe_background(&["tcp-serve", "--port", "6783"]),
            _ => h1.probe_background(&["udp-serve", "--port", "6783"]),
        };
        refused(h1, &["launch", "--no-restart"], &["6783"]);
        holder.finish().unwrap();
    }

    step("without root");
    let before = h1.snapshot();
    let weave = weave_lab::weave_binary();
    let copy = "/tmp/weave-lab-weave-copy";
    std::fs::copy(weave, copy).unwrap();
    let outcome =
        h1.command(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", copy, "launch"]);
    let _ = std::fs::remove_file(copy);
    assert!(outcome.code.is_some_and(|c| c != 0) && outcome.stderr.contains("root"), "{outcome}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
    assert_eq!(before, h1.snapshot());
}

#[test]
fn invalid_arguments_with_a_daemon() {
    let Some(lab) = Lab::start("bad2", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &[]);
    let h1 = lab.host("h1");
    let c = h1.container("c");
    for (args, words) in [
        (&["attach", "10.2.1.1", "netns:c"][..], &[][..]),
        (&["attach", "10.2.1.1/33", "netns:c"], &["10.2.1.1/33"]),
        (&["attach", "10.2.1.256/24", "netns:c"], &["10.2.1.256/24"]),
        (&["attach", "10.2.1.1/24", "netns:nobody"], &["nobody"]),
        (&["attach", "10.2.1.1/24", "pid:999999"], &["999999"]),
        (&["attach", "10.2.1.1/24", "pid:x"], &["x"]),
        (&["attach", "10.2.1.1/24"], &[]),
        (&["detach", "10.2.1.1/24", "netns:c"], &[]),
        (&["connect"], &[]),
        (&["connect", "h2:99999"], &["h2:99999"]),
        (&["forget"], &[]),
        (&["report", "-f", "{{ .Broken"], &[]),
        (&["reset", "--bogus"], &["bogus"]),
        (&["stop", "now"], &["now"]),
    ] {
        refused(h1, args, words);
    }
    assert!(!c.has_interface());
    step("a second launch changes nothing");
    let pid = h1.daemon_pid();
    let outcome = h1.weave(&["launch"]);
    assert_eq!(outcome.code, Some(3), "{outcome}");
    assert!(outcome.stderr.contains("already running") && outcome.stderr.lines().count() == 1, "{outcome}");
    assert_eq!(h1.daemon_pid(), pid);
    assert_eq!(h1.connections().iter().filter(|c| c.state == "established").count(), 1);
    step("an attach whose second address is invalid changes nothing");
    let outcome = h1.weave(&["attach", "10.2.1.1/24", "10.2.2.0/99", "netns:c"]);
    assert!(!outcome.success() && !c.has_interface(), "{outcome}");
    claims(&["S-1"]);
}
