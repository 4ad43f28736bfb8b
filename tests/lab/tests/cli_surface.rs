//! Every command, option and variable with the real program, and what it does. The program itself lists what there is
//! (completions and manual are made from the definitions that parse); a row that no check covers fails, and so does a row that
//! is said to wait for a feature which is there.

use std::collections::{BTreeMap, BTreeSet};

use weave_lab::{Host, Lab, Topology};

use crate::common::*;

mod containers;
mod launch_options;
mod offline_commands;
mod status_commands;

/// Features that do not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    Aws,
}

/// Rows of features that do not exist yet. With the feature a row moves to a check.
const WAITING: &[(&str, Feature)] = &[("launch --awsvpc", Feature::Aws)];

/// Rows with tests of their own: the file, and a text that must be in it.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    // Allocation of addresses.
    ("launch --ipalloc-range", include_str!("single_host_addresses.rs"), "--ipalloc-range"),
    ("launch --ipalloc-default-subnet", include_str!("single_host_addresses.rs"), "--ipalloc-default-subnet"),
    ("launch --ipalloc-init", include_str!("dynamic_peers.rs"), "--ipalloc-init"),
    ("prime", include_str!("bootstrap.rs"), "\"prime\""),
    ("consense", include_str!("bootstrap.rs"), "\"consense\""),
    ("rmpeer", include_str!("bootstrap.rs"), "\"rmpeer\""),
    ("launch --docker-api", include_str!("docker_containers.rs"), "\"--docker-api\", \"\""),
    // Containers that are attached when Docker starts them.
    ("run", include_str!("docker_run.rs"), "\"run\""),
    ("start", include_str!("docker_run.rs"), "\"start\""),
    ("restart", include_str!("docker_run.rs"), "\"restart\""),
    // What shows where frames go, and what helps others.
    ("trace", include_str!("trace.rs"), "\"trace\""),
    ("top", include_str!("picture.rs"), "top"),
    ("support-bundle", include_str!("support_bundle.rs"), "\"support-bundle\""),
    ("setup-docker", include_str!("docker_oci_runtime.rs"), "\"setup-docker\""),
    ("setup-cni", include_str!("cni.rs"), "\"setup-cni\""),
    ("setup-podman", include_str!("netavark.rs"), "\"setup-podman\", \"--undo\""),
    ("netavark", include_str!("netavark.rs"), "\"netavark\""),
    ("$HAIRPIN_MODE", include_str!("cni.rs"), "HAIRPIN_MODE"),
    ("$WEAVE_CNI_PLUGIN_DIR", include_str!("cni.rs"), "WEAVE_CNI_PLUGIN_DIR"),
    ("oci-runtime", include_str!("docker_oci_runtime.rs"), "\"--runtime\", \"weave\""),
    ("$DOCKER_CLIENT_ARGS", include_str!("docker_run.rs"), "DOCKER_CLIENT_ARGS"),
    // The Docker API proxy.
    ("launch --proxy", include_str!("docker_proxy.rs"), "--proxy=false"),
    ("launch -H", include_str!("docker_proxy.rs"), "\"-H\""),
    ("launch --hostname-from-label", include_str!("docker_proxy.rs"), "--hostname-from-label"),
    ("launch --hostname-match", include_str!("docker_proxy.rs"), "--hostname-match"),
    ("launch --hostname-replacement", include_str!("docker_proxy.rs"), "--hostname-replacement"),
    ("launch --rewrite-inspect", include_str!("docker_proxy.rs"), "--rewrite-inspect"),
    ("launch --no-default-ipalloc", include_str!("docker_proxy.rs"), "--no-default-ipalloc"),
    ("launch --attach-user-networks", include_str!("docker_proxy.rs"), "--attach-user-networks"),
    ("launch --no-rewrite-hosts", include_str!("docker_proxy.rs"), "--no-rewrite-hosts"),
    ("launch --without-dns", include_str!("docker_proxy.rs"), "--without-dns"),
    ("launch --no-multicast-route", include_str!("docker_proxy.rs"), "--no-multicast-route"),
    ("launch --tls", include_str!("docker_proxy.rs"), "\"--tls\""),
    ("launch --tlsverify", include_str!("docker_proxy.rs"), "\"--tlsverify\""),
    ("launch --tlscacert", include_str!("docker_proxy.rs"), "--tlscacert"),
    ("launch --tlscert", include_str!("docker_proxy.rs"), "--tlscert"),
    ("launch --tlskey", include_str!("docker_proxy.rs"), "--tlskey"),
    ("launch --no-detect-tls", include_str!("docker_proxy.rs"), "--no-detect-tls"),
    ("$WEAVE_CIDR", include_str!("docker_proxy.rs"), "WEAVE_CIDR="),
    ("$PROXY_HOST", include_str!("docker_proxy.rs"), "PROXY_HOST"),
    ("$DOCKER_CERT_PATH", include_str!("docker_proxy.rs"), "DOCKER_CERT_PATH"),
    ("config", include_str!("docker_proxy.rs"), "\"config\""),
    // Networks of Docker.
    ("launch-plugin", include_str!("docker_plugin.rs"), "\"launch-plugin\""),
    ("launch --plugin", include_str!("docker_plugin.rs"), "--plugin=false"),
    ("launch --mesh-network-name", include_str!("docker_plugin.rs"), "--mesh-network-name=n1"),
    ("launch --plugin-socket", include_str!("docker_plugin.rs"), "--plugin-socket="),
    ("launch --plugin-mesh-socket", include_str!("docker_plugin.rs"), "--plugin-mesh-socket="),
    ("launch --plugin-v2", include_str!("docker_plugin.rs"), "\"--plugin-v2\""),
    ("launch --plugin-v2-multicast", include_str!("docker_plugin.rs"), "--plugin-v2-multicast"),
    ("doctor", include_str!("doctor.rs"), "\"doctor\""),
    ("launch --data-threads", include_str!("warp.rs"), "--data-threads"),
    // Names.
    ("launch --no-dns", include_str!("names.rs"), "--no-dns"),
    ("launch --dns-domain", include_str!("name_server.rs"), "--dns-domain"),
    ("launch --dns-listen-address", include_str!("name_server.rs"), "--dns-listen-address"),
    ("launch --dns-ttl", include_str!("name_server.rs"), "--dns-ttl"),
    ("launch --dns-threads", include_str!("name_server.rs"), "--dns-threads"),
    ("launch --dns-fallback-timeout", include_str!("name_server.rs"), "--dns-fallback-timeout"),
    ("launch --resolv-conf", include_str!("name_server.rs"), "--resolv-conf"),
    ("launch --host-dns", include_str!("name_server.rs"), "--host-dns"),
    ("attach --name", include_str!("names.rs"), "--name"),
    ("attach --without-dns", include_str!("docker_names.rs"), "--without-dns"),
    ("dns-add", include_str!("names.rs"), "\"dns-add\""),
    ("dns-remove", include_str!("names.rs"), "\"dns-remove\""),
    ("dns-lookup", include_str!("name_server.rs"), "\"dns-lookup\""),
    ("dns-args", include_str!("name_server.rs"), "\"dns-args\""),
    ("$DNS_DOMAIN", include_str!("name_server.rs"), "DNS_DOMAIN"),
    ("$DNS_ADDRESS", include_str!("name_server.rs"), "DNS_ADDRESS"),
    // Networks of the host, and the firewall.
    ("expose", include_str!("expose.rs"), "\"expose\""),
    ("hide", include_str!("expose.rs"), "\"hide\""),
    ("launch --expect-npc", include_str!("firewall_rules.rs"), "--expect-npc"),
    // Migration from 2.8.1 and back.
    ("launch --take-over", include_str!("upgrade.rs"), "--take-over"),
    ("launch --give-up-addresses", include_str!("upgrade.rs"), "--give-up-addresses"),
    ("stop --hand-back", include_str!("upgrade.rs"), "\"stop\", \"--hand-back\""),
    // Service managers, log files.
    ("$WEAVE_CONTAINER_NAME", include_str!("docker_service.rs"), "WEAVE_CONTAINER_NAME"),
    ("launch --service", include_str!("systemd_unit.rs"), "--service"),
    ("launch --log-keep", include_str!("service_lifecycle.rs"), "--log-keep"),
];

/// A check and the rows that it shows.
struct Check {
    rows: &'static [&'static str],
    run: fn(&Stage<'_>),
}

const fn check(rows: &'static [&'static str], run: fn(&Stage<'_>)) -> Check {
    Check { rows, run }
}

/// The hosts of a check: no peer runs on `host` before and after it; `other` has a peer.
struct Stage<'a> {
    host: &'a Host,
    other: &'a Host,
}

impl Stage<'_> {
    /// Standard output of a command that succeeds without output on stderr.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let outcome = self.host.weave(args);
        assert!(outcome.success() && outcome.stderr.is_empty(), "{outcome}");
        outcome.stdout
    }

    /// Standard error of a command that fails with this code.
    #[track_caller]
    fn fails(&self, code: i32, args: &[&str]) -> String {
        self.fails_with(&[], code, args)
    }

    #[track_caller]
    fn fails_with(&self, env: &[(&str, &str)], code: i32, args: &[&str]) -> String {
        let outcome = self.host.weave_env(env, args);
        assert!(outcome.code == Some(code) && outcome.stdout.is_empty(), "code {code} expected\n{outcome}");
        outcome.stderr
    }

    /// Launches without a supervisor; returns standard error.
    #[track_caller]
    fn launch(&self, env: &[(&str, &str)], args: &[&str]) -> String {
        let outcome = self.host.weave_env(env, &[&["launch", "--no-restart"], args].concat());
        assert!(outcome.success(), "{outcome}");
        outcome.stderr
    }

    /// A value of the report.
    #[track_caller]
    fn report(&self, template: &str) -> String {
        self.ok(&["report", "-f", template])
    }

    fn sockets(&self) -> String {
        self.host.command_ok(&["ss", "-Hlntu"])
    }

    /// Body of an HTTP response, requested with bash.
    fn http(&self, host: &str, port: u16, path: &str) -> String {
        let script = format!(
            "exec 3<>/dev/tcp/{host}/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        self.host.command(&["bash", "-c", &script]).stdout
    }

    /// The word after `key` (`mtu`, `master`, `link/ether`) in the output of `ip link` for a device.
    #[track_caller]
    fn link(&self, device: &str, key: &str) -> String {
        let said = self.host.command_ok(&["ip", "-o", "link", "show", "dev", device]);
        let value = said.split_whitespace().skip_while(|w| *w != key).nth(1);
        value.unwrap_or_else(|| panic!("no {key} in {said}")).to_owned()
    }
}

/// All commands, options and variables that the program lists: `launch`, `launch --port`, `$WEAVE_PORT`.
fn surface(host: &Host) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    for line in host.weave_ok(&["completions", "fish"]).lines() {
        // complete -c weave -n "<condition>" <option or command> ...
        let mut quoted = line.split('"').skip(1);
        let (Some(condition), Some(rest)) = (quoted.next(), quoted.next()) else { continue };
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (condition.strip_prefix("__fish_weave_using_subcommand "), words.as_slice()) {
            (None, ["-f", "-a"]) if condition == "__fish_weave_needs_command" => {
                rows.extend(quoted.next().map(str::to_owned));
            }
            (Some(_), ["-l", "help", ..]) | (None, _) => {}
            (Some(command), [form @ ("-l" | "-s"), name, ..]) => {
                // `launch` passes the options of `daemon` on.
                let command = if command == "daemon" { "launch" } else { command };
                let dashes = if *form == "-l" { "--" } else { "-" };
                rows.insert(format!("{command} {dashes}{name}"));
            }
            _ => {}
        }
    }
    let manual = host.weave_ok(&["man"]);
    let variables = manual.split(".SH ENVIRONMENT\n").nth(1).and_then(|t| t.split(".SH").next());
    let variables = variables.unwrap().lines().filter_map(|l| l.strip_prefix("\\fB")?.strip_suffix("\\fR"));
    rows.extend(variables.map(|name| format!("${name}")));
    let old = manual.split(".SH \"OLD COMMANDS\"\n").nth(1).and_then(|t| t.split(".SH").next()).unwrap();
    let old = old.lines().nth(1).unwrap().trim_end_matches('.').replace("\\-", "-");
    rows.extend(old.split(", ").map(str::to_owned));
    assert!(rows.len() > 150, "{rows:?}");
    rows
}

/// Options of many commands, which one check tries with each.
fn shared(row: &str) -> bool {
    row.split_once(' ')
        .is_some_and(|(_, option)| ["--run-dir", "--http-addr", "--instance"].contains(&option))
}

#[test]
fn every_command_option_and_variable() {
    let Some(lab) = Lab::start("cmds", &Topology::hosts(2)) else { return };
    let [host, other] = ["h1", "h2"].map(|h| lab.host(h));
    launch(other, &[], &[]);
    let stage = Stage { host, other };

    let surface = surface(host);
    let checks: Vec<&Check> =
        [offline_commands::CHECKS, launch_options::CHECKS, status_commands::CHECKS, containers::CHECKS]
            .into_iter()
            .flatten()
            .collect();
    let mut covered: BTreeMap<&str, usize> = BTreeMap::new();
    let waiting = WAITING.iter().map(|(row, _)| row);
    for (row, file, what) in ELSEWHERE {
        assert!(file.contains(what), "{row} is not shown by the test that is said to show it");
    }
    let elsewhere = ELSEWHERE.iter().map(|(row, ..)| row);
    for row in checks.iter().flat_map(|c| c.rows).chain(waiting).chain(elsewhere) {
        *covered.entry(row).or_default() += 1;
    }
    let here = |row: &String| covered.contains_key(row.as_str());
    let elsewhere = |row: &String| {
        row.split(' ').next().is_some_and(|command| ELSEWHERE.iter().any(|(row, ..)| *row == command))
    };
    let missing: Vec<_> =
        surface.iter().filter(|row| !here(row) && !shared(row) && !elsewhere(row)).collect();
    assert!(missing.is_empty(), "no check shows {missing:#?}");
    let twice: Vec<_> = covered.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");

    let mut failed: Vec<&str> = Vec::new();
    for check in checks {
        let begin = std::time::Instant::now();
        // Collects all failures before it fails.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (check.run)(&stage))).is_err() {
            failed.extend(check.rows);
        }
        let outcome = host.weave(&["reset", "--force"]);
        assert!(outcome.success(), "{outcome}");
        eprintln!("{:>6} ms  {}", begin.elapsed().as_millis(), check.rows.join(", "));
    }
    waiting_rows(&stage);
    assert!(failed.is_empty(), "these failed, see above: {failed:#?}");
}

/// The program must say that a feature is missing, and the feature must still be missing.
fn waiting_rows(stage: &Stage<'_>) {
    stage.launch(&[], &[]);
    for (row, feature) in WAITING {
        let moved = format!("{row} waits for {feature:?}, which is there: move it to a check");
        let option = row.rsplit(' ').next().unwrap();
        // It requires another option.
        let args = ["launch", "--print-peer-name", "--name", "::1", option, "--ipalloc-range", "10.2.0.0/16"];
        let outcome = stage.host.weave(&args);
        let notice = outcome
            .stderr
            .lines()
            .any(|l| l.starts_with("Notice: this version does not do ") && l.split(' ').any(|w| w == option));
        assert!(outcome.success() && notice, "{moved}\n{outcome}");
    }
    stage.ok(&["stop"]);
}
