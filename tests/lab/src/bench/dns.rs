//! Answers to DNS queries for local names, compared with dnsmasq and Knot DNS that serve the same names on the same host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{cleanup, peer, succeed};
use crate::{Background, Host, within};

const NAMES: u32 = 200;
const START_TIMEOUT: Duration = Duration::from_secs(30);
const RUN_TIMEOUT: Duration = Duration::from_secs(60);
/// Where the files of the servers are, in the host.
const FOLDER: &str = "/run/weave-bench-dns";
/// Programs and their Debian packages.
const PROGRAMS: [(&str, &str); 3] = [("dnsperf", "dnsperf"), ("dnsmasq", "dnsmasq-base"), ("knotd", "knot")];

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Weave,
    Knot,
    Dnsmasq,
}

impl Server {
    /// The servers that can use so many threads.
    pub(super) fn with_threads(threads: usize) -> &'static [Server] {
        if threads == 1 {
            &[Server::Weave, Server::Knot, Server::Dnsmasq]
        } else {
            &[Server::Weave, Server::Knot]
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Server::Weave => "weave",
            Server::Knot => "Knot DNS",
            Server::Dnsmasq => "dnsmasq",
        }
    }

    fn port(self) -> &'static str {
        match self {
            Server::Weave => "5301",
            Server::Knot => "5302",
            Server::Dnsmasq => "5303",
        }
    }
}

/// One run of dnsperf.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Answers per second.
    pub(super) per_second: f64,
    pub(super) lost: f64,
}

/// A host with the three servers.
pub(super) struct Servers {
    // Dropped before the lab, because they run in its host.
    _others: [Background; 2],
    lab: crate::Lab,
    threads: usize,
}

impl Servers {
    /// Each answers with so many threads; dnsmasq has always one.
    pub(super) fn start(weave: &Path, threads: usize) -> Result<Servers> {
        for (program, package) in PROGRAMS {
            let found = std::process::Command::new("which").arg(program).env("PATH", search_path()).output();
            ensure!(
                found.is_ok_and(|output| output.status.success()),
                "{program} is missing: apt-get install {package}"
            );
        }
        let lab = cleanup::lab(1)?;
        let host = lab.host("h1");
        let listen = format!("127.0.0.1:{}", Server::Weave.port());
        let count = threads.to_string();
        let options = ["--no-restart", "--dns-listen-address", &listen, "--dns-threads", &count];
        succeed(peer::weave(host, weave, &[&["launch"], &options[..]].concat()))?;
        for n in 0..NAMES {
            let (addr, name) = (format!("10.32.0.{n}"), format!("host{n}.weave.local"));
            succeed(peer::weave(host, weave, &["dns-add", &addr, "-h", &name]))?;
        }
        host.sh(&files(threads));
        let knot = format!("exec knotd -c {FOLDER}/knot.conf > {FOLDER}/knot.log 2>&1");
        let dnsmasq = format!(
            "exec dnsmasq -k --conf-file=/dev/null --no-resolv --no-hosts --addn-hosts={FOLDER}/hosts --local-ttl=1 \
             --port={} --listen-address=127.0.0.1 --bind-interfaces --user=root --pid-file > {FOLDER}/dnsmasq.log 2>&1",
            Server::Dnsmasq.port()
        );
        let path = search_path();
        let start =
            |script: &str| host.background(&["env", &format!("PATH={path}"), "sh", "-c", script], false);
        let others = [start(&knot)?, start(&dnsmasq)?];
        for &server in Server::with_threads(threads) {
            let answers = || {
                run(host, server, threads, &["-n", "1", "-t", "1"]).is_ok_and(|(rate, _)| rate.lost == 0.0)
            };
            let waited = within(&format!("{} to answer", server.name()), START_TIMEOUT, answers);
            waited.map_err(anyhow::Error::msg)?;
        }
        Ok(Servers { _others: others, lab, threads })
    }

    /// As many queries as the server answers.
    pub(super) fn full_load(&self, server: Server, seconds: u32) -> Result<Rate> {
        Ok(run(self.lab.host("h1"), server, self.threads, &["-l", &seconds.to_string()])?.0)
    }

    /// Seconds within which 99 % of the answers come at a given rate.
    pub(super) fn latency(&self, server: Server, seconds: u32, per_second: f64) -> Result<f64> {
        let rate = (per_second as u64).max(1).to_string();
        let args = ["-l", &seconds.to_string(), "-Q", &rate, "-v"];
        let (_, text) = run(self.lab.host("h1"), server, self.threads, &args)?;
        // `> NOERROR host1.weave.local A 0.000123`
        let mut times: Vec<f64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("> NOERROR ")?.split_whitespace().last()?.parse().ok())
            .collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() * 99 / 100).copied().context("dnsperf printed no answers")
    }
}

fn run(host: &Host, server: Server, threads: usize, args: &[&str]) -> Result<(Rate, String)> {
    let queries = format!("{FOLDER}/queries");
    // The kernel divides clients, not queries, among the threads of a server.
    let clients = if threads == 1 { "1".to_owned() } else { (threads * 16).to_string() };
    let client_threads = threads.to_string();
    let mut argv = vec!["dnsperf", "-s", "127.0.0.1", "-p", server.port(), "-d", &queries];
    argv.extend(["-c", &clients, "-T", &client_threads, "-q", "100"]);
    argv.extend(args);
    let text = succeed(host.command_with(&[], &argv, RUN_TIMEOUT))?;
    let figure = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
        let word = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        word.with_context(|| format!("no {key:?} in {text}"))
    };
    let wrong =
        text.lines().any(|line| line.trim().starts_with("Response codes:") && !line.contains("(100.00%)"));
    ensure!(!wrong, "{} does not know all names: {text}", server.name());
    Ok((Rate { per_second: figure("Queries per second:")?, lost: figure("Queries lost:")? }, text))
}

/// The servers are not in the PATH of every user.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A script that writes queries, the hosts file and the zone.
fn files(threads: usize) -> String {
    format!(
        "mkdir -p {FOLDER}/knot
        seq 0 {last} | sed 's/.*/host&.weave.local A/' > {FOLDER}/queries
        seq 0 {last} | sed 's/.*/10.32.0.& host&.weave.local/' > {FOLDER}/hosts
        (echo '$ORIGIN weave.local.'; echo '$TTL 1'; echo '@ SOA ns root 1 60 60 60 1'; echo '@ NS ns'
         echo 'ns A 127.0.0.1'; seq 0 {last} | sed 's/.*/host& A 10.32.0.&/') > {FOLDER}/weave.local.zone
        cat > {FOLDER}/knot.conf <<END
server:
    rundir: {FOLDER}/knot
    listen: 127.0.0.1@{knot}
    udp-workers: {threads}
    tcp-workers: 1
    background-workers: 1
database:
    storage: {FOLDER}/knot
template:
  - id: default
    storage: {FOLDER}
    journal-content: none
    zonefile-load: whole
zone:
  - domain: weave.local
    file: weave.local.zone
END
",
        last = NAMES - 1,
        knot = Server::Knot.port(),
    )
}
