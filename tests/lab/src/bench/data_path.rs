//! Streams, datagrams and round trips between containers on two hosts, by each overlay and by kernel VXLAN.

use std::collections::BTreeSet;
use std::path::Path as FilePath;

use anyhow::{Result, ensure};

use super::figures::{Bar, Figure, Report, Unit};
use super::paths::{Kind, Path, Shape, Wire};
use super::vpn::Vpn;
use super::{BenchArgs, What, print_progress};

/// How the hosts can be joined: kernel VXLAN first, which the others are compared with.
fn ways(args: &BenchArgs) -> Result<Vec<(Kind, Shape)>> {
    use Kind::{Encrypted, Fastdp, Plain, Shortcut, Vxlan, Warp};
    let direct = Shape { mtu: args.mtu, ..Shape::hosts(2) };
    let with = |kinds: &[Kind], shape| kinds.iter().map(|kind| (kind.clone(), shape)).collect::<Vec<_>>();
    if !args.vpn.is_empty() {
        let vpns = args.vpn.iter().map(|program| Vpn::find(program).map(Kind::Vpn));
        let vpns = vpns.collect::<Result<Vec<_>>>()?;
        return Ok(with(&[&[Vxlan, Encrypted, Warp], &vpns[..]].concat(), direct));
    }
    if args.hops > 1 {
        let chain = Shape { hosts: args.hops as usize + 1, chain: true, ..direct };
        let relayed = with(&[Fastdp, Plain, Encrypted, Warp], chain);
        return Ok([with(&[Vxlan, Fastdp, Warp], direct), relayed].concat());
    }
    Ok(with(&[Vxlan, Fastdp, Shortcut, Plain, Encrypted, Warp], direct))
}

/// What is measured on each path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    /// So many TCP streams at a time.
    Streams(u32),
    /// UDP datagrams of this size, as received.
    Datagrams(usize),
    RoundTrips,
}

impl Metric {
    fn wanted(args: &BenchArgs) -> Vec<Metric> {
        let all = [
            (What::Stream, Metric::Streams(1)),
            (What::Streams, Metric::Streams(8)),
            (What::Udp, Metric::Datagrams(64)),
            (What::Udp, Metric::Datagrams(1340)),
            (What::Rr, Metric::RoundTrips),
        ];
        all.into_iter().filter(|(what, _)| args.wants(*what)).map(|(_, metric)| metric).collect()
    }

    /// The value, and what it cost, with its name.
    fn measure(self, path: &Path, args: &BenchArgs) -> Result<Measured> {
        match self {
            Metric::Streams(count) => {
                let streams = path.streams(count, args.seconds, args.congestion.as_deref())?;
                let mut costs = vec![("processor seconds for a GB", streams.processor)];
                costs.extend(streams.retransmits.map(|again| ("segments again for one dropped", again)));
                Ok((streams.gigabits, costs))
            }
            Metric::Datagrams(size) => Ok((path.datagrams(size, args.seconds)?, Vec::new())),
            Metric::RoundTrips => Ok((path.round_trips(f64::from(args.seconds) / 3.0)?, Vec::new())),
        }
    }

    fn name(self) -> String {
        match self {
            Metric::Streams(1) => "TCP stream".to_owned(),
            Metric::Streams(count) => format!("{count} TCP streams"),
            Metric::Datagrams(size) => format!("UDP, {size} bytes"),
            Metric::RoundTrips => "TCP_RR".to_owned(),
        }
    }

    fn unit(self) -> Unit {
        match self {
            Metric::Streams(_) => Unit::Gigabits,
            Metric::Datagrams(_) | Metric::RoundTrips => Unit::PerSecond,
        }
    }

    /// Lowest acceptable ratio of a direct path.
    fn bar(self, kind: &Kind, wire: Wire) -> Option<f64> {
        match (self, kind) {
            (_, Kind::Vxlan | Kind::Vpn(_)) | (Metric::Datagrams(_), _) => None,
            (Metric::Streams(_), Kind::Fastdp) => Some(0.9),
            (Metric::Streams(_), Kind::Shortcut) => Some(1.0),
            (Metric::Streams(_), Kind::Plain) => Some(0.5),
            (Metric::Streams(_), Kind::Encrypted) => Some(0.23),
            (Metric::Streams(_), Kind::Warp) => Some(if wire == Wire::Offloads { 0.6 } else { 0.8 }),
            (Metric::RoundTrips, Kind::Fastdp) => Some(0.87),
            (Metric::RoundTrips, Kind::Shortcut) => Some(1.18),
            (Metric::RoundTrips, Kind::Warp) => Some(0.6),
            (Metric::RoundTrips, Kind::Plain | Kind::Encrypted) => None,
        }
    }
}

/// Measures what `args` asks for, and prints it.
pub(super) fn measure(args: &BenchArgs, weave: &FilePath, report: &mut Report) -> Result<()> {
    let metrics = Metric::wanted(args);
    if metrics.is_empty() {
        return Ok(());
    }
    ensure!(
        std::process::Command::new("iperf3").arg("--version").output().is_ok(),
        "iperf3 is missing: apt-get install iperf3"
    );
    let ways = ways(args)?;
    let names: Vec<String> = ways.iter().map(name).collect();
    print_progress(&format!("hosts with {}", names.join("; ")));
    let paths = ways.iter().map(|(kind, shape)| Path::start(kind.clone(), *shape, weave));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    if let Some(share) = args.loss {
        paths.iter().for_each(|path| path.lose(share));
    }
    for wire in [Wire::Offloads, Wire::ReceiveOffload, Wire::NoOffloads] {
        paths.iter().for_each(|path| path.set_wire(wire));
        // The values of each metric and way: one per round.
        let mut values = vec![vec![Vec::new(); ways.len()]; metrics.len()];
        for round in 1..=args.runs {
            print_progress(&format!("{wire}, round {round} of {}", args.runs));
            for (way, path) in paths.iter().enumerate() {
                for (metric, values) in metrics.iter().zip(&mut values) {
                    values[way].push(metric.measure(path, args)?);
                }
            }
        }
        // Shown immediately, because the rest takes minutes.
        for (metric, values) in metrics.iter().zip(&values) {
            report.print(against_vxlan(*metric, wire, &ways, values))?;
        }
    }
    Ok(())
}

fn name((kind, shape): &(Kind, Shape)) -> String {
    if shape.chain { format!("{kind}, {} hops", shape.hosts - 1) } else { kind.to_string() }
}

/// A value and its costs.
type Measured = (f64, Vec<(&'static str, f64)>);

/// A figure for VXLAN, and one with a ratio for each other way; what they cost below them.
fn against_vxlan(
    metric: Metric,
    wire: Wire,
    ways: &[(Kind, Shape)],
    values: &[Vec<Measured>],
) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut costs = Vec::new();
    for (way, rounds) in ways.iter().zip(values) {
        let title = format!("{}, {wire}, {}", metric.name(), name(way));
        let figure = Figure::new(&title, metric.unit(), rounds.iter().map(|(value, _)| *value).collect());
        let ratios = rounds.iter().zip(&values[0]).map(|((value, _), (base, _))| value / base).collect();
        figures.push(match metric.bar(&way.0, wire).filter(|_| !way.1.chain) {
            Some(bar) => figure.ratios(ratios).bar(Bar::AtLeast(bar)),
            None if way.0 == Kind::Vxlan => figure,
            None => figure.ratios(ratios),
        });
        // Not every round need have each of them.
        let names: BTreeSet<&str> =
            rounds.iter().flat_map(|(_, costs)| costs).map(|(name, _)| *name).collect();
        for cost in names {
            let all = rounds.iter().flat_map(|(_, costs)| costs).filter(|(name, _)| *name == cost);
            costs.push(Figure::new(
                &format!("  {title}, {cost}"),
                Unit::Number,
                all.map(|(_, v)| *v).collect(),
            ));
        }
    }
    figures.extend(costs);
    figures
}
