//! `lab bench`: the costs of the network, as ratios to kernel VXLAN between the same kind of hosts in the same run, and to other DNS servers.
//!
//! Rounds are interleaved (VXLAN, plain, encrypted, and again). Each round gives one ratio, and the median of the ratios is shown,
//! because machines are shared and absolute figures depend on the machine. A benchmark that is slow does not fail.

mod cleanup;
mod containers;
mod data_path;
mod dns;
mod failover;
mod figures;
mod paths;
mod peer;
mod scale;
mod vpn;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use figures::{Bar, Figure, Report, Unit};
use paths::{Kind, Path, Shape};

/// Options of `lab bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Length of each TCP stream; request/response runs for a third of it.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Measure only this; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<What>,
    /// Congestion control of the TCP streams; that of the kernel if absent.
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,
    /// Share of the packets between the hosts that are lost, such as 0.01.
    #[arg(long, value_name = "SHARE")]
    loss: Option<f64>,
    /// MTU of the wire; the containers' is 124 less.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(1280..=65535))]
    mtu: u32,
    /// Connections between the two hosts that are measured: weave relays at the hosts between them, kernel VXLAN stays direct.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10))]
    hops: u32,
    /// A VPN program in user space to measure beside weave's encryption: wireguard-go, gotatun or nebula; may be repeated.
    #[arg(long, value_name = "PROGRAM")]
    vpn: Vec<PathBuf>,
    /// Peers of the meshes of `--only scale`: 50, 100 or 150; may be repeated. All of them if absent.
    #[arg(long, value_name = "PEERS")]
    peers: Vec<usize>,
    /// Write all figures, with the value of each round, into this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A measurement that can be made alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// One TCP stream.
    Stream,
    /// Eight TCP streams at a time; only if they are named.
    Streams,
    /// UDP datagrams of 64 and of 1,340 bytes; only if they are named.
    Udp,
    /// Round trips of one byte.
    Rr,
    /// Answers to DNS queries for local names, compared with Knot DNS and dnsmasq.
    Dns,
    /// Containers that start and end: of Docker by proxy, OCI runtime and network plugin, of Podman by CNI and netavark, of containerd by
    /// CNI, compared with the engines' own networks.
    Containers,
    /// Allocation of an address over HTTP, compared with a read of the status page on the same connection.
    Allocate,
    /// Time of `weave launch`.
    Launch,
    /// Resident memory with three peers after traffic.
    Memory,
    /// Share of a processor that a daemon without traffic uses.
    Idle,
    /// Size of the binary.
    Size,
    /// Silence between containers when a link is cut and when a daemon restarts. Takes ten minutes; only if it is named.
    Failover,
    /// Meshes of 50, 100 and 150 daemons. Takes up to half an hour; only if it is named.
    Scale,
}

impl BenchArgs {
    fn wants(&self, what: What) -> bool {
        let only_if_named = [What::Streams, What::Udp, What::Failover, What::Scale];
        self.only.contains(&what) || self.only.is_empty() && !only_if_named.contains(&what)
    }
}

/// An allocation takes at most twice the time of a status read.
const ALLOCATE_BAR: f64 = 0.5;
/// At least as many answers as Knot DNS.
const DNS_BAR: f64 = 1.0;
/// Seconds for 99 % of the answers at half of Knot's load.
const DNS_LATENCY_BAR: f64 = 0.001;
const LAUNCH_BAR: f64 = 0.3;
const MEMORY_BAR: f64 = 20e6;
/// Peers besides the one that is measured.
const MEMORY_PEERS: usize = 3;
const IDLE_TIME: Duration = Duration::from_secs(10);
/// For links, connections and the first replies of a path.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the benchmark and prints its table.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let weave = peer::program()?;
    cleanup::install()?;
    let mut report = Report::new(&weave, args.runs, args.seconds);
    report.print_head()?;

    let one_peer = args.wants(What::Memory) || args.wants(What::Idle);
    data_path::measure(args, &weave, &mut report)?;
    if args.wants(What::Dns) {
        for threads in [1, 2] {
            report.print(dns_figures(args, &weave, threads)?)?;
        }
    }
    if args.wants(What::Containers) {
        report
            .print(containers::with_engines(&weave, |lab, engines| container_figures(args, lab, engines))?)?;
    }
    if args.wants(What::Allocate) {
        print_progress("addresses over HTTP");
        let rounds = peer::allocations(args.runs, &weave)?;
        let (reads, allocations): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        let ratios = allocations.iter().zip(&reads).map(|(allocation, read)| allocation / read).collect();
        let allocation = Figure::new("addresses over HTTP, to status reads", Unit::PerSecond, allocations);
        report.print(vec![
            Figure::new("status reads over HTTP, by their median", Unit::PerSecond, reads),
            allocation.ratios(ratios).bar(Bar::AtLeast(ALLOCATE_BAR)),
        ])?;
    }
    if args.wants(What::Launch) {
        print_progress("launches");
        let figure = Figure::new("launch to ready", Unit::Seconds, peer::launches(args.runs, &weave)?);
        report.print(vec![figure.bar(Bar::AtMost(LAUNCH_BAR))])?;
    }
    if one_peer {
        print_progress(&format!("a peer with {MEMORY_PEERS} peers"));
        let path = Path::start(Kind::Plain, Shape::hosts(MEMORY_PEERS + 1), &weave)?;
        print_progress("traffic to each of them");
        for other in 1..=MEMORY_PEERS {
            path.traffic_to(other)?;
        }
        let pid = peer::daemon_pid(path.host())?;
        if args.wants(What::Memory) {
            let memory = peer::memory(path.host(), pid)?;
            let bar = Bar::AtMost(MEMORY_BAR);
            report.print(vec![
                Figure::new("daemon's memory with 3 peers, VmRSS", Unit::Bytes, vec![memory.resident])
                    .bar(bar),
                Figure::new(
                    "  of it its own and its part of what is shared, PSS",
                    Unit::Bytes,
                    vec![memory.share],
                ),
                Figure::new("  of it its own, not backed by files", Unit::Bytes, vec![memory.anonymous]),
            ])?;
        }
        if args.wants(What::Idle) {
            print_progress(&format!("a daemon without traffic, {} s", IDLE_TIME.as_secs()));
            let share = peer::processor_share(path.host(), pid, IDLE_TIME)?;
            report.print(vec![Figure::new(
                "idle daemon's share of a processor",
                Unit::Share,
                vec![share],
            )])?;
        }
    }
    if args.wants(What::Size) {
        let sizes = peer::sizes(&weave)?;
        report.print(
            sizes
                .into_iter()
                .map(|(name, bytes)| Figure::new(&name, Unit::Bytes, vec![bytes as f64]))
                .collect(),
        )?;
    }
    if args.wants(What::Failover) {
        report.print(failover::figures(&weave)?)?;
    }
    if args.wants(What::Scale) {
        for size in scale::sizes(&args.peers)? {
            report.print(scale::figures(&weave, size)?)?;
        }
    }
    if let Some(file) = &args.json {
        std::fs::write(file, report.json()?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Rates of the servers in interleaved rounds, with ratios to Knot DNS; queries without an answer; latency at half of Knot's rate.
fn dns_figures(args: &BenchArgs, weave: &std::path::Path, threads: usize) -> Result<Vec<Figure>> {
    let kind = if threads == 1 { "one thread".to_owned() } else { format!("{threads} threads") };
    print_progress(&format!("DNS servers with {kind}"));
    let running = dns::Servers::start(weave, threads)?;
    let servers = dns::Server::with_threads(threads);
    let mut rates = vec![Vec::new(); servers.len()];
    for round in 1..=args.runs {
        print_progress(&format!("DNS queries, round {round} of {}", args.runs));
        for (server, rates) in servers.iter().zip(&mut rates) {
            rates.push(running.full_load(*server, args.seconds)?);
        }
    }
    let rate_of = |wanted| {
        let found = servers.iter().zip(&rates).find(|(server, _)| **server == wanted);
        found.into_iter().flat_map(|(_, rates)| rates).copied().collect::<Vec<dns::Rate>>()
    };
    let knot: Vec<f64> = rate_of(dns::Server::Knot).iter().map(|rate| rate.per_second).collect();
    let mut figures = Vec::new();
    for server in servers {
        let values: Vec<f64> = rate_of(*server).iter().map(|rate| rate.per_second).collect();
        let ratios = values.iter().zip(&knot).map(|(value, knot)| value / knot).collect();
        let figure = Figure::new(&format!("DNS answers, {}, {kind}", server.name()), Unit::PerSecond, values);
        figures.push(match server {
            dns::Server::Weave => figure.ratios(ratios).bar(Bar::AtLeast(DNS_BAR)),
            dns::Server::Knot => figure,
            dns::Server::Dnsmasq => figure.ratios(ratios),
        });
    }
    let lost = rate_of(dns::Server::Weave).iter().map(|rate| rate.lost).collect();
    figures
        .push(Figure::new("DNS queries of these that weave lost", Unit::Count, lost).bar(Bar::AtMost(0.0)));
    let half = knot.iter().copied().fold(f64::INFINITY, f64::min) / 2.0;
    for server in servers {
        let mut times = Vec::new();
        for _ in 0..args.runs {
            times.push(running.latency(*server, args.seconds, half)?);
        }
        let name = format!("DNS, 99 % answered within, {}, {half:.0}/s", server.name());
        let figure = Figure::new(&name, Unit::Seconds, times);
        figures.push(match server {
            dns::Server::Weave => figure.bar(Bar::AtMost(DNS_LATENCY_BAR)),
            _ => figure,
        });
    }
    Ok(figures)
}

/// Time of containers and of lists, in interleaved rounds, with ratios to the engine's own network.
fn container_figures(
    args: &BenchArgs,
    lab: &crate::Lab,
    engines: &[containers::Engine],
) -> Result<Vec<Figure>> {
    use containers::Way;
    type Times = Vec<(Way, Vec<f64>)>;
    let start = |ways: &[Way]| -> Times { ways.iter().map(|way| (*way, Vec::new())).collect() };
    let mut runs: Vec<(&str, Times)> = engines.iter().map(|e| (e.name, start(e.ways))).collect();
    let has_docker = engines.iter().any(|engine| engine.ways.contains(&Way::Proxy));
    let mut lists = start(if has_docker { &[Way::Plain, Way::Proxy] } else { &[] });
    for round in 1..=args.runs {
        print_progress(&format!("containers, round {round} of {}", args.runs));
        for (way, times) in runs.iter_mut().flat_map(|(_, ways)| ways) {
            times.push(containers::run(lab, *way)?);
        }
        for (way, times) in &mut lists {
            times.push(containers::list(lab, *way)?);
        }
    }
    runs.push(("docker ps", lists));
    let mut figures = Vec::new();
    for (what, times) in runs {
        let mut plain: Option<Vec<f64>> = None;
        for (way, times) in times {
            let figure = Figure::new(&format!("{what}, {}", way.name()), Unit::Seconds, times.clone());
            figures.push(match &plain {
                None => figure,
                Some(plain) => {
                    figure.ratios(times.iter().zip(plain).map(|(time, plain)| time / plain).collect())
                }
            });
            plain.get_or_insert(times);
        }
    }
    Ok(figures)
}

fn print_progress(text: &str) {
    eprintln!("  ... {text}");
}

/// The container of host `i`, from 0 on.
fn address(i: usize) -> String {
    format!("10.2.1.{}", i + 1)
}

/// Standard output of a command that has to succeed.
fn succeed(outcome: crate::Outcome) -> Result<String> {
    if !outcome.success() {
        cleanup::unless_interrupted();
        bail!("{outcome}");
    }
    Ok(outcome.stdout)
}
