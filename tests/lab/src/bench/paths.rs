//! Hosts with one container each, joined by kernel VXLAN or by weave.

use std::fmt;
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::vpn::Vpn;
use super::{START_TIMEOUT, address, cleanup, peer, succeed};
use crate::run::run;
use crate::{Background, Container, Host, Lab, within};

/// The default of weave for a wire of 1,500 bytes is 1,376; containers on VXLAN get the same.
const OVERHEAD: u32 = 124;
const RR_PORT: &str = "7005";

/// How the hosts are joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A bridge and a static VXLAN device of the kernel.
    Vxlan,
    /// Weave, by the kernel; frames of containers do not bypass the bridge.
    Fastdp,
    /// Weave, by the kernel, with the shortcut.
    Shortcut,
    /// Weave, by sleeve.
    Plain,
    /// Weave with a password, by sleeve.
    Encrypted,
    /// Weave with a password.
    Warp,
    /// A VPN program in user space, without weave.
    Vpn(Vpn),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Vxlan => "kernel VXLAN",
            Kind::Fastdp => "fastdp",
            Kind::Shortcut => "fastdp, bridge bypassed",
            Kind::Plain => "sleeve plain",
            Kind::Encrypted => "sleeve encrypted",
            Kind::Warp => "warp",
            Kind::Vpn(vpn) => &vpn.name,
        })
    }
}

/// Segmentation by the devices between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// Super-frames pass from host to host, as between virtual machines.
    Offloads,
    /// Packets are on the wire, and the receiver coalesces them, as real cards and their drivers do.
    ReceiveOffload,
    /// Each packet is handled by itself.
    NoOffloads,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Wire::Offloads => "wire offloads on",
            Wire::ReceiveOffload => "GRO at the receiver",
            Wire::NoOffloads => "wire offloads off",
        })
    }
}

/// How many hosts, and what is between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) hosts: usize,
    /// Each host is connected only to the one before it and the one after it, so that those between the ends relay.
    pub(super) chain: bool,
    /// Of the wire, in bytes.
    pub(super) mtu: u32,
}

impl Shape {
    pub(super) fn hosts(hosts: usize) -> Shape {
        Shape { hosts, chain: false, mtu: 1500 }
    }

    fn inner_mtu(self) -> u32 {
        self.mtu - OVERHEAD
    }
}

/// A lab whose first container reaches the containers of all other hosts.
pub(super) struct Path {
    kind: Kind,
    containers: Vec<Container>,
    // Dropped before the lab, because they run in its hosts.
    _servers: Vec<Background>,
    lab: Lab,
    /// The container that traffic is measured to.
    to: usize,
}

impl Path {
    pub(super) fn start(kind: Kind, shape: Shape, weave: &FilePath) -> Result<Path> {
        let lab = cleanup::lab(shape.hosts)?;
        let mtu = shape.mtu.to_string();
        for host in lab.hosts() {
            host.command_ok(&["ip", "link", "set", "eth0", "mtu", &mtu]);
            lab.wire().command_ok(&["ip", "link", "set", host.name(), "mtu", &mtu]);
        }
        let containers: Vec<Container> =
            lab.hosts().iter().map(|host| host.try_container("c")).collect::<Result<_>>()?;
        let mut servers = Vec::new();
        let mesh = |overlay: &str, options: &[&str]| mesh(&lab, &containers, shape, overlay, options, weave);
        match &kind {
            Kind::Vxlan => vxlan(&lab, &containers, shape.inner_mtu()),
            Kind::Fastdp => {
                // A table for bridges keeps frames of containers from bypassing the bridge.
                lab.hosts().iter().for_each(|host| drop(host.sh("nft add table bridge filter")));
                mesh("fastdp", &[])?;
            }
            Kind::Shortcut => mesh("fastdp", &[])?,
            Kind::Plain => mesh("sleeve", &[])?,
            Kind::Encrypted => mesh("sleeve", &["--password", "bench"])?,
            Kind::Warp => mesh("warp", &["--password", "bench"])?,
            Kind::Vpn(vpn) => servers = vpn.join(&lab, &containers)?,
        }
        for (i, container) in containers.iter().enumerate().skip(1) {
            containers[0].reaches(&address(i), START_TIMEOUT);
            let server = ["sh", "-c", "exec iperf3 -s >/dev/null"];
            servers.push(Background::start(inside(container, &server), false)?);
            servers.push(container.probe_background(&["rr-serve", "--port", RR_PORT]));
            let listening = within("iperf3 to listen", START_TIMEOUT, || {
                container.command(&["ss", "-Hltn", "sport = :5201"]).stdout.contains(":5201")
            });
            listening.map_err(anyhow::Error::msg)?;
        }
        let to = if shape.chain { shape.hosts - 1 } else { 1 };
        Ok(Path { kind, containers, _servers: servers, lab, to })
    }

    /// The host of the sending container.
    pub(super) fn host(&self) -> &Host {
        &self.lab.hosts()[0]
    }

    /// Segmentation offloads of the wire, both ends of each link. Checksums stay offloaded, as real cards do them.
    pub(super) fn set_wire(&self, wire: Wire) {
        let set = |host: &Host, device: &str, send: bool, receive: bool| {
            let value = |on: bool| if on { "on" } else { "off" };
            let (send, receive) = (value(send), value(receive));
            host.command_ok(&[
                "ethtool",
                "-K",
                device,
                "tso",
                send,
                "gso",
                send,
                "tx-udp-segmentation",
                send,
                "gro",
                receive,
            ]);
        };
        let all = wire == Wire::Offloads;
        for host in self.lab.hosts() {
            set(host, "eth0", all, wire != Wire::NoOffloads);
            set(self.lab.wire(), host.name(), all, all);
        }
    }

    /// Loses this share of the packets between the hosts, in both directions.
    pub(super) fn lose(&self, share: f64) {
        self.lab.hosts().iter().for_each(|host| self.lab.loss(host.name(), share));
    }

    /// TCP streams from the first container to the measured one.
    pub(super) fn streams(&self, count: u32, seconds: u32, congestion: Option<&str>) -> Result<Streams> {
        let count = count.to_string();
        let mut args = vec!["-P", &count];
        args.extend(congestion.iter().flat_map(|name| ["-C", name]));
        let (busy, dropped) = (busy_seconds()?, self.dropped());
        let report = self.iperf(self.to, &args, seconds)?;
        let (busy, dropped) = (busy_seconds()? - busy, self.dropped() - dropped);
        let received = &report["end"]["sum_received"];
        let again = report["end"]["sum_sent"]["retransmits"].as_f64();
        Ok(Streams {
            gigabits: self.figure(&received["bits_per_second"])? / 1e9,
            processor: busy / (self.figure(&received["bytes"])? / 1e9),
            retransmits: again.filter(|_| dropped > 0.0).map(|again| again / dropped),
        })
    }

    /// Packets that [`Path::lose`] has dropped.
    fn dropped(&self) -> f64 {
        let rules = self.lab.wire().command_ok(&["iptables", "-w", "-nvxL", "LAB"]);
        let counts = rules.lines().filter(|line| line.contains(" DROP "));
        counts.filter_map(|line| line.split_whitespace().next()?.parse::<f64>().ok()).sum()
    }

    /// UDP datagrams from the first container to the other one: received in a second.
    pub(super) fn datagrams(&self, size: usize, seconds: u32) -> Result<f64> {
        let report = self.iperf(self.to, &["-u", "-b", "0", "-l", &size.to_string()], seconds)?;
        let sum = &report["end"]["sum"];
        let count = |name: &str| sum[name].as_f64().unwrap_or_default();
        self.figure(&Value::from((count("packets") - count("lost_packets")) / f64::from(seconds)))
    }

    /// Traffic from the first container to the one of host `n`, for a second.
    pub(super) fn traffic_to(&self, n: usize) -> Result<()> {
        self.iperf(n, &[], 1).map(drop)
    }

    fn iperf(&self, to: usize, args: &[&str], seconds: u32) -> Result<Value> {
        let (to, time) = (address(to), seconds.to_string());
        let mut argv = vec!["iperf3", "-J", "-c", &to, "-t", &time];
        argv.extend(args);
        let outcome =
            run(inside(&self.containers[0], &argv), None, Duration::from_secs(u64::from(seconds) + 30))?;
        let report = serde_json::from_str(&outcome.stdout);
        report.with_context(|| format!("{}: iperf3 gave no result\n{outcome}", self.kind))
    }

    fn figure(&self, value: &Value) -> Result<f64> {
        let value = value.as_f64().filter(|value| *value > 0.0);
        if value.is_none() {
            cleanup::unless_interrupted();
        }
        value.with_context(|| format!("{}: iperf3 gave no result", self.kind))
    }

    /// One byte there and one back: transactions per second.
    pub(super) fn round_trips(&self, seconds: f64) -> Result<f64> {
        let (to, seconds) = (address(self.to), seconds.to_string());
        let result = self.containers[0].probe(&["rr", &to, "--port", RR_PORT, "--seconds", &seconds]);
        let rate = result["per_second"].as_f64().filter(|rate| *rate > 0.0);
        rate.with_context(|| format!("{}: no round trips: {result}", self.kind))
    }
}

/// What TCP streams brought and cost.
pub(super) struct Streams {
    /// A second, as received.
    pub(super) gigabits: f64,
    /// Seconds of processors of the whole machine for a gigabyte.
    pub(super) processor: f64,
    /// Segments sent again for each packet that was dropped on the wire; `None` if none was.
    pub(super) retransmits: Option<f64>,
}

/// Time that the processors of this machine have been busy.
fn busy_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal (proc(5))
    ensure!(ticks.len() >= 8, "/proc/stat: {line}");
    Ok(ticks.iter().take(8).enumerate().filter(|(i, _)| ![3, 4, 7].contains(i)).map(|(_, t)| t).sum::<f64>()
        / 100.0)
}

fn inside(container: &Container, argv: &[&str]) -> std::process::Command {
    container.host().enter_net(Some(&format!("/run/netns/{}", container.name())), argv)
}

/// A bridge with a VXLAN device towards the other host; containers keep their offloads, as with weave.
fn vxlan(lab: &Lab, containers: &[Container], mtu: u32) {
    for (i, (host, container)) in lab.hosts().iter().zip(containers).enumerate() {
        let (other, pid) = (lab.hosts()[1 - i].ip(), container.pid());
        host.sh(&format!(
            "ip link add weave type bridge; ip link set weave up
             ip link add vxlan mtu {mtu} type vxlan id 7 dev eth0 remote {other} dstport 6784
             ip link set vxlan master weave up
             ip link add v{pid} mtu {mtu} type veth peer name ethwe mtu {mtu} netns {pid}
             ip link set v{pid} master weave up"
        ));
        let cidr = format!("{}/24", address(i));
        container.command_ok(&["ip", "addr", "add", &cidr, "dev", "ethwe"]);
        container.command_ok(&["ip", "link", "set", "ethwe", "up"]);
    }
}

/// Starts weave on all hosts; connections use `overlay`.
fn mesh(
    lab: &Lab,
    containers: &[Container],
    shape: Shape,
    overlay: &str,
    options: &[&str],
    weave: &FilePath,
) -> Result<()> {
    // fastdp needs another overlay beside it.
    let beside = if overlay == "fastdp" { ",sleeve" } else { "" };
    let overlays = format!("--overlays={overlay}{beside}");
    let inner_mtu = shape.inner_mtu();
    for (i, (host, container)) in lab.hosts().iter().zip(containers).enumerate() {
        let mtu = format!("--mtu={inner_mtu}");
        let mut args = vec!["launch", &overlays, &mtu];
        args.extend(options);
        args.extend(shape.chain.then_some("--no-discovery"));
        let first = format!("h{}", if shape.chain { i } else { 1 });
        args.extend((i > 0).then_some(&*first));
        succeed(peer::weave(host, weave, &args))?;
        let cidr = format!("{}/24", address(i));
        succeed(peer::weave(host, weave, &["attach", &cidr, &container.netns()]))?;
        let mtu = container.mtu();
        ensure!(
            mtu == u64::from(inner_mtu),
            "containers have an MTU of {mtu}, the reference has {inner_mtu}"
        );
    }
    let last = lab.hosts().len() - 1;
    for (i, host) in lab.hosts().iter().enumerate() {
        let all = if !shape.chain { last } else { usize::from(i > 0) + usize::from(i < last) };
        let what = format!("{} to have {all} connections", host.name());
        let connected = within(&what, START_TIMEOUT, || {
            let text = peer::weave(host, weave, &["status", "connections"]).stdout;
            let up =
                text.lines().filter(|line| line.contains(" established ") && line.contains(overlay)).count();
            if up == all { Ok(()) } else { Err(text) }
        });
        connected.map_err(anyhow::Error::msg)?;
    }
    Ok(())
}
