//! `weave trace`: body of `POST /trace`, the answer to it, and how it is shown.
//!
//! The request is accepted only on the unix socket. A file descriptor of the network namespace of the container that sends the probes
//! accompanies it; without one the host itself sends them from its address on the bridge.

use std::fmt::Write;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Body of `POST /trace`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TraceRequest {
    /// The container that sends the probes, as the user calls it.
    pub from: String,
    /// The address to which they are sent.
    pub to: Ipv4Addr,
    /// What the user calls it.
    pub to_name: String,
}

/// Answer to `POST /trace`. Keys are only added, and every key is always there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TraceReport {
    /// Whether all probes were answered.
    pub delivered: bool,
    /// Why the first probe that was not answered was lost.
    pub verdict: Option<TraceVerdict>,
    /// Where the probes come from.
    pub from: TraceEnd,
    /// Where they go.
    pub to: TraceEnd,
    /// The peers on the way, in order. Empty if the probes cannot leave the container.
    pub hops: Vec<TraceHop>,
    /// The peers on the way back.
    pub back: Vec<TraceHop>,
    /// The frames that were sent.
    pub probes: Vec<TraceProbe>,
}

/// One end of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TraceEnd {
    /// As the user calls it.
    pub name: String,
    /// IP address of the container, or of the host.
    pub address: String,
    /// Ethernet address; empty if it is not known.
    pub mac: String,
    /// The peer that has it, with its nickname; empty if it is not known.
    pub peer: String,
}

/// A peer on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TraceHop {
    /// Its name, with its nickname.
    pub peer: String,
    /// Why it has told nothing; `null` if it has.
    pub silent: Option<String>,
    /// The connection by which it sends frames on; `null` at the end, and if it has none.
    pub next: Option<TraceLink>,
}

/// A connection on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TraceLink {
    /// The peer at the other end, with its nickname.
    pub peer: String,
    /// `fastdp`, `sleeve`, `warp`, or `none` if it does not carry frames.
    pub overlay: String,
    /// The longest packet of a container that passes whole; 0 if that is not known.
    pub mtu: u16,
    /// Whether frames are encrypted.
    pub encrypted: bool,
    /// Why it is not as good as it could be; may be empty.
    pub problem: String,
}

/// A frame that was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TraceProbe {
    /// `ARP request`, `small packet` or `full packet`.
    pub name: String,
    /// Length of the packet in bytes, without the Ethernet header.
    pub bytes: usize,
    /// Time until the answer in microseconds; `null` without an answer.
    pub microseconds: Option<u64>,
    /// Why it was not answered.
    pub verdict: Option<TraceVerdict>,
}

/// Where and why a frame was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TraceVerdict {
    /// A word for programs, as `host-filter`.
    pub reason: String,
    /// Whether the answer was lost rather than the probe.
    pub on_the_way_back: bool,
    /// The peer on whose host it was lost, or that has sent it last, with its nickname.
    pub at: String,
    /// The peer at which it should have arrived next; `null` if it was lost on the host of `at`.
    pub before: Option<String>,
    /// In words.
    pub text: String,
}

impl TraceReport {
    /// The text for people.
    pub fn text(&self) -> String {
        let mut text = format!("from {} to {}\n", end(&self.from), end(&self.to));
        for (number, hop) in self.hops.iter().enumerate() {
            let _ = writeln!(text, "{:>3}  {}", number + 1, hop.text());
        }
        let peers = |hops: &[TraceHop]| hops.iter().map(|hop| hop.peer.clone()).collect::<Vec<_>>();
        let mut there = peers(&self.hops);
        there.reverse();
        let back = peers(&self.back);
        if !back.is_empty() && back != there {
            let _ = writeln!(text, "back by {}", back.join(", "));
        }
        for probe in &self.probes {
            let _ = write!(text, "{} of {} bytes: ", probe.name, probe.bytes);
            let _ = match (&probe.verdict, probe.microseconds) {
                (Some(verdict), _) => writeln!(text, "{}", verdict.text),
                (None, Some(time)) => {
                    writeln!(text, "answered after {}.{:03} ms", time / 1000, time % 1000)
                }
                (None, None) => writeln!(text, "answered"),
            };
        }
        if let Some(verdict) = self.verdict.as_ref().filter(|_| self.probes.is_empty()) {
            let _ = writeln!(text, "{}", verdict.text);
        }
        text
    }
}

fn end(end: &TraceEnd) -> String {
    let mut text = end.address.clone();
    if end.name != end.address {
        let _ = write!(text, " ({})", end.name);
    }
    if !end.peer.is_empty() {
        let _ = write!(text, " at {}", end.peer);
    }
    text
}

impl TraceHop {
    fn text(&self) -> String {
        let mut text = self.peer.clone();
        if let Some(silent) = &self.silent {
            let _ = write!(text, ": {silent}");
        }
        if let Some(link) = &self.next {
            let _ = write!(text, ", {} to {}", link.overlay, link.peer);
            if link.mtu > 0 {
                let _ = write!(text, ", MTU {}", link.mtu);
            }
            if link.encrypted {
                text.push_str(", encrypted");
            }
            if !link.problem.is_empty() {
                let _ = write!(text, " ({})", link.problem);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_line_for_each_hop_and_probe() {
        let end = |name: &str, address: &str, peer: &str| TraceEnd {
            name: name.to_owned(),
            address: address.to_owned(),
            mac: String::new(),
            peer: peer.to_owned(),
        };
        let hop =
            |peer: &str, next: Option<TraceLink>| TraceHop { peer: peer.to_owned(), silent: None, next };
        let link = TraceLink {
            peer: "b(h2)".to_owned(),
            overlay: "sleeve".to_owned(),
            mtu: 1400,
            encrypted: true,
            problem: "fastdp: no heartbeats".to_owned(),
        };
        let verdict = TraceVerdict { text: "lost on b(h2): reason".to_owned(), ..TraceVerdict::default() };
        let silent = TraceHop { silent: Some("cannot be asked".to_owned()), ..hop("b(h2)", None) };
        let report = TraceReport {
            delivered: false,
            verdict: Some(verdict.clone()),
            from: end("c1", "10.32.0.1", "a(h1)"),
            to: end("10.32.0.2", "10.32.0.2", "b(h2)"),
            hops: vec![hop("a(h1)", Some(link)), silent],
            back: vec![hop("b(h2)", None), hop("a(h1)", None)],
            probes: vec![
                TraceProbe {
                    name: "small packet".to_owned(),
                    bytes: 84,
                    microseconds: Some(1234),
                    verdict: None,
                },
                TraceProbe {
                    name: "full packet".to_owned(),
                    bytes: 1376,
                    microseconds: None,
                    verdict: Some(verdict),
                },
            ],
        };
        let text = "from 10.32.0.1 (c1) at a(h1) to 10.32.0.2 at b(h2)\n\
                    \x20 1  a(h1), sleeve to b(h2), MTU 1400, encrypted (fastdp: no heartbeats)\n\
                    \x20 2  b(h2): cannot be asked\n\
                    small packet of 84 bytes: answered after 1.234 ms\n\
                    full packet of 1376 bytes: lost on b(h2): reason\n";
        assert_eq!(report.text(), text);
        let alone = TraceReport { probes: Vec::new(), hops: Vec::new(), back: Vec::new(), ..report };
        assert_eq!(
            alone.text(),
            "from 10.32.0.1 (c1) at a(h1) to 10.32.0.2 at b(h2)\nlost on b(h2): reason\n"
        );
    }
}
