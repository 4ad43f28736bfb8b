//! Runs a trace of this host: finds the containers, asks the peers on the way, and sends the probes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use weave_api::trace::{TraceEnd, TraceProbe, TraceReport, TraceRequest, TraceVerdict};
use weave_host::{BridgePorts, ContainerInterface, FrameSocket, NetNs, Netlink};
use weave_trace::{
    Direction, Endpoint, Flow, Message, Outcome, Output, Probe, Recognised, Trace, TraceConfig, Verdict,
    conclude,
};
use weave_types::{MacAddr, PeerName};

use super::context::Context;
use super::describe::{Labels, hops, verdict};
use crate::trace_command::TracePlan;

/// When a probe is sent, and sent again, after the first one.
const ATTEMPTS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(600)];
/// How long an answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1200);
/// The router hears of an Ethernet address a moment after its first frame.
const LEARNING_INTERVAL: Duration = Duration::from_millis(50);
const LEARNING_ATTEMPTS: usize = 6;

const ETHERNET_HEADER: usize = 14;

/// The container that sends the probes.
struct Source {
    interface: ContainerInterface,
    address: Ipv4Addr,
    socket: FrameSocket,
}

/// Traces to the address of the request. `received` gets the answers of peers.
pub(super) fn trace(
    context: &Context,
    request: &TraceRequest,
    ns: Option<NetNs>,
    (id, icmp_id): (u64, u16),
    received: &Receiver<(PeerName, Message)>,
) -> Result<TraceReport, String> {
    let ended = || "the daemon is ending".to_owned();
    let own = context.own;
    let mut report = TraceReport {
        delivered: false,
        verdict: None,
        from: TraceEnd { name: request.from.clone(), ..TraceEnd::default() },
        to: TraceEnd {
            name: request.to_name.clone(),
            address: request.to.to_string(),
            ..TraceEnd::default()
        },
        hops: Vec::new(),
        back: Vec::new(),
        probes: Vec::new(),
    };
    let plan = context.control.trace_plan_blocking(request.to, None).ok_or_else(ended)?;
    report.from.peer.clone_from(&plan.own_label);
    let source = match source(context, request, ns, &mut report.from) {
        Ok(source) => source,
        Err(SourceError::Failed(text)) => return Err(text),
        // The probes cannot leave the container, so that there is nothing to send.
        Err(SourceError::Isolated(reason, text)) => {
            let verdict = TraceVerdict {
                reason: reason.to_owned(),
                at: plan.own_label,
                text,
                ..TraceVerdict::default()
            };
            report.verdict = Some(verdict);
            return Ok(report);
        }
    };
    let mut flow = Flow {
        source: Endpoint { mac: source.interface.mac, ip: source.address },
        destination: Endpoint { mac: MacAddr::ZERO, ip: request.to },
        id: icmp_id,
    };
    let arp = probe(&source, &flow, &[Probe::Arp])?;
    let plan = match arp.mac {
        Some(mac) => {
            flow.destination.mac = mac;
            report.to.mac = mac.to_string();
            learnt(context, request.to, mac).ok_or_else(ended)?
        }
        None => plan,
    };
    let Some((target, _)) = plan.target else {
        let text = format!(
            "no container has answered the ARP request for {}, and no peer is known to have this address",
            request.to
        );
        report.verdict = Some(TraceVerdict {
            reason: "unknown-address".to_owned(),
            at: plan.own_label,
            text,
            ..TraceVerdict::default()
        });
        return Ok(report);
    };
    let config = TraceConfig { id, origin: own, target, flow, expected: plan.expected };
    let begin = Instant::now();
    let now = || weave_types::Instant::from_origin(begin.elapsed());
    let mut trace = Trace::new(config, now());
    let mut outcomes = Vec::new();
    loop {
        match trace.poll_output() {
            Some(Output::Send(to, message)) => context.send(to, message),
            Some(Output::Ready) => {
                let kinds: &[Probe] =
                    if arp.mac.is_some() { &[Probe::Small, Probe::Full] } else { &[Probe::Arp] };
                outcomes = probe(&source, &flow, kinds)?.outcomes;
                trace.collect(now());
            }
            Some(Output::Done) => break,
            None => {
                let until = trace.poll_timeout().map_or(Duration::ZERO, |(at, _)| at.saturating_since(now()));
                match received.recv_timeout(until) {
                    Ok((from, message)) => trace.handle_message(from, message, now()),
                    Err(RecvTimeoutError::Timeout) => trace.handle_timeout(now()),
                    Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                }
            }
        }
    }
    let peers: Vec<PeerName> = Direction::ALL.iter().flat_map(|d| trace.path(*d)).copied().collect();
    let labels = Labels(context.control.peer_labels_blocking(peers).ok_or_else(ended)?);
    report.to.peer = labels.of(target);
    report.hops = hops(&trace, Direction::There, &labels);
    report.back = hops(&trace, Direction::Back, &labels);
    conclude_all(&trace, outcomes, &labels, &source, &mut report);
    Ok(report)
}

fn conclude_all(
    trace: &Trace,
    outcomes: Vec<(Probe, Outcome, Option<Duration>)>,
    labels: &Labels,
    source: &Source,
    report: &mut TraceReport,
) {
    let mut smaller_passed = false;
    for (probe, outcome, time) in outcomes {
        let concluded = conclude(trace, probe, &outcome, smaller_passed);
        smaller_passed |= concluded == Verdict::Answered;
        let verdict = match concluded {
            Verdict::Answered => None,
            Verdict::Lost { direction, place, reason } => {
                Some(verdict(trace, direction, place, &reason, labels))
            }
        };
        let frame = trace.config().flow.frame(probe, 0, mtu(source));
        let name = match probe {
            Probe::Arp => "ARP request",
            Probe::Small => "small packet",
            Probe::Full => "full packet",
        };
        report.verdict = report.verdict.take().or_else(|| verdict.clone());
        report.probes.push(TraceProbe {
            name: name.to_owned(),
            bytes: frame.len() - ETHERNET_HEADER,
            microseconds: time.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            verdict,
        });
    }
    report.delivered = report.verdict.is_none();
}

fn mtu(source: &Source) -> usize {
    usize::try_from(source.interface.mtu).unwrap_or(usize::MAX)
}

/// The plan once the router knows where an Ethernet address is.
fn learnt(context: &Context, to: Ipv4Addr, mac: MacAddr) -> Option<TracePlan> {
    for _ in 1..LEARNING_ATTEMPTS {
        let plan = context.control.trace_plan_blocking(to, Some(mac))?;
        if matches!(plan.target, Some((_, true))) {
            return Some(plan);
        }
        std::thread::sleep(LEARNING_INTERVAL);
    }
    context.control.trace_plan_blocking(to, Some(mac))
}

enum SourceError {
    /// It cannot be examined.
    Failed(String),
    /// It cannot send to the address: a word and a text.
    Isolated(&'static str, String),
}

impl From<weave_host::Error> for SourceError {
    fn from(error: weave_host::Error) -> SourceError {
        SourceError::Failed(error.to_string())
    }
}

/// Finds the interface by which the probes leave, and completes `end`.
fn source(
    context: &Context,
    request: &TraceRequest,
    ns: Option<NetNs>,
    end: &mut TraceEnd,
) -> Result<Source, SourceError> {
    let TraceRequest { from, to, .. } = request;
    let mut ports = BridgePorts::scan(&context.names.bridge)?;
    let interfaces = match &ns {
        Some(ns) => ports.in_namespace(ns)?,
        None => vec![ports.bridge()?],
    };
    let addresses: Vec<_> = interfaces.iter().flat_map(|interface| &interface.addresses).collect();
    let Some(first) = addresses.first() else {
        let text = format!("{from} has no address in the network; 'weave attach' gives it one");
        return Err(SourceError::Isolated("not-attached", text));
    };
    end.address = first.addr().to_string();
    if addresses.iter().any(|cidr| cidr.addr() == IpAddr::V4(*to)) {
        return Err(SourceError::Failed(format!("{to} is an address of {from} itself")));
    }
    let found = interfaces.iter().find_map(|interface| {
        let cidr = interface.addresses.iter().find(|cidr| cidr.contains((*to).into()))?;
        match cidr.addr() {
            IpAddr::V4(address) => Some((interface.clone(), address)),
            IpAddr::V6(_) => None,
        }
    });
    let Some((interface, address)) = found else {
        let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let text = format!(
            "{from} has {}; {to} is in another subnet, and subnets are isolated from each other",
            list.join(", ")
        );
        return Err(SourceError::Isolated("other-subnet", text));
    };
    end.address = address.to_string();
    end.mac = interface.mac.to_string();
    let mut netlink = match &ns {
        Some(ns) => ns.netlink()?,
        None => Netlink::open()?,
    };
    let name = &interface.name;
    if netlink.link(name)?.is_some_and(|link| !link.up) {
        let text =
            format!("the interface {name} of {from} is down; 'ip link set {name} up' in the container");
        return Err(SourceError::Isolated("interface-down", text));
    }
    let device = netlink.output_device(*to)?;
    if device != Some(interface.index) {
        let other = device.map(|index| netlink.link_by_index(index)).transpose()?.flatten();
        let by = other.map_or_else(|| "no route".to_owned(), |link| format!("a route by {}", link.name));
        let text = format!("{from} has {by} for {to} instead of one by {name}");
        return Err(SourceError::Isolated("container-route", text));
    }
    let open = || FrameSocket::open(interface.index, [address, *to]);
    let socket = match &ns {
        Some(ns) => ns.run(open)??,
        None => open()?,
    };
    Ok(Source { interface, address, socket })
}

/// What came of probes.
struct Probed {
    /// What became of each, and after which time it was answered.
    outcomes: Vec<(Probe, Outcome, Option<Duration>)>,
    /// The Ethernet address of the destination, if it has answered an ARP request.
    mac: Option<MacAddr>,
}

/// Sends probes, again while they are not answered, and waits for the answers.
fn probe(source: &Source, flow: &Flow, kinds: &[Probe]) -> Result<Probed, String> {
    let mut outcomes: Vec<_> = kinds.iter().map(|probe| (*probe, Outcome::Unanswered, None)).collect();
    let mut mac = None;
    let begin = Instant::now();
    let mut attempts = ATTEMPTS.iter().enumerate().peekable();
    while begin.elapsed() < ANSWER_TIMEOUT
        && outcomes.iter().any(|(_, outcome, _)| *outcome == Outcome::Unanswered)
    {
        if let Some((attempt, _)) = attempts.next_if(|(_, at)| **at <= begin.elapsed()) {
            for (probe, outcome, _) in &mut outcomes {
                if *outcome == Outcome::Unanswered {
                    let frame = flow.frame(*probe, attempt as u8, mtu(source));
                    if let Err(error) = source.socket.send(&frame) {
                        *outcome = Outcome::NotSent(error.to_string());
                    }
                }
            }
        }
        let next = attempts.peek().map_or(ANSWER_TIMEOUT, |(_, at)| **at);
        let wait = next.saturating_sub(begin.elapsed());
        let Some(seen) = source.socket.receive(wait).map_err(|e| e.to_string())? else { continue };
        if seen.outgoing {
            continue;
        }
        let (answered, outcome) = match flow.recognise(&seen.bytes) {
            Some(Recognised::Probe(probe, Direction::Back)) => (probe, Outcome::Answered),
            Some(Recognised::TooBig(mtu)) => (Probe::Full, Outcome::TooBig(mtu)),
            _ => continue,
        };
        mac = mac.or_else(|| flow.arp_answer(&seen.bytes));
        for (_, found, time) in outcomes.iter_mut().filter(|(probe, ..)| *probe == answered) {
            if *found == Outcome::Unanswered {
                *time = (outcome == Outcome::Answered).then(|| begin.elapsed());
                found.clone_from(&outcome);
            }
        }
    }
    Ok(Probed { outcomes, mac })
}
