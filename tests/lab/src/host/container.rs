//! A container and its network traffic.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::capture::Capture;
use super::{Host, probe};
use crate::run::{Background, COMMAND_TIMEOUT, Outcome, run};
use crate::wait::within;

/// A process in a host with a network namespace of its own. It ends with the host, or by [`Container::end`].
#[derive(Clone, Debug)]
pub struct Container {
    host: Host,
    name: String,
    pid: i32,
}

/// The result of a series of pings.
#[derive(Clone, Debug, Deserialize)]
pub struct Pings {
    pub sent: u64,
    /// Requests with at least one reply.
    pub received: u64,
    /// Further replies to the same request.
    pub duplicates: u64,
    /// TTL of the last reply.
    pub ttl: Option<u8>,
    /// Longest time without a reply.
    pub longest_gap_ms: f64,
    /// Median round-trip time.
    pub median_ms: f64,
}

/// Pings in the background.
#[derive(Debug)]
pub struct Pinger(Background);

impl Pinger {
    #[track_caller]
    pub fn finish(self) -> Pings {
        let text = self.0.finish().unwrap_or_else(|e| panic!("{e:#}"));
        parse(&text)
    }
}

/// A TCP connection in the background that carries numbered messages, each of which is echoed.
#[derive(Debug)]
pub struct Chat {
    client: Background,
    _server: Background,
}

/// The result of a [`Chat`].
#[derive(Clone, Debug, Deserialize)]
pub struct ChatResult {
    /// Messages that came back.
    pub messages: u64,
    /// Longest time between two echoes.
    pub longest_gap_ms: f64,
    /// Why the connection failed, if it did.
    pub broken: Option<String>,
}

impl Chat {
    #[track_caller]
    pub fn finish(self) -> ChatResult {
        let text = self.client.finish().unwrap_or_else(|e| panic!("{e:#}"));
        parse(&text)
    }
}

#[track_caller]
fn parse<T: for<'de> Deserialize<'de>>(text: &str) -> T {
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("the probe printed no JSON ({e}): {text}"))
}

/// A port that no other server of this process uses.
fn next_port() -> String {
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    PORT.fetch_add(1, Ordering::Relaxed).to_string()
}

impl Container {
    pub(crate) fn start(host: &Host, name: &str) -> Result<Container> {
        let outcome = host.command(&[&host.lab_program(), "container", name]);
        if !outcome.success() {
            bail!("{}", outcome.stderr.trim().trim_start_matches("lab: "));
        }
        let pid = outcome.stdout.trim().parse().with_context(|| format!("container {name}: {outcome}"))?;
        Ok(Container { host: host.clone(), name: name.to_owned(), pid })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process id in the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `netns:<name>`, a reference for the `weave` command.
    pub fn netns(&self) -> String {
        format!("netns:{}", self.name)
    }

    /// `pid:<pid>`, a reference for the `weave` command.
    pub fn by_pid(&self) -> String {
        format!("pid:{}", self.pid)
    }

    /// Runs `weave attach <cidrs> netns:<name>` and returns its output.
    #[track_caller]
    pub fn attach(&self, cidrs: &[&str]) -> String {
        let netns = self.netns();
        let mut args = vec!["attach"];
        args.extend(cidrs);
        args.push(&netns);
        self.host.weave_ok(&args).trim_end().to_owned()
    }

    /// Runs `weave detach <cidrs> netns:<name>` and returns its output.
    #[track_caller]
    pub fn detach(&self, cidrs: &[&str]) -> String {
        let netns = self.netns();
        let mut args = vec!["detach"];
        args.extend(cidrs);
        args.push(&netns);
        self.host.weave_ok(&args).trim_end().to_owned()
    }

    /// Joins the container to a bridge by hand, as 2.8.1 does: for tests of the lab itself and for hosts without a daemon.
    #[track_caller]
    pub fn plug(&self, bridge: &str, cidr: &str) {
        let (pid, name) = (self.pid, &self.name);
        self.host.sh(&format!(
            "mtu=$(ip -o link show dev {bridge} | sed 's/.* mtu \\([0-9]*\\).*/\\1/'); \
             ip link add v{pid} mtu $mtu type veth peer name ethwe mtu $mtu netns {pid}; \
             ip link set v{pid} master {bridge} up; \
             in=\"nsenter --net=/run/netns/{name}\"; \
             $in ethtool -K ethwe tx off >/dev/null; \
             $in ip addr add {cidr} brd + dev ethwe; \
             $in ip link set ethwe up; \
             $in ip route add 224.0.0.0/4 dev ethwe"
        ));
    }

    /// Runs a command in its network.
    #[track_caller]
    pub fn command(&self, argv: &[&str]) -> Outcome {
        run(self.enter(argv), None, COMMAND_TIMEOUT).unwrap_or_else(|e| panic!("{}: {e:#}", self.label()))
    }

    /// Runs a command in its network that has to succeed; gives its standard output.
    #[track_caller]
    pub fn command_ok(&self, argv: &[&str]) -> String {
        self.command(argv).expect_ok()
    }

    /// Runs one of the lab's probes in its network.
    #[track_caller]
    pub fn probe(&self, args: &[&str]) -> Value {
        probe(self.host.enter_probe(Some(&self.namespace_file()), args))
    }

    /// Starts a probe in its network in the background.
    #[track_caller]
    pub fn probe_background(&self, args: &[&str]) -> Background {
        Background::start(self.host.enter_probe(Some(&self.namespace_file()), args), true)
            .unwrap_or_else(|e| panic!("{}: {e:#}", self.label()))
    }

    /// A capture on its interface `ethwe`.
    #[track_caller]
    pub fn capture(&self) -> Capture {
        Capture::start(&self.host, Some(&self.name), "ethwe")
    }

    /// Sends `count` pings, ten per second.
    #[track_caller]
    pub fn ping(&self, to: &str, count: u32) -> Pings {
        let value = self.probe(&["ping", to, "--count", &count.to_string(), "--interval-ms", "100"]);
        serde_json::from_value(value).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits until a ping is answered.
    #[track_caller]
    pub fn reaches(&self, to: &str, deadline: Duration) {
        let what = format!("{} to reach {to}", self.label());
        let answer = within(&what, deadline, || {
            let value = self.probe(&["ping", to, "--count", "1", "--wait-ms", "300"]);
            if value["received"] == 1 { Ok(()) } else { Err("no answer") }
        });
        if let Err(text) = answer {
            panic!("{text}");
        }
    }

    /// Sends ten pings within a second; none of them may be answered.
    #[track_caller]
    pub fn never_reaches(&self, to: &str) {
        let pings = self.ping(to, 10);
        assert_eq!(pings.received, 0, "{} must not reach {to}: {pings:?}", self.label());
    }

    /// Pings `interval_ms` apart until [`Pinger::finish`].
    #[track_caller]
    pub fn pinging(&self, to: &str, interval_ms: u32) -> Pinger {
        Pinger(self.probe_background(&[
            "ping",
            to,
            "--count",
            "0",
            "--wait-ms",
            "1000",
            "--interval-ms",
            &interval_ms.to_string(),
        ]))
    }

    /// Sends `bytes` to a server in `to` and back; both sides check every byte.
    #[track_caller]
    pub fn tcp(&self, to: &Container, ip: &str, bytes: u64) {
        let port = next_port();
        let _server = to.probe_background(&["tcp-serve", "--port", &port]);
        let result = self.probe(&["tcp-send", ip, "--port", &port, "--bytes", &bytes.to_string()]);
        assert_eq!(result["ok"], true, "TCP {} -> {}: {result}", self.label(), to.label());
    }

    /// A TCP connection to `to` that carries a message every `interval_ms` until [`Chat::finish`].
    #[track_caller]
    pub fn chat(&self, to: &Container, ip: &str, interval_ms: u32) -> Chat {
        let (port, interval) = (next_port(), interval_ms.to_string());
        let server = to.probe_background(&["tcp-serve", "--port", &port]);
        let client = self.probe_background(&["tcp-chat", ip, "--port", &port, "--interval-ms", &interval]);
        Chat { client, _server: server }
    }

    /// Sends UDP datagrams of these payload sizes to an echo server in `to`; each has to come back unchanged.
    #[track_caller]
    pub fn udp(&self, to: &Container, ip: &str, sizes: &[usize]) {
        let port = next_port();
        let _server = to.probe_background(&["udp-serve", "--port", &port]);
        let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
        let result = self.probe(&["udp-send", ip, "--port", &port, "--sizes", &sizes.join(",")]);
        assert_eq!(result["ok"], true, "UDP {} -> {}: {result}", self.label(), to.label());
    }

    /// Sends a datagram to a multicast or broadcast address; returns the addresses that answer, sorted.
    #[track_caller]
    pub fn cast(&self, to: &str, expect: usize) -> Vec<String> {
        let value = self.probe(&["udp-cast", to, "--port", "7004", "--expect", &expect.to_string()]);
        serde_json::from_value(value["responders"].clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
    }

    /// Answers what [`Container::cast`] sends, as a member of `group` if one is given.
    #[track_caller]
    pub fn listen_cast(&self, group: Option<&str>) -> Background {
        let mut args = vec!["udp-serve", "--port", "7004"];
        args.extend(group.iter().flat_map(|g| ["--group", g]));
        self.probe_background(&args)
    }

    /// Sends raw frames of the private EtherType 0x88b5 with `size` bytes of payload; returns the MACs of the containers that
    /// echo them unchanged (see [`Container::listen_raw`]). `tags`: 802.1Q tags, outermost first.
    #[track_caller]
    pub fn raw(&self, to_mac: &str, size: usize, tags: &[u16], expect: usize) -> Vec<String> {
        let (size, expect) = (size.to_string(), expect.to_string());
        let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
        let tags = tags.join(",");
        let mut args = vec!["raw-send", "ethwe", to_mac, "--size", &size, "--expect", &expect];
        if !tags.is_empty() {
            args.extend(["--tags", &tags]);
        }
        let value = self.probe(&args);
        serde_json::from_value(value["responders"].clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
    }

    /// Echoes raw frames (see [`Container::raw`]).
    #[track_caller]
    pub fn listen_raw(&self, tagged: bool) -> Background {
        let mut args = vec!["raw-echo", "ethwe"];
        args.extend(tagged.then_some("--tagged"));
        self.probe_background(&args)
    }

    /// Sends an ARP request; returns the MACs that answer within a second.
    #[track_caller]
    pub fn arp(&self, ip: &str) -> Vec<String> {
        let value = self.probe(&["arp", "ethwe", ip]);
        serde_json::from_value(value["macs"].clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
    }

    #[track_caller]
    pub fn mac(&self) -> String {
        self.ethwe()["address"].as_str().unwrap_or_else(|| panic!("{}: no MAC", self.label())).to_owned()
    }

    #[track_caller]
    pub fn mtu(&self) -> u64 {
        self.ethwe()["mtu"].as_u64().unwrap_or_else(|| panic!("{}: no MTU", self.label()))
    }

    /// Waits for the IPv6 link-local address of `ethwe` (duplicate detection takes a second or two).
    #[track_caller]
    pub fn link_local(&self) -> String {
        let what = format!("the link-local address of {}", self.label());
        let found = within(&what, Duration::from_secs(10), || -> Result<String> {
            let ethwe = self.ethwe();
            let addresses = ethwe["addr_info"].as_array().context("no addresses")?;
            let usable = addresses
                .iter()
                .find(|a| a["family"] == "inet6" && a["scope"] == "link" && a.get("tentative").is_none());
            let text = usable.and_then(|a| a["local"].as_str()).context("none that is usable")?;
            text.parse::<IpAddr>()?;
            Ok(text.to_owned())
        });
        found.unwrap_or_else(|text| panic!("{text}"))
    }

    /// `ip -j addr show dev ethwe`.
    #[track_caller]
    fn ethwe(&self) -> Value {
        let text = self.command_ok(&["ip", "-j", "addr", "show", "dev", "ethwe"]);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        value[0].clone()
    }

    pub fn has_interface(&self) -> bool {
        self.command(&["ip", "link", "show", "dev", "ethwe"]).success()
    }

    /// Ends the process and removes the namespace.
    #[track_caller]
    pub fn end(self) {
        let (pid, name) = (self.pid, &self.name);
        self.host.sh(&format!("kill -9 {pid}; umount -l /run/netns/{name}; rm /run/netns/{name}"));
    }

    fn enter(&self, argv: &[&str]) -> std::process::Command {
        self.host.enter_net(Some(&self.namespace_file()), argv)
    }

    fn namespace_file(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    fn label(&self) -> String {
        format!("{}@{}", self.name, self.host.name())
    }
}
