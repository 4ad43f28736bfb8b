//! Options and variables of `launch`, several to a launch; `stop` and `reset`.

use super::*;

pub(super) const CHECKS: &[Check] = &[
    check(&["launch", "stop", "launch --log-file"], defaults),
    check(
        &[
            "launch --name",
            "launch --nickname",
            "launch --port",
            "launch --host",
            "launch --trusted-subnets",
            "launch --no-discovery",
            "launch --min-protocol-version",
            "launch --mtu",
            "launch --http-addr",
            "launch --status-addr",
            "launch --metrics-addr",
            "launch --log-level",
            "launch --state-dir",
            "launch --run-dir",
            "launch --no-restart",
        ],
        options,
    ),
    check(&["launch --password", "launch --password-file", "$WEAVE_PASSWORD"], passwords),
    check(&["launch --conn-limit"], connection_limit),
    check(
        &[
            "launch --no-fastdp",
            "$WEAVE_NO_FASTDP",
            "launch --no-bridged-fastdp",
            "$WEAVE_NO_BRIDGED_FASTDP",
            "launch --weave-bridge",
            "launch --docker-bridge",
        ],
        bridges,
    ),
    check(&["launch --overlays", "$WEAVE_OVERLAYS"], overlays),
    check(&["launch --resume"], resume),
    check(&["launch --no-masq-local"], no_masquerade),
    check(&["launch --db-prefix"], database_elsewhere),
    check(&["launch --log-size"], log_size),
    check(&["stop --state-dir", "stop --weave-bridge"], stopping),
    check(&["$WEAVE_DOCKER_ARGS"], docker_args),
    check(
        &[
            "$WEAVE_PORT",
            "$WEAVE_MTU",
            "$WEAVE_HTTP_ADDR",
            "$WEAVE_STATUS_ADDR",
            "$WEAVE_METRICS_ADDR",
            "$WEAVE_RUN_DIR",
            "$WEAVE_STATE_DIR",
            "$WEAVE_DEBUG",
        ],
        variables,
    ),
    check(&[], old_spellings),
    check(&["reset", "reset --force", "reset --dry-run", "reset --weave-bridge", "reset --state-dir"], reset),
    check(&["create-bridge"], create_bridge),
    check(&["launch --instance", "$WEAVE_INSTANCE"], instances),
    check(&["setup", "setup --state-dir"], setup),
];

fn mtu(stage: &Stage<'_>, device: &str) -> String {
    stage.link(device, "mtu")
}

fn defaults(stage: &Stage<'_>) {
    let outcome =
        stage.host.weave(&["launch", "--no-restart", "--log-file", "/tmp/weave-cmds-cmds.log", "h2"]);
    assert!(outcome.success() && outcome.stderr.is_empty(), "{outcome}");
    let pid = stage.host.daemon_pid().unwrap();
    let outcome = stage.host.weave(&["launch"]);
    assert!(outcome.code == Some(3) && outcome.stderr.contains("weave is already running"), "{outcome}");
    assert_eq!(stage.host.daemon_pid(), Some(pid));
    let log = stage.host.sh("cat /tmp/weave-cmds-cmds.log; rm /tmp/weave-cmds-cmds.log");
    assert!(log.contains("INFO: ") && log.contains("Command line options: "), "{log}");
    assert_eq!(mtu(stage, "weave"), "1376");
    let sockets = stage.sockets();
    for port in [":6783 ", "127.0.0.1:6784 ", "127.0.0.1:6782 "] {
        assert!(sockets.contains(port), "{port} in {sockets}");
    }
    assert_eq!(
        stage.report("{{.Router.NickName}} {{.Router.Encryption}} {{.Router.PeerDiscovery}}"),
        "h1 false true"
    );
    stage.host.wait_established(1, LONG_TIMEOUT);
    assert_eq!(stage.ok(&["stop"]), "");
    assert!(stage.host.daemon_pid().is_none() && !stage.sockets().contains(":6783 "));
    assert_eq!(mtu(stage, "weave"), "1376", "the bridge stays");
    assert_eq!(stage.fails(0, &["stop"]), "Weave is not running (ignore on Kubernetes).\n");
}

/// Each value has its effect, in all spellings and positions.
fn options(stage: &Stage<'_>) {
    let ip = stage.host.ip().to_string();
    let args = [
        "h2:6783",
        "--name=02:00:00:00:00:77",
        "--nickname",
        "nick",
        "--port",
        "7000",
        "--host",
        &ip,
        "--trusted-subnets=10.0.0.0/8,192.168.7.0/24",
        "--no-discovery",
        "--min-protocol-version=2",
        "--mtu",
        "1400",
        "--http-addr",
        "127.0.0.1:7001",
        "--status-addr=:7002",
        "--metrics-addr",
        "127.0.0.1:7003",
        "--log-level=debug",
        "--state-dir",
        "/tmp/weave-cmds-state",
        "--run-dir=/tmp/weave-cmds-run",
    ];
    stage.launch(&[], &args);
    let run_dir = [("WEAVE_RUN_DIR", "/tmp/weave-cmds-run")];
    let template = "{{.Router.Name}} {{.Router.NickName}} {{.Router.Port}} {{.Router.PeerDiscovery}} \
                    {{.Router.ProtocolMinVersion}} {{.Router.TrustedSubnets}} {{.Router.Targets}}";
    let value = stage.host.weave_env(&run_dir, &["report", "-f", template]).expect_ok();
    assert_eq!(value, "02:00:00:00:00:77 nick 7000 false 2 [10.0.0.0/8 192.168.7.0/24] [h2:6783]");
    assert_eq!(mtu(stage, "weave"), "1400");
    let sockets = stage.sockets();
    for socket in
        [format!(" {ip}:7000 "), " 127.0.0.1:7001 ".into(), ":7002 ".into(), " 127.0.0.1:7003 ".into()]
    {
        assert!(sockets.contains(&socket), "{socket} in {sockets}");
    }
    // VXLAN packets of the connection to h2 arrive at 6784.
    for gone in [":6782 ", ":6783 ", "127.0.0.1:6784 "] {
        assert!(!sockets.contains(gone), "{gone} in {sockets}");
    }
    assert!(stage.http("127.0.0.1", 7001, "/status").contains("Service: router"));
    assert!(stage.http(&ip, 7002, "/status").contains("Service: router"));
    assert!(stage.http(&ip, 7002, "/metrics").contains("\nweave_connections{"));
    assert!(stage.http("127.0.0.1", 7003, "/metrics").contains("\nprocess_open_fds "));
    assert!(stage.http("127.0.0.1", 7003, "/status").contains(" 404 "));
    assert!(stage.host.log().contains("DEBU: "), "{}", stage.host.log());
    let files = stage.host.sh("ls /tmp/weave-cmds-state /tmp/weave-cmds-run");
    assert!(files.contains("peer.json") && files.contains("weave.sock"), "{files}");
    step("every command finds the daemon by either option, in any position");
    let rows = surface(stage.host);
    let takes = |option: &str| {
        let suffix = format!(" {option}");
        rows.iter().filter_map(move |row| row.strip_suffix(&suffix).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert!(takes("--run-dir").len() > 12);
    for command in takes("--run-dir").iter().filter(|c| ["status", "report", "version"].contains(&c.as_str()))
    {
        assert!(!stage.ok(&[command, "--run-dir", "/tmp/weave-cmds-run"]).is_empty());
        assert!(!stage.ok(&["--local", command, "--http-addr=127.0.0.1:7001"]).is_empty());
    }
    stage.ok(&["connect", "--run-dir=/tmp/weave-cmds-run", "h9"]);
    stage.ok(&["forget", "h9", "--http-addr", ":7001"]);
    step("without a supervisor a killed daemon is not restarted");
    let pid = stage.host.sh("cat /tmp/weave-cmds-run/weave.pid");
    stage.host.sh(&format!("kill -9 {pid}"));
    stage.host.wait("the end", SHORT_TIMEOUT, || !stage.sockets().contains(":7000 "));
    assert!(!stage.host.sh("ps -e -o args=").contains(" supervise "));
    let places = ["--run-dir=/tmp/weave-cmds-run", "--state-dir=/tmp/weave-cmds-state"];
    stage.ok(&[&["reset", "--force"], &places[..]].concat());
    assert_eq!(stage.host.sh("ls -d /tmp/weave-cmds-state /tmp/weave-cmds-run 2>/dev/null || true"), "");
}

fn passwords(stage: &Stage<'_>) {
    let encrypted = "{{.Router.Encryption}}";
    stage.host.sh("umask 077; echo one > /tmp/weave-cmds-pw");
    for (env, args) in [
        (&[("WEAVE_PASSWORD", "one")][..], &[][..]),
        (&[], &["--password", "one"]),
        (&[], &["-password=one"]),
        (&[("WEAVE_PASSWORD", "two")], &["--password-file", "/tmp/weave-cmds-pw"]),
    ] {
        stage.launch(env, args);
        assert_eq!(stage.report(encrypted), "true");
        // The password is used and not visible anywhere.
        assert_eq!(stage.host.sh("cat /var/lib/weave/password").trim(), "one");
        assert!(!stage.host.sh("ps -e -o args=; cat /var/log/weave.log").contains("one\n"));
        stage.ok(&["stop"]);
    }
    stage.launch(&[], &["h2", "--password=one"]);
    stage.host.wait("the reason", LONG_TIMEOUT, || {
        stage.host.connections().iter().any(|c| c.info.contains("password specified, but peer requested"))
    });
    stage.host.sh("rm /tmp/weave-cmds-pw");
}

fn connection_limit(stage: &Stage<'_>) {
    stage.launch(&[], &["--conn-limit", "1"]);
    assert!(stage.fails(1, &["launch", "--conn-limit", "-1"]).contains("must not be negative"));
    stage.ok(&["connect", "h2"]);
    stage.host.wait_established(1, LONG_TIMEOUT);
    step("a third peer on another port is refused");
    stage.other.weave_ok(&[
        "launch",
        "--no-restart",
        "--instance=two",
        "--port=7100",
        "--name=02:00:00:00:01:00",
        "--no-discovery",
        "h1:6783",
    ]);
    stage.host.wait("the refused attempt", LONG_TIMEOUT, || {
        let connections = stage.ok(&["status", "connections"]);
        if connections.contains("onnection limit reached (1)") { Ok(()) } else { Err(connections) }
    });
    stage.other.weave_ok(&["reset", "--instance=two"]);
}

fn bridges(stage: &Stage<'_>) {
    stage.launch(&[("WEAVE_NO_BRIDGED_FASTDP", "1")], &["--no-bridged-fastdp"]);
    assert_eq!(mtu(stage, "weave"), "1376");
    assert!(!stage.host.report().unwrap()["Router"]["OverlayDiagnostics"]["fastdp"].is_null());
    stage.ok(&["reset"]);
    stage.launch(&[("WEAVE_NO_FASTDP", "1")], &[]);
    assert_eq!(mtu(stage, "weave"), "65535");
    stage.ok(&["reset"]);
    stage.launch(&[], &["--no-fastdp", "--weave-bridge", "weave7"]);
    assert_eq!(mtu(stage, "weave7"), "65535");
    assert_eq!(stage.ok(&["bridge-type", "--weave-bridge=weave7"]), "bridge\n");
    stage.ok(&["reset", "--weave-bridge=weave7"]);
    assert!(!stage.host.sh("ip -o link").contains("weave7"));
    stage.launch(&[("WEAVE_NO_FASTDP", "1")], &["--no-fastdp=false", "--docker-bridge", ""]);
    assert_eq!(mtu(stage, "weave"), "1376", "the option beats the variable");
}

fn overlays(stage: &Stage<'_>) {
    stage.launch(&[("WEAVE_OVERLAYS", "sleeve")], &["h2"]);
    wait_overlay(stage.host, "sleeve");
    stage.ok(&["stop"]);
    stage.launch(&[("WEAVE_OVERLAYS", "sleeve")], &["--overlays=warp", "h2"]);
    wait_overlay(stage.host, "warp");
    for (list, why) in [
        ("warp,ipsec", "only fastdp, warp and sleeve can be named"),
        ("fastdp", "fastdp needs warp or sleeve"),
    ] {
        let text = stage.fails(1, &["launch", "--overlays", list]);
        assert!(text.starts_with(&format!("--overlays {list:?}: {why}")), "{text}");
    }
}

fn resume(stage: &Stage<'_>) {
    let targets = "{{.Router.Targets}}";
    stage.launch(&[], &["h2"]);
    stage.ok(&["connect", "h8"]);
    stage.ok(&["stop"]);
    stage.launch(&[], &["--resume"]);
    assert_eq!(stage.report(targets), "[h2 h8]");
    stage.ok(&["stop"]);
    stage.launch(&[], &["h7"]);
    assert_eq!(stage.report(targets), "[h7]");
    stage.ok(&["stop"]);
    let text = stage.fails(1, &["launch", "--resume", "h2"]);
    assert_eq!(text, "You must not specify an initial peer list in conjunction with --resume\n");
}

fn variables(stage: &Stage<'_>) {
    let env = [
        ("WEAVE_PORT", "7000"),
        ("WEAVE_MTU", "1234"),
        ("WEAVE_HTTP_ADDR", ":7001"),
        ("WEAVE_STATUS_ADDR", ""),
        ("WEAVE_METRICS_ADDR", "127.0.0.1:7003"),
        ("WEAVE_RUN_DIR", "/tmp/weave-cmds-run"),
        ("WEAVE_STATE_DIR", "/tmp/weave-cmds-state"),
        ("WEAVE_DEBUG", "1"),
    ];
    stage.launch(&env, &[]);
    let sockets = stage.sockets();
    for there in [":7000 ", "127.0.0.1:7001 ", "127.0.0.1:7003 "] {
        assert!(sockets.contains(there), "{there} in {sockets}");
    }
    assert!(!sockets.contains(":6782 "), "set but empty is off\n{sockets}");
    assert_eq!(mtu(stage, "weave"), "1234");
    assert!(stage.host.log().contains("DEBU: "));
    let outcome = stage.host.weave_env(&env, &["status", "targets"]);
    assert_eq!(outcome.stderr, "+ GET /status/targets to 127.0.0.1:7001: 200\n", "{outcome}");
    step("the client completes a control address");
    for addr in [":7001", "127.0.0.1:7001", "localhost:7001"] {
        stage.host.weave_env(&[("WEAVE_HTTP_ADDR", addr)], &["status"]).expect_ok();
    }
    stage.host.weave_env(&[("WEAVE_RUN_DIR", "/tmp/weave-cmds-run")], &["status"]).expect_ok();
    let files = stage.host.sh("ls /tmp/weave-cmds-state /tmp/weave-cmds-run");
    assert!(files.contains("peer.json") && files.contains("weave.sock"), "{files}");
    step("stop and reset use the same variables");
    stage.host.weave_env(&env, &["stop"]).expect_ok();
    assert!(!stage.sockets().contains(":7000 "));
    stage.host.weave_env(&env, &["reset"]).expect_ok();
    assert_eq!(stage.host.sh("ls -d /tmp/weave-cmds-state /tmp/weave-cmds-run 2>/dev/null || true"), "");
    step("options override variables, and an empty control address is ignored");
    stage.launch(&[("WEAVE_PORT", "7000"), ("WEAVE_HTTP_ADDR", "")], &["--port", "7005"]);
    let sockets = stage.sockets();
    assert!(sockets.contains(":7005 ") && !sockets.contains(":7000 ") && sockets.contains("127.0.0.1:6784 "));
}

/// Old names of options have the same effect and print the new one (docs/spec/cli.md 3.2). Those of missing features are parsed
/// alike; their unit test has the table.
fn old_spellings(stage: &Stage<'_>) {
    let deprecated = |old: &str, new: &str| format!("Warning: {old} is deprecated; please use {new}\n");
    for (args, warnings, template, value) in [
        (
            &["-nodiscovery"][..],
            vec![("-nodiscovery", "--no-discovery")],
            "{{.Router.PeerDiscovery}}",
            "false",
        ),
        (&["--nodiscovery"], vec![("--nodiscovery", "--no-discovery")], "{{.Router.PeerDiscovery}}", "false"),
        (
            &["-port", "7000", "h2", "-nickname=n", "-name", "::7"],
            vec![("-port", "--port"), ("-nickname", "--nickname"), ("-name", "--name")],
            "{{.Router.Port}} {{.Router.NickName}} {{.Router.Name}} {{.Router.Targets}}",
            "7000 n 00:00:00:00:00:07 [h2]",
        ),
        (
            &["-connlimit", "7", "-debug", "-httpaddr", "127.0.0.1:7001"],
            vec![
                ("-connlimit", "--conn-limit"),
                ("-debug", "--log-level debug"),
                ("-httpaddr", "--http-addr"),
            ],
            "{{len .Router.Peers}}",
            "1",
        ),
    ] {
        let mut args = args.to_vec();
        // `::7` is not the address of an interface.
        if args.contains(&"::7") {
            args[5] = "02:00:00:00:00:07";
        }
        let stderr = stage.launch(&[], &args);
        let expected: String = warnings.iter().map(|(old, new)| deprecated(old, new)).collect();
        assert_eq!(stderr, expected, "{args:?}");
        assert_eq!(
            stage.report(template),
            value.replace("00:00:00:00:00:07", "02:00:00:00:00:07"),
            "{args:?}"
        );
        stage.ok(&["stop"]);
    }
    // Removed options, and the first argument of another version: accepted with a notice.
    let outcome = stage.host.weave(&[
        "launch",
        "10.2.254.1/24",
        "--no-restart",
        "--bufsz=16",
        "-wait",
        "5",
        "-iface",
        "ethwe",
    ]);
    assert!(outcome.success(), "{outcome}");
    assert!(outcome.stderr.contains("10.2.254.1/24 parameter ignored"), "{outcome}");
    assert!(outcome.stderr.contains("Notice: obsolete, no effect: --bufsz --iface --wait"), "{outcome}");
    assert_eq!(stage.report("{{.Router.Targets}}"), "[]");
}

fn reset(stage: &Stage<'_>) {
    let clean = stage.host.snapshot();
    stage.launch(&[], &["h2"]);
    let launched = stage.host.snapshot();
    let said = stage.ok(&["reset", "--dry-run"]);
    assert!(said.contains("process ") && said.contains("device weave\n"), "{said}");
    assert_eq!(stage.host.snapshot(), launched, "only said");
    assert_eq!(stage.ok(&["reset"]), "");
    assert_eq!(stage.host.snapshot(), clean, "everything is gone");
    assert_eq!(stage.ok(&["reset"]), "", "twice does no harm");
    step("a peer that never met another one says nothing of rmpeer");
    stage.launch(&[], &[]);
    stage.ok(&["prime"]);
    assert_eq!(stage.ok(&["reset"]), "");
    step("a daemon that does not answer is removed with --force only");
    stage.launch(&[], &["--http-addr=", "--state-dir=/tmp/weave-cmds-state"]);
    stage.host.sh("rm /run/weave/control.sock");
    let text = stage.fails(1, &["reset", "--state-dir=/tmp/weave-cmds-state"]);
    assert!(text.contains("--force"), "{text}");
    assert!(stage.host.daemon_pid().is_some());
    stage.ok(&["reset", "--force", "--state-dir=/tmp/weave-cmds-state"]);
    assert_eq!(stage.host.snapshot(), clean);
}

fn create_bridge(stage: &Stage<'_>) {
    let text = stage.fails(1, &["create-bridge"]);
    assert!(text.contains("'weave launch' makes the bridge"), "{text}");
    let env = [("WEAVE_NO_FASTDP", "1")];
    for _ in 0..2 {
        stage.host.weave_env(&env, &["create-bridge", "--force"]).expect_ok();
    }
    assert_eq!(mtu(stage, "weave"), "65535");
    stage.launch(&env, &[]);
    assert_eq!(stage.link("weave", "link/ether"), stage.report("{{.Router.Name}}"));
}

/// A second peer on the host, selected by its instance name.
fn instances(stage: &Stage<'_>) {
    stage.launch(&[], &["--instance", "two", "--port=7000", "--name=02:00:00:00:00:02"]);
    let env = [("WEAVE_INSTANCE", "two")];
    let value = stage.host.weave_env(&env, &["report", "-f", "{{.Router.Name}}"]).expect_ok();
    assert_eq!(value, "02:00:00:00:00:02");
    assert_eq!(stage.ok(&["report", "--instance=two", "-f", "{{.Router.Port}}"]), "7000");
    assert_eq!(stage.ok(&["bridge-type", "--instance=two"]), "bridge\n");
    assert_eq!(stage.host.weave_env(&env, &["ps"]).expect_ok(), "weave:expose 02:00:00:00:00:02\n");
    assert!(stage.fails(1, &["bridge-type"]).contains("no weave bridge"), "the usual one is not there");
    let text = stage.fails(1, &["launch", "--instance", "T/wo"]);
    assert!(text.contains("--instance: \"T/wo\""), "{text}");
    stage.ok(&["stop", "--instance", "two"]);
    stage.host.weave_env(&env, &["reset"]).expect_ok();
    assert!(!stage.host.sh("ip -o link; ls /run /var/lib").contains("two"));
}

fn setup(stage: &Stage<'_>) {
    stage.host.weave_ok(&["setup", "--state-dir=/tmp/weave-cmds-setup"]);
    stage.host.sh("rmdir /tmp/weave-cmds-setup");
}

fn no_masquerade(stage: &Stage<'_>) {
    stage.launch(&[], &["--no-masq-local"]);
    let rules = stage.host.sh("iptables -w -t nat -S WEAVE");
    let first = rules.lines().nth(1).unwrap_or_default();
    assert!(
        first.contains("--match-set weaver-no-masq-local dst") && first.ends_with("-j RETURN"),
        "{rules}{}",
        stage.host.log()
    );
}

fn database_elsewhere(stage: &Stage<'_>) {
    let sample = include_bytes!("../../../vectors/ipam/sample-weavedata.db");
    std::fs::write(stage.host.disk("log/olddata.db"), sample).unwrap();
    stage.launch(&[], &["--db-prefix", "/var/log/old", "--ipalloc-range", "10.2.0.0/24"]);
    assert_eq!(
        stage.ok(&["status", "targets"]),
        "10.0.0.1\n10.0.0.2:6783\n",
        "the peers that are stored there"
    );
}

fn log_size(stage: &Stage<'_>) {
    stage.host.sh("head -c 3000000 /dev/zero | tr '\\0' x > /var/log/sized.log");
    let rotated = || stage.host.command(&["test", "-e", "/var/log/sized.log.1"]).success();
    stage.launch(&[], &["--log-file", "/var/log/sized.log", "--log-size", "4"]);
    stage.ok(&["stop"]);
    assert!(!rotated(), "3 MB are not 4");
    stage.launch(&[], &["--log-file", "/var/log/sized.log", "--log-size", "2"]);
    stage.host.wait("another file", SHORT_TIMEOUT, rotated);
}

fn stopping(stage: &Stage<'_>) {
    let password = || stage.host.command(&["test", "-e", "/var/log/state/password"]).success();
    stage.launch(&[], &["--state-dir", "/var/log/state", "--password", "p", "--weave-bridge", "wbr"]);
    assert!(password());
    let outcome =
        stage.host.weave(&["stop", "--state-dir", "/var/log/state", "--weave-bridge", "wbr", "--hand-back"]);
    assert!(outcome.success(), "{outcome}");
    assert!(!password(), "the password file is removed");
    // Devices that 2.8.1 makes itself are not there.
    assert!(!stage.host.sh("ip -o link").contains("vethwe-datapath"));
    stage.ok(&["reset", "--state-dir", "/var/log/state", "--weave-bridge", "wbr"]);
    assert!(!stage.host.sh("ip -o link").contains("wbr"));
}

fn docker_args(stage: &Stage<'_>) {
    for variable in ["WEAVE_DOCKER_ARGS", "WEAVEEXEC_DOCKER_ARGS"] {
        let said = stage.launch(&[(variable, "--memory 1g")], &[]);
        assert_eq!(said, format!("Notice: {variable} has no effect\n"));
        stage.ok(&["stop"]);
    }
}
