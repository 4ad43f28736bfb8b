//! `status`, `report`, `ps`, and the commands about peers and bridges.

use serde_json::Value;

use super::*;

pub(super) const CHECKS: &[Check] = &[
    check(&["status", "status --json", "report", "report -f"], pages),
    check(&["connect", "connect --replace", "forget"], targets),
    check(
        &[
            "bridge-type",
            "bridge-type --weave-bridge",
            "attach-bridge",
            "attach-bridge --weave-bridge",
            "docker-bridge-ip",
            "$DOCKER_BRIDGE",
            "$DOCKER_BRIDGE_IP",
        ],
        bridges,
    ),
];

fn pages(stage: &Stage<'_>) {
    for args in
        [&["status"][..], &["status", "peers"], &["report"], &["report", "-f", "x"], &["status", "--json"]]
    {
        assert!(stage.fails(1, args).contains("weave is not running"), "{args:?}");
    }
    stage.launch(&[], &["h2", "--trusted-subnets=10.0.0.0/8"]);
    stage.host.wait_established(1, LONG_TIMEOUT);
    // What comes next is compared word for word: no path may still change.
    wait_overlay(stage.host, "fastdp");
    let summary = stage.ok(&["status"]);
    assert!(summary.starts_with("\n        Version: 3.") && summary.ends_with("\n\n"), "{summary}");
    for line in [
        "Service: router",
        "Protocol: weave 1..2",
        "Encryption: disabled",
        "Targets: 1",
        "Connections: 1 (1 established)",
        "TrustedSubnets: 10.0.0.0/8",
    ] {
        assert!(summary.lines().any(|l| l.trim() == line), "{line} in\n{summary}");
    }
    assert_eq!(stage.ok(&["status", "targets"]), "h2\n");
    let connections = stage.ok(&["status", "connections"]);
    assert!(connections.starts_with("-> ") && connections.contains(" established fastdp "), "{connections}");
    assert_eq!(stage.ok(&["status", "peers"]).lines().count(), 4);
    for page in ["dns", "ipam"] {
        stage.ok(&["status", page]);
    }
    for args in [&["status", "nosuch"][..], &["status", "peers", "x"], &["status", "../report"]] {
        let text = stage.fails(1, args);
        assert!(text.starts_with("Invalid 'weave status' sub-command: "), "{text}");
    }
    step("the JSON of each page and of the whole report");
    let json = |args: &[&str]| serde_json::from_str::<Value>(&stage.ok(args)).unwrap();
    let summary = json(&["status", "--json"]);
    assert_eq!(
        (&summary["Router"]["Connections"]["Established"], &summary["Ready"]),
        (&1.into(), &true.into())
    );
    assert_eq!(json(&["status", "targets", "--json"]), serde_json::json!(["h2"]));
    let connection = &json(&["status", "--json=true", "connections"])[0];
    assert_eq!(connection["Overlay"], "fastdp", "{connection}");
    assert!(
        connection["NickName"] == "h2" && connection["MTU"].as_u64().is_some_and(|m| m > 500),
        "{connection}"
    );
    assert_eq!(json(&["status", "peers", "--json"])[0]["NickName"], "h1");
    for page in ["dns", "ipam"] {
        assert!(json(&["status", page, "--json"]).is_array());
    }
    assert!(stage.fails(1, &["status", "nosuch", "--json"]).starts_with("Invalid"));
    assert_eq!(json(&["report"])["Router"]["NickName"], "h1");
    assert_eq!(stage.ok(&["report", "-f", "{{.Router.Targets}}{{len .Router.Peers}}"]), "[h2]2");
    assert_eq!(stage.ok(&["report", "-f={{json .VersionCheck.Enabled}}"]), "false");
    assert!(stage.fails(1, &["report", "-f", "{{.Nope}}"]).contains("error during template execution"));
    assert!(stage.fails(1, &["report", "-f", "{{.Router"]).contains("template: format:1: unclosed action"));
    assert!(stage.fails(1, &["report", "x"]).contains("usage: weave report"));
    step("metrics");
    let metrics = stage.http("127.0.0.1", 6782, "/metrics");
    assert!(
        metrics.contains("weave_connections{encryption=\"\",state=\"established\",type=\"fastdp\"} 1\r\n")
            || metrics
                .contains("weave_connections{encryption=\"\",state=\"established\",type=\"fastdp\"} 1\n"),
        "{metrics}"
    );
    step("without root, status works over HTTP (C-25) and other commands say what they need");
    let copy = "/tmp/weave-cmds-cmds-weave";
    std::fs::copy(weave_lab::weave_binary(), copy).unwrap();
    let unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", copy];
    for args in
        [&["status", "--http-addr=127.0.0.1:6784"][..], &["report", "--http-addr=:6784"], &["bridge-type"]]
    {
        let outcome = stage.host.command(&[&unprivileged, args].concat());
        assert!(outcome.success(), "{outcome}");
    }
    for args in [&["stop"][..], &["reset"], &["attach", "10.2.1.1/24", "netns:x"], &["attach-bridge"]] {
        let outcome = stage.host.command(&[&unprivileged, args].concat());
        assert!(outcome.code == Some(1) && outcome.stderr.contains("'root'"), "{outcome}");
    }
    std::fs::remove_file(copy).unwrap();
}

fn targets(stage: &Stage<'_>) {
    stage.launch(&[], &[]);
    assert!(stage.fails(1, &["connect"]).contains("usage: weave connect"));
    assert!(stage.fails(1, &["forget"]).contains("usage: weave forget [OPTIONS] <peer>..."));
    let list = || stage.ok(&["status", "targets"]);
    stage.ok(&["connect", "h2", "192.0.2.7:7000"]);
    assert_eq!(list(), "192.0.2.7:7000\nh2\n");
    stage.host.wait_established(1, LONG_TIMEOUT);
    let text = stage.fails(1, &["connect", "h2:99999"]);
    assert!(text.contains("h2:99999"), "{text}");
    stage.ok(&["forget", "192.0.2.7:7000"]);
    assert_eq!(list(), "h2\n");
    step("options before or after the peers; existing connections stay");
    stage.ok(&["connect", "192.0.2.8", "--replace"]);
    assert_eq!(list(), "192.0.2.8\n");
    stage.host.wait_established(1, SHORT_TIMEOUT);
    stage.ok(&["connect", "--replace"]);
    assert_eq!(list(), "");
}

fn bridges(stage: &Stage<'_>) {
    let host = stage.host;
    assert!(stage.fails(1, &["bridge-type"]).contains("no weave bridge"));
    host.sh("ip link add docker0 type bridge; ip link add br9 type bridge; ip link set docker0 up; \
             ip addr add 172.17.0.1/16 dev docker0; ip addr add 172.19.0.1/16 dev br9; \
             ip link set br9 up");
    assert_eq!(stage.ok(&["docker-bridge-ip"]), "172.17.0.1");
    let with = |env: &[(&str, &str)], args: &[&str]| host.weave_env(env, args);
    assert_eq!(with(&[("DOCKER_BRIDGE", "br9")], &["docker-bridge-ip"]).expect_ok(), "172.19.0.1");
    assert_eq!(with(&[("DOCKER_BRIDGE_IP", "10.0.0.9")], &["docker-bridge-ip"]).expect_ok(), "10.0.0.9");
    assert!(
        stage.fails_with(&[("DOCKER_BRIDGE", "br1")], 1, &["docker-bridge-ip"]).contains("Link not found")
    );
    let text = stage.fails(1, &["attach-bridge"]);
    assert_eq!(text, "Weave bridge not found. Please run 'weave launch' and try again\n");
    stage.launch(&[], &[]);
    assert_eq!(stage.ok(&["bridge-type"]), "bridge\n");
    assert!(stage.fails(1, &["bridge-type", "--weave-bridge", "none"]).contains("no weave bridge"));
    assert!(stage.fails(1, &["attach-bridge", "nosuch"]).contains("\"nosuch\" is not a bridge"));
    assert!(stage.fails(1, &["attach-bridge", "weave"]).contains("cannot be joined to itself"));
    assert!(stage.fails(1, &["attach-bridge", "--weave-bridge=none"]).contains("Weave bridge not found"));
    step("create-bridge is idempotent, with a name or a variable");
    for _ in 0..2 {
        assert_eq!(stage.ok(&["attach-bridge"]), "");
        assert_eq!(with(&[("DOCKER_BRIDGE", "br9")], &["attach-bridge"]).expect_ok(), "");
        assert_eq!(stage.ok(&["attach-bridge", "br9", "--weave-bridge", "weave"]), "");
    }
    for (device, master) in [
        ("vethwebldocker0", "weave"),
        ("vethwebgdocker0", "docker0"),
        ("vethweblbr9", "weave"),
        ("vethwebgbr9", "br9"),
    ] {
        assert_eq!(stage.link(device, "master"), master);
    }
    let rules = host.sh("iptables -w -t nat -S POSTROUTING");
    assert_eq!(rules.matches("-o weave -j ACCEPT").count(), 1, "{rules}");
    step("traffic passes between the two bridges");
    let c = host.container("far");
    c.attach(&["172.17.5.5/16"]);
    host.wait("172.17.5.5 by the other bridge", SHORT_TIMEOUT, || {
        host.command(&["ping", "-c1", "-W1", "172.17.5.5"]).success()
    });
    stage.ok(&["reset"]);
    let rules = host.sh("iptables -w -t nat -S POSTROUTING; ip -o link");
    assert!(!rules.contains("weave") && !rules.contains("vethwe"), "{rules}");
    host.sh("ip link del docker0; ip link del br9");
}
