//! Two peers on one machine: how fast is a path between two containers?
//!
//! ```text
//!  container a - bridge - uplink   underlay, MTU 1500   uplink - bridge - container b
//!  10.32.0.1                 10.9.0.1 --- 10.9.0.2                           10.32.0.2
//! ```
//! Each host and each container is a network namespace that this process makes and takes with it. For each path asked
//! for, in turn and several rounds: one TCP stream by iperf3, then single bytes there and back.
//!
//! `pair [vxlan|plain|encrypted]... [--rounds N] [--seconds N] [--offload on|off|both] [--hold] [--verbose]`
//!
//! Prints Gbit/s and round trips per second as medians, and their ratios to kernel VXLAN. `--hold` sets up the last path
//! and waits for a line on standard input, so that other tools can be tried: the namespaces are printed first, counters last.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../../src/namespace.rs"]
mod namespace;
mod paths;
#[path = "../../src/testbed.rs"]
mod testbed;

use paths::Path;
use testbed::Site;
use weave_datapath::DatapathStats;

/// What containers get by default: it leaves room for every overlay.
const MTU: u32 = 1376;

/// Hosts with underlay and containers, bridges without uplink.
fn sites(offload: bool) -> [Site; 2] {
    let sites = Site::pair(MTU).unwrap_or_else(|| std::process::exit(1));
    if !offload {
        let off = "ethtool -K wire tso off gso off gro off tx-udp-segmentation off tx off rx off";
        sites.iter().for_each(|site| drop(site.host.sh(off)));
    }
    sites
}

fn throughput([a, b]: &[Site; 2], seconds: u32) -> f64 {
    let mut server = b.container.run(|| {
        Command::new("iperf3")
            .args(["-s", "-1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("iperf3")
    });
    let deadline = Instant::now() + Duration::from_secs(5);
    let (speed, output) = loop {
        let output = a.container.run(|| {
            let time = seconds.to_string();
            Command::new("iperf3").args(["-J", "-c", "10.32.0.2", "-t", &time]).output().expect("iperf3")
        });
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let speed = report["end"]["sum_received"]["bits_per_second"].as_f64();
        // The server may not listen yet.
        if speed.is_some() || Instant::now() > deadline {
            break (speed, output);
        }
    };
    let _ = server.kill();
    let _ = server.wait();
    speed.unwrap_or_else(|| panic!("iperf3: {}", String::from_utf8_lossy(&output.stdout))) / 1e9
}

/// One byte there and one back over TCP, as often as possible.
fn round_trips([a, b]: &[Site; 2], seconds: u32) -> f64 {
    let listener = b.container.run(|| TcpListener::bind("10.32.0.2:7000")).expect("a free port");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("the other end connects");
            stream.set_nodelay(true).expect("a TCP option");
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
        let mut stream =
            a.container.run(|| TcpStream::connect("10.32.0.2:7000")).expect("the listener accepts");
        stream.set_nodelay(true).expect("a TCP option");
        let (begin, mut count, mut byte) = (Instant::now(), 0u32, [7]);
        while begin.elapsed() < Duration::from_secs(seconds.into()) {
            stream
                .write_all(&byte)
                .and_then(|()| stream.read_exact(&mut byte))
                .expect("the other end answers");
            count += 1;
        }
        f64::from(count) / begin.elapsed().as_secs_f64()
    })
}

/// What each data thread took of a processor, in all and for each gigabit: less noisy than speeds.
fn print_processor_time(gigabits: f64) {
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, times) = (read("comm"), read("schedstat"));
        let nanoseconds: f64 = times.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or_default();
        if name.starts_with("weave-") {
            let seconds = nanoseconds / 1e9;
            println!("    {:>12}: {seconds:.2} s, {:.1} ms/Gbit", name.trim(), seconds * 1e3 / gigabits);
        }
    }
}

fn print_all(stats: Vec<DatapathStats>) {
    for stats in stats {
        println!("    {stats:?}");
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut paths = Vec::new();
    let (mut rounds, mut seconds, mut offloads, mut hold) = (3, 3, vec![true, false], false);
    let mut verbose = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok()).expect("a number");
        match arg.as_str() {
            "--rounds" => rounds = number(),
            "--seconds" => seconds = number(),
            "--hold" => hold = true,
            "--verbose" => verbose = true,
            "--offload" => match args.next().as_deref() {
                Some("on") => offloads = vec![true],
                Some("off") => offloads = vec![false],
                _ => {}
            },
            name => paths.push(Path::parse(name).expect("vxlan, plain or encrypted")),
        }
    }
    if paths.is_empty() {
        paths = Path::ALL.to_vec();
    }
    for offload in offloads {
        let mut results = vec![(Vec::new(), Vec::new()); paths.len()];
        for _ in 0..rounds {
            for (path, (speeds, rates)) in paths.iter().zip(&mut results) {
                let sites = sites(offload);
                let running = path.start(&sites);
                if hold {
                    println!(
                        "{path}: host {}, container {}",
                        sites[0].host.path(),
                        sites[0].container.path()
                    );
                    println!(
                        "{path}: host {}, container {}",
                        sites[1].host.path(),
                        sites[1].container.path()
                    );
                    let _ = std::io::stdin().read_line(&mut String::new());
                    print_all(running.stop());
                    return;
                } else {
                    speeds.push(throughput(&sites, seconds));
                    rates.push(round_trips(&sites, 1));
                    println!(
                        "  {path}: {:.2} Gbit/s, {:.0} round trips/s",
                        speeds[speeds.len() - 1],
                        rates[rates.len() - 1]
                    );
                }
                if verbose {
                    print_processor_time(speeds[speeds.len() - 1] * f64::from(seconds));
                }
                let stats = running.stop();
                if verbose {
                    print_all(stats);
                }
            }
        }
        let medians: Vec<(f64, f64)> =
            results.iter_mut().map(|(speeds, rates)| (median(speeds), median(rates))).collect();
        println!("wire offloads {}:", if offload { "on" } else { "off" });
        for (path, (speed, rate)) in paths.iter().zip(&medians) {
            let base = paths.iter().position(|p| *p == Path::Vxlan).map_or(medians[0], |i| medians[i]);
            println!(
                "{path:>10}: {speed:6.2} Gbit/s ({:.2}), {rate:6.0} round trips/s (time {:.2})",
                speed / base.0,
                base.1 / rate
            );
        }
    }
}
