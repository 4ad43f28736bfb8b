//! The daemon under a supervisor: crashes, restarts, full disks, logs, and several peers on one host.

use std::path::Path;

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("S-5", "S-13");

fn one(name: &str) -> Option<Lab> {
    Lab::start(name, &Topology::hosts(1))
}

fn targets(host: &Host) -> Vec<String> {
    host.weave_ok(&["status", "targets"]).lines().map(str::to_owned).collect()
}

/// Kills the daemon and waits for the next one.
fn crash(host: &Host) -> i32 {
    let old = host.daemon_pid();
    host.signal_daemon("KILL");
    host.wait("the next daemon", SHORT_TIMEOUT, || match host.daemon_pid() {
        pid if pid != old && host.weave(&["status"]).success() => pid,
        _ => None,
    })
}

#[test]
fn supervisor_restarts_the_daemon() {
    let Some(lab) = one("supervised") else { return };
    let h1 = lab.host("h1");
    let outcome = h1.weave_env(&[("WEAVE_PASSWORD", "wEaVe-secret")], &["launch", "192.0.2.1"]);
    let name = h1.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned();
    assert_eq!((outcome.code, outcome.stdout.trim()), (Some(0), name.as_str()), "{outcome}");
    // One line says that nothing restarts the peer after a reboot.
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
    assert!(outcome.stderr.contains("but not after a reboot"), "{outcome}");

    let pid = h1.daemon_pid().unwrap();
    let limits = h1.command_ok(&["cat", &format!("/proc/{pid}/limits")]);
    let files: Vec<&str> =
        limits.lines().find(|l| l.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert!(files[3] == files[4] || files[3] == "1048576", "{limits}");
    let shown =
        h1.sh("ps -e -o args=; cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep -v '^WEAVE_BIN' || true");
    assert!(!shown.contains("wEaVe-secret"), "the password shows:\n{shown}");
    assert_eq!(h1.sh("stat -c %a:%u /var/lib/weave/password").trim(), "600:0");

    step("peers added since the launch survive two crashes");
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
    assert!(h1.command(&["ls", "/var/lib/weave/password"]).code != Some(0), "the password file is removed");

    step("launch uses its arguments, --resume the stored peers");
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
fn boot_resumes_stored_peers_unless_the_list_changed() {
    let Some(lab) = one("boot") else { return };
    let h1 = lab.host("h1");
    let boot = |peers: &[&str]| {
        let mut argv = vec![weave_lab::weave_binary(), "daemon"];
        argv.extend(peers);
        let daemon = h1.background(&argv, false).unwrap();
        h1.wait("the daemon", SHORT_TIMEOUT, || h1.weave(&["status"]).success());
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
    assert_eq!(targets(h1), ["192.0.2.1", "192.0.2.9"], "a changed list is used");
    drop(third);
}

#[test]
fn stale_pid_files_and_sockets_are_ignored() {
    let Some(lab) = one("stale") else { return };
    let h1 = lab.host("h1");
    // Pids of live processes without the lock, sockets without a reader.
    h1.sh("mkdir -p /run/weave /var/lib/weave; for f in weave supervisor launch; do echo 1 > /run/weave/$f.pid; done; \
           touch /run/weave/fresh; python3 -c \"import socket; \
           [socket.socket(socket.AF_UNIX, t).bind('/run/weave/'+n) for n, t in \
           (('weave.sock', socket.SOCK_STREAM), ('control.sock', socket.SOCK_STREAM), ('launch.sock', socket.SOCK_DGRAM))]\" || touch /run/weave/weave.sock");
    h1.weave_ok(&["launch", "--no-restart"]);
    h1.weave_ok(&["status"]);
}

#[test]
fn launch_waits_for_another_launch() {
    let Some(lab) = one("waits") else { return };
    let h1 = lab.host("h1");
    launch(h1, &[], &[]);
    let holder = h1.background(&["flock", "/run/weave/launch.pid", "sleep", "1"], false).unwrap();
    h1.wait("the lock", SHORT_TIMEOUT, || {
        !h1.command(&["flock", "-n", "/run/weave/launch.pid", "true"]).success()
    });
    let again = h1.weave(&["launch"]);
    assert_eq!(again.code, Some(3), "{again}");
    h1.weave_ok(&["stop"]);
    drop(holder);
    assert!(h1.daemon_pid().is_none());
}

#[test]
fn supervisor_without_a_ready_daemon_does_not_count_as_running() {
    let Some(lab) = one("unready") else { return };
    let h1 = lab.host("h1");
    h1.sh("mkdir -p /run/weave; echo 1 > /run/weave/supervisor.pid; touch /run/weave/fresh");
    let ending = h1.background(&["flock", "/run/weave/supervisor.pid", "sleep", "1"], false).unwrap();
    h1.wait("its lock", SHORT_TIMEOUT, || {
        !h1.command(&["flock", "-n", "/run/weave/supervisor.pid", "true"]).success()
    });
    h1.weave_ok(&["launch", "--no-restart"]);
    drop(ending);
    h1.weave_ok(&["stop"]);
}

#[test]
fn of_five_concurrent_launches_one_succeeds() {
    let Some(lab) = one("five") else { return };
    let h1 = lab.host("h1");
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

const SMALL_DISK: &str = "mkdir -p /var/lib/weave; mount -t tmpfs -o size=64k,mode=0700 tmpfs /var/lib/weave";

#[test]
fn full_disk_fails_a_launch_but_not_a_running_peer() {
    let Some(lab) = one("disks") else { return };
    let h1 = lab.host("h1");
    h1.sh(SMALL_DISK);
    step("launch on a full disk fails and changes nothing");
    h1.sh("dd if=/dev/zero of=/var/lib/weave/fill bs=1k 2>/dev/null || true");
    let before = h1.snapshot();
    let full = h1.weave(&["launch", "--no-restart"]);
    assert!(full.code == Some(1) && full.stderr.contains("No space left on device"), "{full}");
    assert_eq!(h1.snapshot(), before);
    step("a disk that becomes full: the daemon goes on, logs it, and stores its state later");
    h1.sh("rm /var/lib/weave/fill");
    h1.weave_ok(&["launch"]);
    h1.sh("dd if=/dev/zero of=/var/lib/weave/fill bs=1k 2>/dev/null || true");
    h1.weave_ok(&["connect", "192.0.2.1"]);
    assert_eq!(targets(h1), ["192.0.2.1"]);
    h1.wait("a line in the log", SHORT_TIMEOUT, || h1.log().contains("state is not saved"));
    h1.sh("rm /var/lib/weave/fill");
    h1.weave_ok(&["connect", "192.0.2.2"]);
    crash(h1);
    assert_eq!(targets(h1), ["192.0.2.1", "192.0.2.2"]);
    h1.weave_ok(&["stop"]);
    h1.sh("umount /var/lib/weave");
}

#[test]
fn read_only_disk() {
    let Some(lab) = one("readonly") else { return };
    let h1 = lab.host("h1");
    h1.sh(SMALL_DISK);
    // The journal exists already, so that a daemon does not keep it open for writing.
    launch(h1, &[], &[]);
    h1.weave_ok(&["stop"]);
    step("launch on a read-only disk fails and changes nothing");
    h1.sh("mount -o remount,ro /var/lib/weave");
    let before = h1.snapshot();
    let read_only = h1.weave(&["launch", "--no-restart"]);
    assert!(read_only.code == Some(1) && read_only.stderr.contains("Read-only file system"), "{read_only}");
    assert_eq!(h1.snapshot(), before);
    step("a daemon goes on when its disk becomes read-only");
    h1.sh("mount -o remount,rw /var/lib/weave");
    h1.weave_ok(&["launch", "--no-restart"]);
    h1.sh("mount -o remount,ro /var/lib/weave");
    h1.weave_ok(&["status"]);
    h1.weave_ok(&["stop"]);
    assert!(h1.daemon_pid().is_none());
    h1.sh("umount /var/lib/weave");
}

#[test]
fn log_file_is_reopened_after_a_rename() {
    let Some(lab) = one("logs") else { return };
    let h1 = lab.host("h1");
    h1.weave_ok(&["launch", "--log-file=/var/log/w.log", "--log-keep", "2"]);
    let log = || h1.command(&["cat", "/var/log/w.log"]).stdout;
    assert!(log().contains("Our name is "), "{}", log());
    h1.sh("mv /var/log/w.log /var/log/moved");
    // Neither the supervisor nor the next daemon writes to the old file.
    crash(h1);
    h1.wait("a new log file", SHORT_TIMEOUT, || {
        log().contains("starting it again") && log().contains("Our name is ")
    });
    step("a full disk for the log does not stop the daemon");
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
fn two_instances_on_one_host() {
    let Some(lab) = one("instances") else { return };
    let h1 = lab.host("h1");
    let (one, other) = (h1.container("one"), h1.container("other"));
    let before = h1.snapshot();
    launch(h1, &[], &[]);
    h1.weave_ok(&["launch", "--no-restart", "--instance", "b", "--port", "7000", "127.0.0.1:6783"]);
    let b = |args: &[&str]| h1.weave_env(&[("WEAVE_INSTANCE", "b")], args).expect_ok();
    h1.wait("the two to be connected", LONG_TIMEOUT, || {
        b(&["status", "connections"]).contains("established")
    });
    let name = |text: &str| text.lines().find(|l| l.contains(" Name: ")).map(str::to_owned);
    assert_ne!(name(&b(&["status"])), name(&h1.weave_ok(&["status"])), "peers of their own");

    step("traffic between containers of both instances");
    one.attach(&["10.2.1.1/24"]);
    b(&["attach", "10.2.1.2/24", "netns:other"]);
    let bridges = h1.command_ok(&["ip", "-o", "link", "show", "type", "bridge"]);
    assert!(bridges.contains(" weave:") && bridges.contains(" weave-b:"), "{bridges}");
    one.reaches("10.2.1.2", SHORT_TIMEOUT);

    step("reset of one instance does not affect the other");
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
fn wall_clock_jumps_do_not_interrupt_traffic() {
    let Some(lab) = Lab::start("clock", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    // A preloaded library changes the wall clock of one peer; the clock of the machine is shared.
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
    h1.wait_established(1, LONG_TIMEOUT);
    let members = attach_each(&[h1, h2]);
    let [a, b] = &members[..] else { unreachable!() };
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    let pings = a.container.pinging(&b.ip, 100);
    for by in ["-315360000", "315360000", "-86400", "0"] {
        h1.sh(&format!("echo {by} > /run/jump"));
        // The log shows the new time.
        h1.weave_ok(&["connect", "192.0.2.1"]);
        if by.len() > 6 {
            h1.wait("the clock", SHORT_TIMEOUT, || {
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
    h1.wait_established(1, LONG_TIMEOUT);
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
}

#[test]
fn launch_can_be_killed_at_any_time() {
    let Some(lab) = Lab::start("cut", &Topology::hosts(2)) else { return };
    std::thread::scope(|scope| {
        for (host, option) in [("h1", "--no-restart"), ("h2", "--service=supervisor")] {
            let host = lab.host(host);
            scope.spawn(move || {
                // Kills the command, then the daemon that it starts, at times from before the first operation to after the last.
                let own = killed_anywhere(host, option, "k=$p");
                let daemon =
                    killed_anywhere(host, option, "k=$(cat /run/weave/weave.pid 2>/dev/null || echo $p)");
                println!(
                    "{option}: the daemon went on after {own} of the kills of launch, {daemon} of its own"
                );
            });
        }
    });
}

/// Kills the process in the shell variable `k`, which `victim` sets, some milliseconds later each time; `p` is the launch.
fn killed_anywhere(host: &Host, option: &str, victim: &str) -> usize {
    let fresh = host.snapshot();
    let mut after = 0;
    for cut in (0..120).step_by(10) {
        let script = format!(
            "{} launch {option} --password p & p=$!; sleep 0.{cut:03}; {victim}; kill -9 $k 2>/dev/null || true; \
             [ $k = $p ] || kill -9 $p 2>/dev/null || true; wait $p 2>/dev/null || true",
            weave_lab::weave_binary()
        );
        host.sh(&script);
        // The next command works, whatever was done before; the daemon may still be starting.
        let again = host.wait("a launch that works", SHORT_TIMEOUT, || {
            let again = host.weave(&["launch", option, "--password", "p"]);
            if again.success() || again.stderr.contains("already running") {
                Ok(again)
            } else {
                Err(again.to_string())
            }
        });
        after += usize::from(!again.success());
        host.wait("the peer", SHORT_TIMEOUT, || host.weave(&["status"]).success());
        assert_eq!(host.report().unwrap()["Router"]["Encryption"], true);
        host.weave_ok(&["reset"]);
        assert_eq!(host.snapshot(), fresh, "{option}, {victim}, after {cut} ms");
    }
    after
}

#[test]
fn killed_daemon_can_be_relaunched_immediately() {
    let Some(lab) = one("again") else { return };
    let h1 = lab.host("h1");
    launch(h1, &[], &[]);
    // In one script, so that no time passes in between.
    let weave = weave_lab::weave_binary();
    h1.sh(&format!(
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do kill -9 $(cat /run/weave/weave.pid); {weave} launch --no-restart; done"
    ));
    h1.weave_ok(&["status"]);
    // The supervisor restarts a daemon that has one.
    h1.weave_ok(&["stop"]);
    h1.weave_ok(&["launch"]);
    let refused = h1.command(&["sh", "-c", &format!("kill -9 $(cat /run/weave/weave.pid); {weave} launch")]);
    assert!(refused.code == Some(3) && refused.stderr.contains("is already running"), "{refused}");
    h1.wait("the next daemon", SHORT_TIMEOUT, || h1.weave(&["status"]).success());
}

/// Whether the output of `reset --dry-run` names a file, directory, device, process or rule.
fn is_listed(change: &str, listed: &[&str]) -> bool {
    let Some((kind, thing)) = change.split_once(' ') else { return false };
    match kind {
        "rule" => listed.iter().any(|l| l.starts_with("firewall rules and chains of weave in ")),
        "process" => listed.iter().any(|l| l.starts_with("process ") && l.ends_with(&format!(" {thing}"))),
        "path" => listed.iter().any(|l| {
            let (file, directory) =
                (format!("file {thing}"), format!("directory {thing}, if nothing else is in it"));
            let whole = l.strip_prefix("directory ").and_then(|l| l.strip_suffix(" with all that is in it"));
            *l == file || *l == directory || whole.is_some_and(|path| Path::new(thing).starts_with(path))
        }),
        _ => listed.contains(&change),
    }
}

/// Everything that `reset` may remove, one per line, in the form that [`is_listed`] reads.
fn inventory(host: &Host) -> Vec<String> {
    let text = host.sh(
        "ip -o link | sed 's/^[0-9]*: //; s/[:@].*//; s/^/device /'; \
         for p in iptables-nft-save iptables-legacy-save; do $p 2>/dev/null | grep -e '^-A' -e '^:WEAVE' | sed 's/ \\[.*//; s/^/rule /' || true; done; \
         nft list tables 2>/dev/null | grep weave | sed 's/^/rule /' || true; \
         find /run /var/lib/weave /etc/weave /etc/NetworkManager /etc/systemd/network /etc/cni /opt/cni /var/log/weave* ! -name '*.log*' 2>/dev/null | sed 's/^/path /'; \
         for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" != weave ] || echo process ${p#/proc/}; done",
    );
    text.lines().map(str::to_owned).collect()
}

#[test]
fn reset_dry_run_lists_everything() {
    let Some(lab) = one("dry") else { return };
    let h1 = lab.host("h1");
    let _c = h1.container("c");
    // A peer on the machine that runs the tests has files there, too.
    h1.sh("rm -rf /etc/NetworkManager /etc/systemd/network");
    h1.sh("mkdir -p /run/weave /var/lib/weave /etc/NetworkManager/conf.d /etc/systemd/network && rmdir /run/weave /var/lib/weave || true");
    let own = inventory(h1);
    // A peer with a supervisor, a password, exposed and allocated addresses and a container.
    h1.weave_ok(&["launch", "--password", "p", "192.0.2.1", "--ipalloc-init", "consensus=1"]);
    h1.weave_ok(&["attach", "netns:c"]);
    h1.weave_ok(&["expose", "10.2.1.1/24"]);
    h1.sh("echo 'written by 2.8.1' > /var/lib/weave/weavedata.db; touch /var/lib/weave/.peer.json.new");
    let before = inventory(h1);
    let text = h1.weave_ok(&["reset", "--dry-run"]);
    let listed: Vec<&str> = text.lines().collect();
    assert_eq!(inventory(h1), before, "it is dry");
    h1.weave_ok(&["reset"]);
    let after = inventory(h1);
    assert_eq!(after, own, "reset takes everything away");
    let gone: Vec<&String> = before.iter().filter(|line| !after.contains(line)).collect();
    let unnamed: Vec<_> = gone.iter().filter(|change| !is_listed(change, &listed)).collect();
    assert!(unnamed.is_empty(), "not named: {unnamed:#?}\n{text}");
    // It lists nothing that does not exist.
    for line in &listed {
        let is_there = gone.iter().any(|change| is_listed(change, &[line]));
        assert!(is_there, "{line:?} did not go: {gone:#?}");
    }
}

#[test]
fn stop_removes_tracked_connections() {
    let Some(lab) = Lab::start("flows", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    // The kernel tracks connections only if a rule needs it.
    for host in [h1, h2] {
        host.sh("iptables -w -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT");
    }
    launch_mesh(&lab, &[]);
    let members = attach_each(&[h1, h2]);
    let tracked = |port: u16| {
        let all = h1.sh("cat /proc/net/nf_conntrack 2>/dev/null || conntrack -L 2>/dev/null || true");
        // The first dport is that of the original direction.
        let first =
            |l: &str| l.split(" dport=").nth(1).and_then(|r| r.split(' ').next()?.parse().ok()) == Some(port);
        all.lines().filter(|l| l.contains("udp") && first(l)).count()
    };
    members[1].container.reaches(&members[0].ip, SHORT_TIMEOUT);
    // A connection of another program, by UDP to another port.
    h1.sh("bash -c 'echo x > /dev/udp/198.18.0.2/9999' || true");
    if tracked(6783) == 0 || tracked(9999) == 0 {
        eprintln!("SKIPPED: this kernel does not show which connections it tracks");
        return;
    }
    h2.weave_ok(&["stop"]);
    h1.weave_ok(&["stop"]);
    assert_eq!(tracked(6783), 0, "nothing of the peer's is remembered");
    assert!(tracked(9999) > 0, "of others it is");
}
