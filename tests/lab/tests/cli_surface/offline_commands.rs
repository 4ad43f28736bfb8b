//! Commands that need no daemon: help, error texts, exit codes, old spellings.

use super::*;

pub(super) const CHECKS: &[Check] = &[
    check(&["help"], help),
    check(&["version", "launch --version"], version),
    check(&["completions", "man", "man --directory"], generated),
    check(&["daemon"], daemon_errors),
    check(&["launch --print-peer-name"], peer_name),
    check(
        &["env", "env --restore", "$ORIG_DOCKER_HOST", "$COLUMNS", "$CHECKPOINT_DISABLE"],
        variables_without_daemon,
    ),
    check(
        &[
            "launch-dns",
            "stop-dns",
            "attach-router",
            "launch-router",
            "stop-router",
            "launch-proxy",
            "proxy-env",
            "proxy-config",
            "stop-proxy",
            "stop-plugin",
        ],
        old_commands,
    ),
    check(&["weaveutil"], weaveutil),
];

fn help(stage: &Stage<'_>) {
    assert!(stage.fails(1, &[]).contains("Usage: weave <command>"));
    let text = stage.fails(1, &["nosuchcmd"]);
    assert!(text.starts_with("Unknown weave command 'nosuchcmd'\n"), "{text}");
    for args in [&["help"][..], &["--help"], &["--local", "help"]] {
        let text = stage.fails(0, args);
        assert!(text.contains("Usage: weave <command>"), "{text}");
    }
    for command in surface(stage.host).iter().filter(|row| !row.contains([' ', '$'])) {
        let text = stage.fails(0, &[command, "--help"]);
        assert!(!text.is_empty(), "{command}");
    }
    for command in ["launch", "attach", "status"] {
        assert!(stage.fails(0, &["help", command]).contains(&format!("Usage: weave {command}")));
    }
}

fn version(stage: &Stage<'_>) {
    for args in [&["version"][..], &["--version"], &["launch", "--version"], &["daemon", "--version"]] {
        let text = stage.ok(args);
        assert!(text.starts_with("weave 3.") && text.lines().count() == 1, "{text}");
    }
    assert!(stage.fails(1, &["version", "now"]).contains("usage: weave version"));
}

fn generated(stage: &Stage<'_>) {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stage.ok(&["completions", shell]).contains("weave"));
    }
    assert!(stage.fails(1, &["completions", "tcsh"]).contains("[possible values: bash, zsh, fish]"));
    stage.host.sh("mkdir /tmp/weave-cmds-man");
    stage.ok(&["man", "--directory", "/tmp/weave-cmds-man"]);
    let pages = stage.host.sh("ls /tmp/weave-cmds-man; rm -r /tmp/weave-cmds-man");
    assert!(pages.contains("weave.8") && pages.contains("weave-attach.8"), "{pages}");
    assert!(stage.ok(&["man", "launch"]).contains(".TH WEAVE-LAUNCH 8"));
    assert!(stage.ok(&["man"]).contains(".TH WEAVE 8"));
}

/// The recorded option errors of 2.8.1: same texts, same exit codes.
fn daemon_errors(stage: &Stage<'_>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/cli/daemon-flag-errors.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let mut same = 0;
    for case in text.split("$ weaver ").skip(1) {
        let (line, answer) = case.split_once('\n').unwrap();
        let (said, code) = answer.trim_end().rsplit_once("rc=").unwrap();
        // Accepted by this version: an address that does not resolve does not prevent a launch.
        let differs = ["-iprange", "host.invalid", "--version"];
        if differs.iter().any(|d| line.contains(d)) {
            continue;
        }
        let words = line.split(' ').map(|w| w.trim_matches('\''));
        let args: Vec<&str> = std::iter::once("daemon").chain(words).collect();
        let outcome = stage.host.weave(&args);
        assert_eq!(outcome.code, code.parse().ok(), "{line}\n{outcome}");
        let said: Vec<String> = said
            .lines()
            .filter(|l| !l.starts_with("INFO: "))
            .map(|l| l.replace("weaver --help", "weave daemon --help"))
            .collect();
        let ours: Vec<String> = [&outcome.stdout, &outcome.stderr]
            .iter()
            .flat_map(|t| t.lines())
            .filter(|l| !l.starts_with("INFO: "))
            .map(without_time)
            .collect();
        assert_eq!(ours, said, "{line}\n{outcome}");
        same += 1;
    }
    assert!(same >= 23, "{same}");
}

/// `FATA: 2026/11/21 06:00:00.000000 words` without the time.
fn without_time(line: &str) -> String {
    match line.strip_prefix("FATA: ").and_then(|l| l.splitn(3, ' ').nth(2)) {
        Some(words) => format!("FATA: <time> {words}"),
        None => line.to_owned(),
    }
}

fn peer_name(stage: &Stage<'_>) {
    for (name, printed) in [("::1", "00:00:00:00:00:01"), ("01:02:03:04:05:06", "01:02:03:04:05:06")] {
        for command in ["launch", "daemon"] {
            let args = [command, "--print-peer-name", "--name", name];
            assert_eq!(stage.ok(&args), format!("{printed}\n"));
        }
    }
    let own = stage.ok(&["launch", "--print-peer-name"]);
    assert_eq!(own, stage.ok(&["daemon", "--print-peer-name"]));
}

fn variables_without_daemon(stage: &Stage<'_>) {
    let env = [("ORIG_DOCKER_HOST", "tcp://h:1")];
    assert_eq!(stage.host.weave_env(&env, &["env", "--restore"]).expect_ok(), "DOCKER_HOST=tcp://h:1\n");
    let env = [("ORIG_DOCKER_HOST", "")];
    assert_eq!(stage.host.weave_env(&env, &["env", "--restore"]).expect_ok(), "DOCKER_HOST=\n");
    assert!(stage.fails(1, &["env", "--restore"]).contains("restore"));
    assert!(stage.fails(0, &["env"]).starts_with("weave is not running"));
    let width = |columns| {
        let outcome = stage.host.weave_env(&[("COLUMNS", columns)], &["help", "launch"]);
        outcome.stderr.lines().map(|l| l.chars().count()).max().unwrap()
    };
    assert!(width("60") < width("120"));
    let outcome = stage.host.weave_env(&[("CHECKPOINT_DISABLE", "1")], &["version"]);
    assert!(outcome.success() && outcome.stderr.is_empty(), "{outcome}");
}

fn old_commands(stage: &Stage<'_>) {
    for (command, part) in
        [("launch-dns", "launched as part of 'launch'"), ("stop-dns", "stopped as part of 'stop'")]
    {
        let text = stage.fails(0, &[command, "10.2.254.1/24"]);
        let removed = format!("The '{command}' command has been removed; DNS is {part}");
        assert!(text.starts_with(&removed), "{text}");
    }
    for command in ["launch-proxy", "stop-proxy", "stop-plugin", "attach-router"] {
        let text = stage.fails(0, &[command, "10.2.254.1/24"]);
        assert!(text.starts_with(&format!("Warning: 'weave {command}' does nothing any more")), "{text}");
    }
    let deprecated = |old: &str| format!("Warning: 'weave {old}' is deprecated; please use 'weave ");
    let outcome = stage.host.weave(&["launch-router", "--no-restart", "-nickname", "n1"]);
    assert!(outcome.success() && outcome.stderr.starts_with(&deprecated("launch-router")), "{outcome}");
    assert_eq!(outcome.stdout.lines().count(), 1, "{outcome}");
    assert_eq!(stage.report("{{.Router.NickName}}"), "n1");
    assert!(stage.fails(0, &["proxy-env"]).starts_with(&deprecated("proxy-env")));
    assert!(stage.fails(1, &["proxy-config"]).starts_with(&deprecated("proxy-config")));
    let outcome = stage.host.weave(&["stop-router"]);
    assert!(outcome.success() && outcome.stderr.starts_with(&deprecated("stop-router")), "{outcome}");
    assert!(stage.host.daemon_pid().is_none());
}

/// Commands of weaveutil without containers; the others are tested with `attach`.
fn weaveutil(stage: &Stage<'_>) {
    let usage = stage.fails(0, &["weaveutil", "help"]);
    assert!(stage.fails(1, &["weaveutil"]).contains("attach-container"));
    let text = stage.fails(1, &["weaveutil", "nosuch"]);
    assert!(text.starts_with("\"nosuch\" cmd is not found\n") && text.ends_with(&usage), "{text}");
    assert!(stage.fails(1, &["weaveutil", "bridge-ip"]).contains("usage: weaveutil bridge-ip <bridge>"));
    assert!(stage.fails(1, &["weaveutil", "get-db-flag"]).contains("add-on is not in this version yet"));
    // Called by a symbolic link of that name.
    let link = "/tmp/weave-cmds-weaveutil/weaveutil";
    let weave = weave_lab::weave_binary();
    stage.host.sh(&format!("mkdir -p /tmp/weave-cmds-weaveutil; ln -sf {weave} {link}"));
    let outcome = stage.host.command(&[link, "help"]);
    stage.host.sh("rm -r /tmp/weave-cmds-weaveutil");
    assert!(outcome.success() && outcome.stderr == usage, "{outcome}");

    stage.host.sh("ip link add br7 type bridge; ip addr add 10.77.0.1/24 dev br7; ip link set br7 up");
    assert_eq!(stage.ok(&["weaveutil", "bridge-ip", "br7"]), "10.77.0.1");
    assert_eq!(stage.ok(&["weaveutil", "detect-bridge-type", "weave", "datapath"]), "none\n");
    assert_eq!(stage.ok(&["weaveutil", "detect-bridge-type", "br7", "datapath"]), "bridge\n");
    assert!(stage.fails(1, &["weaveutil", "check-datapath", "br7"]).contains("not an Open vSwitch datapath"));
    let text = stage.fails(1, &["weaveutil", "netcheck", "10.77.0.0/16"]);
    assert_eq!(text, "Network 10.77.0.0/16 overlaps with existing route 10.77.0.0/24 on host\n");
    let text = stage.fails(1, &["weaveutil", "netcheck", "10.77.0.9/16"]);
    assert!(text.starts_with("Address 10.77.0.9/16 overlaps"), "{text}");
    assert_eq!(stage.ok(&["weaveutil", "netcheck", "10.77.0.0/16", "br7"]), "");
    assert_eq!(stage.ok(&["weaveutil", "netcheck", "10.78.0.0/16"]), "");
    stage.host.sh("ip link del br7");
    let id = stage.host.weave(&["weaveutil", "unique-id", "/var/lib/weave/weave", "/"]);
    // If nothing identifies the machine, the command reports that.
    assert!(id.success() && id.stdout.trim().len() == 17 || id.stderr.contains("system IDs"), "{id}");
}
