//! The life of a peer under a supervisor: crashes, restarts, bad disks, logs, and several peers on one machine.

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("S-5", "S-13");

fn one(name: &str) -> Option<Lab> {
    Lab::start(name, &Topology::hosts(1))
}

fn targets(host: &Host) -> Vec<String> {
    host.weave_ok(&["status", "targets"]).lines().map(str::to_owned).collect()
}

/// Kills the daemon and waits for another.
fn crash(host: &Host) -> i32 {
    let old = host.daemon_pid();
    host.signal_daemon("KILL");
    host.wait("another daemon", SOON, || match host.daemon_pid() {
        pid if pid != old && host.weave(&["status"]).success() => pid,
        _ => None,
    })
}

#[test]
fn a_supervisor_starts_it_again() {
    let Some(lab) = one("supervised") else { return };
    let h1 = lab.host("h1");
    let outcome = h1.weave_env(&[("WEAVE_PASSWORD", "wEaVe-secret")], &["launch", "192.0.2.1"]);
    let name = h1.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned();
    assert_eq!((outcome.code, outcome.stdout.trim()), (Some(0), name.as_str()), "{outcome}");
    // Nothing here outlives a reboot, which is said in one line.
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
    assert!(outcome.stderr.contains("after a reboot it needs a service manager"), "{outcome}");

    let pid = h1.daemon_pid().unwrap();
    let limits = h1.command_ok(&["cat", &format!("/proc/{pid}/limits")]);
    let files: Vec<&str> =
        limits.lines().find(|l| l.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert!(files[3] == files[4] || files[3] == "1048576", "{limits}");
    let shown =
        h1.sh("ps -e -o args=; cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -v '^WEAVE_BIN' || true");
    assert!(!shown.contains("wEaVe-secret"), "the password shows:\n{shown}");
    assert_eq!(h1.sh("stat -c %a:%u /var/lib/weave/password").trim(), "600:0");

    // What was told since is kept over a crash; a second one, too.
    h1.weave_ok(&["connect", "192.0.2.2"]);
    for _ in 0..2 {
        crash(h1);
        assert_eq!(targets(h1), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(h1.report().unwrap()["Router"]["Name"], *name);
    }
    claims(&["S-5"]);
    assert!(h1.log().contains("Restart/resume detected - using persisted peer list: [192.0.2.1 192.0.2.2]"));
    assert_eq!(h1.report().unwrap()["Router"]["Encryption"], true, "the password, too");
    h1.weave_ok(&["connect", "--replace"]);
    crash(h1);
    assert_eq!(targets(h1), [""; 0], "the empty list is kept as well");

    let second = h1.weave(&["launch"]);
    assert_eq!((second.code, second.stdout.as_str()), (Some(3), ""), "{second}");
    assert_eq!(second.stderr, "weave is already running; you can stop it with 'weave stop'.\n");
    h1.weave_ok(&["stop"]);
    assert!(h1.daemon_pid().is_none());
    assert_eq!(h1.sh("ls -A /run/weave").trim(), "", "nothing is left behind");
    assert!(h1.command(&["ls", "/var/lib/weave/password"]).code != Some(0), "nobody needs the password now");

    // A launch takes its arguments; --resume takes what was stored.
    h1.weave_ok(&["launch", "--no-restart", "192.0.2.3"]);
    assert_eq!(targets(h1), ["192.0.2.3"]);
    h1.weave_ok(&["connect", "192.0.2.4"]);
    h1.weave_ok(&["stop"]);
    h1.weave_ok(&["launch", "--resume"]);
    assert_eq!(targets(h1), ["192.0.2.3", "192.0.2.4"]);
    crash(h1);
    assert_eq!(targets(h1), ["192.0.2.3", "192.0.2.4"]);
    h1.weave_ok(&["stop"]);
    h1.weave_ok(&["launch", "192.0.2.3"]);
    assert_eq!(targets(h1), ["192.0.2.3"], "the same arguments, but a launch");
    claims(&["S-13"]);
}

#[test]
fn a_boot_job_resumes_unless_told_otherwise() {
    let Some(lab) = one("boot") else { return };
    let h1 = lab.host("h1");
    let boot = |peers: &[&str]| {
        let mut argv = vec![weave_lab::weave_binary(), "daemon"];
        argv.extend(peers);
        let daemon = h1.background(&argv, false).unwrap();
        h1.wait("the daemon", SOON, || h1.weave(&["status"]).success());
        daemon
    };
    let first = boot(&["192.0.2.1"]);
    h1.weave_ok(&["connect", "192.0.2.2"]);
    h1.weave_ok(&["forget", "192.0.2.1"]);
    drop(first);
    h1.reboot();
    let second = boot(&["192.0.2.1"]);
    assert_eq!(targets(h1), ["192.0.2.2"], "the same list: a restart");
    drop(second);
    h1.reboot();
    let third = boot(&["192.0.2.1", "192.0.2.9"]);
    assert_eq!(targets(h1), ["192.0.2.1", "192.0.2.9"], "another list: somebody edited it");
    drop(third);
}

#[test]
fn stale_files_and_two_at_a_time() {
    let Some(lab) = one("stale") else { return };
    let h1 = lab.host("h1");
    // Pids of processes that live but hold no lock, sockets that nobody reads.
    h1.sh("mkdir -p /run/weave /var/lib/weave; for f in weave supervisor launch; do echo 1 > /run/weave/$f.pid; done; \
           touch /run/weave/fresh; python3 -c \"import socket; \
           [socket.socket(socket.AF_UNIX, t).bind('/run/weave/'+n) for n, t in \
           (('weave.sock', socket.SOCK_STREAM), ('launch.sock', socket.SOCK_DGRAM))]\" || touch /run/weave/weave.sock");
    h1.weave_ok(&["launch", "--no-restart"]);
    h1.weave_ok(&["status"]);

    // A launch at work is waited for, not cut off.
    let holder = h1.background(&["flock", "/run/weave/launch.pid", "sleep", "1"], false).unwrap();
    h1.wait("the lock", SOON, || !h1.command(&["flock", "-n", "/run/weave/launch.pid", "true"]).success());
    let again = h1.weave(&["launch"]);
    assert_eq!(again.code, Some(3), "{again}");
    h1.weave_ok(&["stop"]);
    drop(holder);
    assert!(h1.daemon_pid().is_none());

    // Many at once: one wins, the others say so, and nothing of theirs is in its way.
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..5).map(|_| scope.spawn(|| h1.weave(&["launch", "--no-restart"]))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut codes: Vec<_> = outcomes.iter().map(|o| o.code).collect();
    codes.sort();
    assert_eq!(codes, [Some(0), Some(3), Some(3), Some(3), Some(3)], "{outcomes:?}");
    h1.weave_ok(&["status"]);
    h1.weave_ok(&["reset"]);
    assert_eq!(h1.sh("ls -d /run/weave /var/lib/weave 2>/dev/null || true").trim(), "");
}

#[test]
fn bad_disks() {
    let Some(lab) = one("disks") else { return };
    let h1 = lab.host("h1");
    h1.sh("mkdir -p /var/lib/weave; mount -t tmpfs -o size=64k,mode=0700 tmpfs /var/lib/weave");
    // Full: refused with the reason, and the host is as before.
    h1.sh("dd if=/dev/zero of=/var/lib/weave/fill bs=1k 2>/dev/null || true");
    let before = h1.snapshot();
    let full = h1.weave(&["launch", "--no-restart"]);
    assert!(full.code == Some(1) && full.stderr.contains("No space left on device"), "{full}");
    assert_eq!(h1.snapshot(), before);
    // Room again, and full once it runs: it goes on, says so, and saves when it can.
    h1.sh("rm /var/lib/weave/fill");
    h1.weave_ok(&["launch"]);
    h1.sh("dd if=/dev/zero of=/var/lib/weave/fill bs=1k 2>/dev/null || true");
    h1.weave_ok(&["connect", "192.0.2.1"]);
    assert_eq!(targets(h1), ["192.0.2.1"]);
    h1.wait("a word about it", SOON, || h1.log().contains("state is not saved"));
    h1.sh("rm /var/lib/weave/fill");
    h1.weave_ok(&["connect", "192.0.2.2"]);
    crash(h1);
    assert_eq!(targets(h1), ["192.0.2.1", "192.0.2.2"]);
    h1.weave_ok(&["stop"]);

    // Read-only: the same. The daemon that runs when it becomes so runs on, and can be stopped.
    h1.sh("mount -o remount,ro /var/lib/weave");
    let before = h1.snapshot();
    let read_only = h1.weave(&["launch", "--no-restart"]);
    assert!(read_only.code == Some(1) && read_only.stderr.contains("Read-only file system"), "{read_only}");
    assert_eq!(h1.snapshot(), before);
    h1.sh("mount -o remount,rw /var/lib/weave");
    h1.weave_ok(&["launch", "--no-restart"]);
    h1.sh("mount -o remount,ro /var/lib/weave");
    h1.weave_ok(&["status"]);
    h1.weave_ok(&["stop"]);
    assert!(h1.daemon_pid().is_none());
    h1.sh("umount /var/lib/weave");
}

#[test]
fn logs_follow_their_name() {
    let Some(lab) = one("logs") else { return };
    let h1 = lab.host("h1");
    h1.weave_ok(&["launch", "--log-file=/var/log/w.log", "--log-keep", "2"]);
    let log = || h1.command(&["cat", "/var/log/w.log"]).stdout;
    assert!(log().contains("Our name is "), "{}", log());
    h1.sh("mv /var/log/w.log /var/log/moved");
    // The supervisor's line and those of the next daemon: neither goes to the old file.
    crash(h1);
    h1.wait("a new log", SOON, || log().contains("starting it again") && log().contains("Our name is "));
    // A full disk below the log stops nobody.
    h1.sh("mkdir -p /var/log/small; mount -t tmpfs -o size=8k tmpfs /var/log/small");
    h1.weave_ok(&["stop"]);
    h1.weave_ok(&["launch", "--log-file=/var/log/small/w.log"]);
    h1.sh("dd if=/dev/zero of=/var/log/small/fill bs=1k 2>/dev/null || true");
    h1.weave_ok(&["connect", "192.0.2.1"]);
    crash(h1);
    assert_eq!(targets(h1), ["192.0.2.1"]);
    h1.weave_ok(&["stop"]);
    h1.sh("umount /var/log/small");
    let refused = h1.weave(&["launch", "--log-file", "/no/such/dir/log"]);
    assert!(
        refused.code == Some(1) && refused.stderr.starts_with("cannot open the log file /no/such/dir/log"),
        "{refused}"
    );
}

#[test]
fn several_peers_on_one_machine() {
    let Some(lab) = one("instances") else { return };
    let h1 = lab.host("h1");
    let (one, other) = (h1.container("one"), h1.container("other"));
    let before = h1.snapshot();
    launch(h1, &[], &[]);
    h1.weave_ok(&["launch", "--no-restart", "--instance", "b", "--port", "7000", "127.0.0.1:6783"]);
    let b = |args: &[&str]| h1.weave_env(&[("WEAVE_INSTANCE", "b")], args).expect_ok();
    h1.wait("the two to be connected", PATIENCE, || b(&["status", "connections"]).contains("established"));
    let name = |text: &str| text.lines().find(|l| l.contains(" Name: ")).map(str::to_owned);
    assert_ne!(name(&b(&["status"])), name(&h1.weave_ok(&["status"])), "peers of their own");

    // A container of each, and traffic between them.
    one.attach(&["10.2.1.1/24"]);
    b(&["attach", "10.2.1.2/24", "netns:other"]);
    let bridges = h1.command_ok(&["ip", "-o", "link", "show", "type", "bridge"]);
    assert!(bridges.contains(" weave:") && bridges.contains(" weave-b:"), "{bridges}");
    one.reaches("10.2.1.2", SOON);

    // One goes, the other stays as it is.
    h1.weave_ok(&["reset"]);
    assert!(!one.has_interface() && other.has_interface());
    b(&["status"]);
    let listed = b(&["reset", "--dry-run"]);
    for thing in [
        "process ",
        "file /run/weave-b/weave.pid",
        "directory /var/lib/weave-b",
        "device weave-b",
        "device vethwb-b",
    ] {
        assert!(listed.contains(thing), "{thing} in\n{listed}");
    }
    b(&["reset"]);
    assert!(!other.has_interface());
    assert_eq!(h1.snapshot(), before);
    let refused = h1.weave(&["launch", "--instance", "../x"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("is no name of at most 8"), "{refused}");
}

#[test]
fn a_clock_that_jumps() {
    let Some(lab) = Lab::start("clock", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    // The wall clock of one peer is moved by a library in front of libc; the machine's own is everybody's.
    h1.sh(
        "cat > /run/jump.c <<'EOF'\n\
         #define _GNU_SOURCE\n#include <stdio.h>\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int clock_gettime(clockid_t c, struct timespec *t) {\n\
           int r = syscall(SYS_clock_gettime, c, t);\n\
           if (c == CLOCK_REALTIME) {\n\
             long by = 0; FILE *f = fopen(\"/run/jump\", \"r\");\n\
             if (f) { if (fscanf(f, \"%ld\", &by) != 1) by = 0; fclose(f); }\n\
             t->tv_sec += by;\n\
           }\n\
           return r;\n\
         }\nEOF\n\
         gcc -shared -fPIC -O1 -o /run/jump.so /run/jump.c; echo 0 > /run/jump",
    );
    h1.weave_env(&[("LD_PRELOAD", "/run/jump.so")], &["launch"]).expect_ok();
    launch(h2, &[], &["h1"]);
    h1.wait_established(1, PATIENCE);
    let members = attach_each(&[h1, h2]);
    let [a, b] = &members[..] else { unreachable!() };
    a.container.reaches(&b.ip, SOON);
    let pings = a.container.pinging(&b.ip, 100);
    for by in ["-315360000", "315360000", "-86400", "0"] {
        h1.sh(&format!("echo {by} > /run/jump"));
        // The jump has arrived where people see it.
        h1.weave_ok(&["connect", "192.0.2.1"]);
        if by.len() > 6 {
            h1.wait("the clock", SOON, || {
                let log = h1.log();
                let years: Vec<&str> = log.lines().filter_map(|l| l.get(6..10)).collect();
                years.iter().any(|y| y.parse::<i32>().is_ok_and(|y| !(2020..2034).contains(&y)))
            });
        }
        assert_eq!(h1.connections().iter().filter(|c| c.state == "established").count(), 1);
    }
    let seen = pings.finish();
    assert!(seen.received + 5 > seen.sent && seen.longest_gap_ms < 1500.0, "{seen:?}");
    crash(h1);
    h1.wait_established(1, PATIENCE);
    a.container.reaches(&b.ip, SOON);
}

#[test]
fn a_launch_that_is_killed_anywhere() {
    let Some(lab) = one("cut") else { return };
    let h1 = lab.host("h1");
    let fresh = h1.snapshot();
    let mut after = 0;
    // From before it has done anything to after it has done everything.
    for cut in (0..100).step_by(7) {
        let script = format!(
            "{} launch --no-restart --password p & p=$!; sleep 0.{cut:03}; kill -9 $p 2>/dev/null || true; wait $p 2>/dev/null || true",
            weave_lab::weave_binary()
        );
        h1.sh(&script);
        // The next command works, whatever was done; the daemon may be on its way still.
        let again = h1.wait("a launch that works", SOON, || {
            let again = h1.weave(&["launch", "--no-restart", "--password", "p"]);
            if again.success() || again.stderr.contains("already running") {
                Ok(again)
            } else {
                Err(again.to_string())
            }
        });
        after += usize::from(!again.success());
        h1.wait("the peer", SOON, || h1.weave(&["status"]).success());
        assert_eq!(h1.report().unwrap()["Router"]["Encryption"], true);
        h1.weave_ok(&["reset"]);
        assert_eq!(h1.snapshot(), fresh, "after {cut} ms");
    }
    println!("the daemon went on after {after} of the kills");
}
