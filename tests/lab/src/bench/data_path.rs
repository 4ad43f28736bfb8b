//! Streams, datagrams and round trips between containers on two hosts, by each overlay and by kernel VXLAN.

use std::path::Path as FilePath;

use anyhow::{Result, ensure};

use super::figures::{Bar, Figure, Report, Unit};
use super::paths::{Kind, Path, Wire};
use super::{BenchArgs, What, print_progress};

/// All ways to join the hosts.
const KINDS: [Kind; 6] =
    [Kind::Vxlan, Kind::Fastdp, Kind::Shortcut, Kind::Plain, Kind::Encrypted, Kind::Warp];

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

    fn measure(self, path: &Path, args: &BenchArgs) -> Result<f64> {
        match self {
            Metric::Streams(count) => path.streams(count, args.seconds, args.congestion.as_deref()),
            Metric::Datagrams(size) => path.datagrams(size, args.seconds),
            Metric::RoundTrips => path.round_trips(f64::from(args.seconds) / 3.0),
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

    /// Lowest acceptable ratio.
    fn bar(self, kind: Kind, wire: Wire) -> Option<f64> {
        match (self, kind) {
            (_, Kind::Vxlan) | (Metric::Datagrams(_), _) => None,
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
    print_progress("hosts with kernel VXLAN, fastdp, plain and encrypted sleeve, and warp");
    let paths = KINDS.map(|kind| Path::start(kind, 2, weave)).into_iter().collect::<Result<Vec<_>>>()?;
    if let Some(share) = args.loss {
        paths.iter().for_each(|path| path.lose(share));
    }
    for wire in [Wire::Offloads, Wire::ReceiveOffload, Wire::NoOffloads] {
        paths.iter().for_each(|path| path.set_wire(wire));
        // The values of each metric: a round after the other, in each the paths in order.
        let mut values: Vec<Vec<f64>> = vec![Vec::new(); metrics.len()];
        for round in 1..=args.runs {
            print_progress(&format!("{wire}, round {round} of {}", args.runs));
            for path in &paths {
                for (metric, values) in metrics.iter().zip(&mut values) {
                    values.push(metric.measure(path, args)?);
                }
            }
        }
        // Shown immediately, because the rest takes minutes.
        for (metric, values) in metrics.iter().zip(&values) {
            report.print(against_vxlan(*metric, wire, values))?;
        }
    }
    Ok(())
}

/// A figure for VXLAN, and one with a ratio for each other path.
fn against_vxlan(metric: Metric, wire: Wire, values: &[f64]) -> Vec<Figure> {
    let of = |i: usize| values.chunks_exact(KINDS.len()).map(move |round| round[i]);
    let figure = |(i, kind): (usize, Kind)| {
        let figure =
            Figure::new(&format!("{}, {wire}, {kind}", metric.name()), metric.unit(), of(i).collect());
        if kind == Kind::Vxlan {
            return figure;
        }
        let figure = figure.ratios(of(i).zip(of(0)).map(|(value, base)| value / base).collect());
        match metric.bar(kind, wire) {
            Some(bar) => figure.bar(Bar::AtLeast(bar)),
            None => figure,
        }
    };
    KINDS.into_iter().enumerate().map(figure).collect()
}
