//! The peer as a systemd unit, without systemd: a script stands for `systemctl`, and handles commands, variables and files of the
//! unit as systemd does (`systemd_boot.rs` has the real systemd).

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("S-34");

/// Supports `ExecStart` with environment files, notify socket and restarts; `enable` and `disable` make and remove links.
const SYSTEMCTL: &str = r#"#!/bin/bash
units=/etc/systemd/system; wants=$units/multi-user.target.wants; run=/run/systemd/units; mkdir -p $run
echo "$*" >> /run/systemd/calls
verb=; names=(); block=1
for a in "$@"; do case $a in --no-block) block=0;; --version) echo systemd; exit 0;; --property=*) props=${a#*=};; -*) ;; *) [ -z "$verb" ] && verb=$a || names+=("$a");; esac; done
unit=${names[0]}
setting() { sed -n "s/^$1=//p" $units/$unit; }
keep() { # runs the unit until it is stopped
  trap 'touch $run/$unit.stop; kill -TERM $child 2>/dev/null' TERM
  while :; do
    (
      set -a
      while read -r line; do eval "$line"; done < <(setting Environment | sed 's/%%/%/g')
      for f in $(setting EnvironmentFile); do f=${f#-}; [ -e $f ] && . $f; done
      set +a
      export NOTIFY_SOCKET=/run/systemd/notify
      line=$(setting ExecStart | sed -e 's/%%/%/g' -e 's/\$\$/\\$/g')
      eval "exec $line"
    ) < /dev/null >> /var/log/journal.log 2>&1 &
    child=$!; echo $child > $run/$unit.pid
    wait $child; status=$?; while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
    [ -e $run/$unit.stop ] && { echo inactive > $run/$unit.state; exit; }
    if [ "$(setting Restart)" != always ]; then [ $status = 0 ] && echo inactive > $run/$unit.state || echo failed > $run/$unit.state; exit; fi
    echo auto-restart > $run/$unit.state; sleep 0.2; echo active > $run/$unit.state
  done
}
stop() { if [ -e $run/$unit.keeper ]; then touch $run/$unit.stop; kill -TERM $(cat $run/$unit.keeper) 2>/dev/null; while kill -0 $(cat $run/$unit.keeper) 2>/dev/null; do sleep 0.05; done; rm -f $run/$unit.keeper; fi; }
case $verb in
  daemon-reload|reset-failed) ;;
  enable) [ -e $units/$unit ] || exit 1; mkdir -p $wants; ln -sf ../$unit $wants/$unit;;
  disable) rm -f $wants/$unit; rmdir $wants 2>/dev/null || true;;
  is-enabled) [ -e $wants/$unit ];;
  stop) stop;;
  start|restart) [ -e $units/$unit ] || { echo "Unit $unit not found." >&2; exit 5; }; [ $verb = restart ] && stop; rm -f $run/$unit.stop; echo active > $run/$unit.state; keep < /dev/null > /dev/null 2>&1 & echo $! > $run/$unit.keeper; disown;;
  show) state=$(cat $run/$unit.state 2>/dev/null || echo inactive); sub=$state; [ $state = auto-restart ] && state=activating
    case $props in ActiveState) echo $state;; MainPID) cat $run/$unit.pid;; *) printf 'ActiveState=%s\nSubState=%s\nResult=exit-code\n' $state $sub;; esac;;
  *) echo "systemctl: $verb?" >&2; exit 1;;
esac
"#;

/// Installs the script.
fn booted(host: &Host) {
    host.sh("mkdir -p /run/systemd/system /opt/fake /etc/systemd/system");
    std::fs::write(host.disk("etc/systemctl"), SYSTEMCTL).unwrap();
    host.sh("rm -rf /etc/systemd/system/multi-user.target.wants; install -m 755 /etc/systemctl /opt/fake/systemctl");
}

fn env() -> [(&'static str, String); 1] {
    let path = std::env::var("PATH").unwrap_or_default();
    [("PATH", format!("/opt/fake:{path}"))]
}

fn weave(host: &Host, args: &[&str]) -> weave_lab::Outcome {
    let env = env();
    host.weave_env(&[(env[0].0, env[0].1.as_str())], args)
}

fn systemctl(host: &Host, args: &str) {
    host.sh(&format!("/opt/fake/systemctl {args}"));
}

fn targets(host: &Host) -> Vec<String> {
    // Empty while the daemon is down.
    host.weave(&["status", "targets"]).stdout.lines().map(str::to_owned).collect()
}

fn running(host: &Host) {
    host.wait("the daemon", SHORT_TIMEOUT, || {
        host.daemon_pid().is_some() && host.weave(&["status"]).success()
    });
}

const UNIT: &str = "/etc/systemd/system/weave.service";

#[test]
fn launch_writes_a_unit_and_reset_removes_it() {
    let Some(lab) = Lab::start("systemd", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    booted(h1);
    let outcome =
        weave(h1, &["launch", "--password=se $c%ret", "--nickname=it's a \"$HOME\" \\ %n;x", "192.0.2.1"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome}");
    let report = h1.report().unwrap();
    assert_eq!(outcome.stdout.trim(), report["Router"]["Name"].as_str().unwrap());
    assert_eq!(report["Router"]["NickName"], "it's a \"$HOME\" \\ %n;x", "every character arrives");
    assert_eq!(report["Router"]["Encryption"], true);
    let unit = h1.command_ok(&["cat", UNIT]);
    assert!(!unit.contains("ret"), "no password in the unit:\n{unit}");
    assert!(
        unit.contains("--password-file=/var/lib/weave/password") && unit.contains("\nRestart=always\n"),
        "{unit}"
    );
    h1.sh("test -L /etc/systemd/system/multi-user.target.wants/weave.service");
    assert!(h1.command(&["ls", "/var/log/weave.log"]).code != Some(0), "the log is the journal's");
    assert!(h1.sh("cat /var/log/journal.log").contains("Our name is "));

    step("peers added since the launch survive crash, restart and reboot");
    h1.weave_ok(&["connect", "192.0.2.2"]);
    let stored = ["192.0.2.1", "192.0.2.2"];
    let pid = h1.daemon_pid();
    h1.signal_daemon("KILL");
    h1.wait("the next daemon", SHORT_TIMEOUT, || {
        h1.daemon_pid().is_some_and(|p| Some(p) != pid) && h1.weave(&["status"]).success()
    });
    assert_eq!(targets(h1), stored);
    systemctl(h1, "restart weave.service");
    h1.wait("the targets", SHORT_TIMEOUT, || targets(h1) == stored);
    h1.reboot();
    h1.sh("mkdir -p /run/systemd/system");
    systemctl(h1, "start weave.service");
    running(h1);
    assert_eq!(targets(h1), stored);
    assert_eq!(h1.report().unwrap()["Router"]["Encryption"], true);

    let second = weave(h1, &["launch"]);
    assert_eq!(
        (second.code, second.stderr.as_str()),
        (Some(3), "weave is already running; you can stop it with 'weave stop'.\n")
    );
    weave(h1, &["stop"]).expect_ok();
    assert!(h1.daemon_pid().is_none());
    h1.sh(&format!("test -e {UNIT}"));
    let again = weave(h1, &["stop"]);
    assert_eq!(again.stderr, "Weave is not running (ignore on Kubernetes).\n");

    step("a launch that fails restores unit, password and links");
    let before = h1.sh(
        "cat /etc/systemd/system/weave.service /var/lib/weave/password; ls -R /etc/systemd/system /run/weave",
    );
    let busy = h1.background(&["python3", "-c", "import socket,sys; s=socket.socket(); s.bind(('',6783)); s.listen(); print('ready',flush=True); sys.stdin.read()"], true).unwrap();
    let failed = weave(h1, &["launch", "--password=other", "192.0.2.9"]);
    assert!(failed.code == Some(1) && failed.stderr.contains("port 6783"), "{failed}");
    let after = h1.sh(
        "cat /etc/systemd/system/weave.service /var/lib/weave/password; ls -R /etc/systemd/system /run/weave",
    );
    assert_eq!(before, after);
    drop(busy);

    weave(h1, &["launch", "192.0.2.3"]).expect_ok();
    assert_eq!(targets(h1), ["192.0.2.3"]);
    assert_eq!(h1.report().unwrap()["Router"]["Encryption"], false, "launched without a password");
    let listed = weave(h1, &["reset", "--dry-run"]).expect_ok();
    assert!(listed.contains(&format!("unit {UNIT}\n")), "{listed}");
    weave(h1, &["reset"]).expect_ok();
    assert!(h1.daemon_pid().is_none());
    h1.sh("test ! -e /etc/systemd/system/weave.service && test ! -L /etc/systemd/system/multi-user.target.wants/weave.service");
    step("a first launch that fails leaves nothing");
    let busy = h1.background(&["python3", "-c", "import socket,sys; s=socket.socket(); s.bind(('',6783)); s.listen(); print('ready',flush=True); sys.stdin.read()"], true).unwrap();
    assert_eq!(weave(h1, &["launch"]).code, Some(1));
    h1.sh("test ! -e /etc/systemd/system/weave.service && test ! -e /var/lib/weave && test ! -e /run/weave");
    drop(busy);
}

#[test]
fn shipped_unit_reads_peers_from_the_environment_file() {
    let Some(lab) = Lab::start("sysconfig", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    booted(h1);
    // The unit of the source tree, as an operator installs it.
    let shipped = include_str!("../../../app/cli/weave.service")
        .replace("/usr/local/bin/weave", weave_lab::weave_binary());
    std::fs::write(h1.disk("etc/systemd/system/weave.service"), shipped).unwrap();
    h1.sh("mkdir -p /etc/sysconfig /etc/default; echo 'PEERS=\"192.0.2.1 192.0.2.2\"' > /etc/sysconfig/weave; \
           echo 'WEAVE_PASSWORD=secret' >> /etc/sysconfig/weave; echo 'WEAVE_OPTIONS=\"--nickname=file --no-discovery\"' > /etc/default/weave");
    systemctl(h1, "start weave.service");
    running(h1);
    assert_eq!(targets(h1), ["192.0.2.1", "192.0.2.2"]);
    let router = h1.report().unwrap()["Router"].clone();
    assert_eq!(
        (&router["Encryption"], &router["NickName"], &router["PeerDiscovery"]),
        (&true.into(), &"file".into(), &false.into())
    );

    step("a changed list is used at the next start, an unchanged one is not");
    h1.sh("sed -i 's/192.0.2.2/192.0.2.3/' /etc/sysconfig/weave");
    systemctl(h1, "restart weave.service");
    h1.wait("the new list", SHORT_TIMEOUT, || targets(h1) == ["192.0.2.1", "192.0.2.3"]);
    h1.weave_ok(&["forget", "192.0.2.1"]);
    systemctl(h1, "restart weave.service");
    h1.wait("the peers added since", SHORT_TIMEOUT, || targets(h1) == ["192.0.2.3"]);
    claims(&["S-34"]);

    step("stop stops the unit, which would start the daemon again");
    weave(h1, &["stop"]).expect_ok();
    assert_eq!(h1.sh("cat /run/systemd/units/weave.service.state").trim(), "inactive");
    step("launch does not touch a unit that it did not write");
    let refused = weave(h1, &["launch", "--service=systemd"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("was not written by"), "{refused}");
    weave(h1, &["launch"]).expect_ok();
    weave(h1, &["reset"]).expect_ok();
    assert!(h1.daemon_pid().is_none());
    h1.sh(&format!("test -e {UNIT}"));
}
