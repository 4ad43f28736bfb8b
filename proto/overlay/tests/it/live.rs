//! Captures of 2.8.1 (live_sleeve_*.json), with one side replaced by [`UdpControl`]: it must send what 2.8.1 sent, byte for byte
//! and in the same order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{array, bytes, config, name, vectors};
use serde_json::Value;
use weave_overlay::udp::{
    ControlFrame, Opener, Output, Sealer, Session, SessionConfig, UdpControl, UdpControlConfig, UdpPath,
    probe_budget, sender,
};
use weave_types::{ConnectionId, ConnectionUid, Instant};

/// What one side sends to the other.
#[derive(Clone, Debug, PartialEq)]
enum Message {
    /// A datagram. Those that the capture truncated are completed by sealing their known content.
    Datagram {
        bytes: Vec<u8>,
        df: bool,
    },
    Control(Vec<u8>),
}

struct Side {
    name: u8,
    addr: SocketAddr,
    uid: u64,
    key: Option<[u8; 32]>,
    outbound: bool,
}

impl Side {
    fn new(connection: &Value, name: u8, addr: &str) -> Side {
        let text = |field: &str| connection[field].as_str();
        Side {
            name,
            addr: addr.parse().unwrap(),
            uid: u64::from_str_radix(text("conn_uid").unwrap(), 16).unwrap(),
            key: text("session_key").map(|key| hex::decode(key).unwrap().try_into().unwrap()),
            outbound: connection["outbound"].as_bool().unwrap(),
        }
    }

    fn session(&self, remote: u8) -> Arc<Session> {
        Session::new(SessionConfig {
            own: name(self.name),
            remote: name(remote),
            conn: ConnectionId(1),
            uid: ConnectionUid(self.uid),
            outbound: self.outbound,
            key: self.key,
        })
    }
}

fn at(value: &Value) -> Instant {
    Instant::from_origin(Duration::from_secs_f64(value["t_ms"].as_f64().unwrap() / 1000.0))
}

/// The fragmentation test as `side` seals it, the first of its non-DF datagrams.
fn fragmentation_test(side: &Side, remote: u8) -> Vec<u8> {
    let sealer = Sealer::new(side.session(remote));
    let mut buf = vec![0; 70000];
    let mut draft = sealer.begin();
    assert!(sealer.push(&mut draft, &mut buf, name(side.name), name(remote), &[0; 60001]));
    let len = sealer.finish(draft, &mut buf, false).unwrap();
    buf.truncate(len);
    buf
}

/// All that `side` sent to `remote` up to the first data frame, with the time.
fn recorded(link: &Value, side: &Side, remote: u8) -> Vec<(Instant, Message)> {
    let mut messages = Vec::new();
    let from_here = |m: &&Value| m["from"].as_str().unwrap().starts_with(&side.addr.ip().to_string());
    for datagram in array(&link["udp"]).iter().filter(from_here) {
        let df = datagram["ip_df"].as_bool().unwrap();
        let bytes = if datagram["payload"].is_string() {
            bytes(&datagram["payload"])
        } else {
            let whole = fragmentation_test(side, remote);
            assert_eq!(datagram["len"].as_u64().unwrap() as usize, whole.len());
            // In encrypted form the prefix has the tag over the whole.
            let prefix = datagram["payload_prefix"].as_str().unwrap();
            assert!(hex::encode(&whole).starts_with(prefix), "the test of 2.8.1 differs");
            whole
        };
        messages.push((at(datagram), Message::Datagram { bytes, df }));
    }
    for control in array(&link["overlay_control_over_tcp"]).iter().filter(from_here) {
        let message = crate::support::bytes(&control["tcp_message_plain"]);
        assert_eq!(message[..2], [7, 0], "overlay control for overlay 0");
        messages.push((at(control), Message::Control(message[2..].to_vec())));
    }
    messages.sort_by_key(|(at, _)| *at);
    messages
}

/// Replaces `own` by [`UdpControl`] and replays the recorded `other` until `end`; returns what was sent.
fn replay(
    own: &Side,
    other: &Side,
    start: Instant,
    end: Instant,
    inputs: &[(Instant, Message)],
) -> (UdpControl, Vec<Message>) {
    let opener = Opener::new(own.session(other.name));
    let session = own.session(other.name);
    let config = UdpControlConfig { session, local: own.addr, remote: other.addr, outbound: own.outbound };
    let mut control = UdpControl::new(config);
    let mut sent = Vec::new();
    let mut paths: Vec<UdpPath> = Vec::new();
    control.confirm(start);
    let mut inputs = inputs.iter().filter(|(at, _)| *at < end).peekable();
    let mut now = start;
    loop {
        while let Some(output) = control.poll_output() {
            match output {
                Output::Datagram { to, df, bytes, .. } => {
                    assert_eq!(to, other.addr);
                    // Underlay MTU 1500: the kernel refuses what is longer, with the don't-fragment bit.
                    if df && bytes.len() + 28 > 1500 {
                        control.handle_interface_mtu(1500, now);
                    } else {
                        sent.push(Message::Datagram { bytes, df });
                    }
                }
                Output::Control { tag, body } => sent.push(Message::Control([&[tag], &body[..]].concat())),
                Output::PathChanged => paths.push(control.path()),
                Output::Failed(error) => panic!("{error}"),
                Output::SegmentedProbe { .. } => unreachable!("2.8.1 does not answer segmented probes"),
                Output::Established | Output::PathDown | Output::PathUp | Output::Event(_) => {}
            }
        }
        let timer = control.poll_timeout().map_or(end, |(at, _)| at);
        match inputs.peek() {
            Some((at, message)) if *at <= timer => {
                now = *at;
                match message {
                    Message::Control(message) => {
                        control.handle_control(message[0], &message[1..], now).unwrap()
                    }
                    Message::Datagram { bytes, .. } => {
                        let mut bytes = bytes.clone();
                        assert_eq!(sender(&bytes), Some(name(other.name)));
                        for record in opener.open(&mut bytes).unwrap() {
                            let record = record.unwrap();
                            if let Some(frame) = ControlFrame::parse(record.frame) {
                                assert_eq!((record.src, record.dst), (name(other.name), name(own.name)));
                                control.handle_control_frame(frame, other.addr, now);
                            }
                        }
                    }
                }
                inputs.next();
            }
            _ if timer < end => {
                now = timer.max(now);
                control.handle_timeout(&mut probe_budget(), now);
            }
            _ => break,
        }
    }
    let path = control.path();
    let mtu = if own.key.is_some() { 1414 } else { 1438 };
    let remote = Some(other.addr);
    assert_eq!(
        path,
        UdpPath { local: path.local, remote, mtu, max_payload: 1472, stack_fragments: true, batched: true }
    );
    assert_eq!(paths.last(), Some(&path), "every change is announced");
    (control, sent)
}

fn datagrams(messages: &[Message]) -> Vec<&Message> {
    messages.iter().filter(|m| matches!(m, Message::Datagram { .. })).collect()
}

fn controls(messages: &[Message]) -> Vec<&Message> {
    messages.iter().filter(|m| matches!(m, Message::Control(_))).collect()
}

#[test]
fn both_ends_of_both_connections_send_what_2_8_1_sent() {
    let sides = [
        ("ab", ("A", 1, "172.30.1.1:6783"), ("B", 2, "172.30.1.2:6783")),
        ("bc", ("B", 2, "172.30.2.2:6783"), ("C", 3, "172.30.2.3:6783")),
    ];
    for (file, encrypted) in [("live_sleeve_plain", false), ("live_sleeve_encrypted", true)] {
        let file = vectors(file);
        for (link, one, other) in sides {
            let connection = |side: (&str, u8, &str), remote: u8| {
                let remote = name(remote).to_string();
                let all = array(&file["connections_as_seen_by"][side.0]);
                Side::new(all.iter().find(|c| c["peer"] == remote.as_str()).unwrap(), side.1, side.2)
            };
            let (one, other) = (connection(one, other.1), connection(other, one.1));
            assert_eq!((one.outbound, one.key.is_some()), (true, encrypted));
            let link = &file["links"][link];
            for (own, other) in [(&one, &other), (&other, &one)] {
                let expected = recorded(link, own, other.name);
                let inputs = recorded(link, other, own.name);
                // Inputs end before the first data frame. The acceptor confirms just before its first heartbeat.
                let end = Instant::from_origin(Duration::from_millis(8000));
                let first = expected.first().unwrap().0;
                let inputs: Vec<_> =
                    inputs.into_iter().filter(|(at, _)| *at + Duration::from_millis(1) >= first).collect();
                let expected: Vec<_> =
                    expected.into_iter().filter(|(at, _)| *at < end).map(|(_, message)| message).collect();
                // The capture of the encrypted run lacks control messages: those of the other side are generated.
                let (inputs, check_controls) = if array(&link["overlay_control_over_tcp"]).is_empty() {
                    (with_controls(inputs, other, own), false)
                } else {
                    (inputs, true)
                };
                let (_, sent) = replay(own, other, first, end, &inputs);
                assert_eq!(datagrams(&sent), datagrams(&expected), "{} to {}", own.name, other.name);
                if check_controls {
                    assert_eq!(controls(&sent), controls(&expected), "{} to {}", own.name, other.name);
                }
                assert_eq!(controls(&sent).len(), 3);
            }
        }
    }
}

/// Control messages as 2.8.1 sends them, 100 ms after what they acknowledge.
fn with_controls(mut inputs: Vec<(Instant, Message)>, other: &Side, own: &Side) -> Vec<(Instant, Message)> {
    let first = inputs.first().unwrap().0;
    let later = |ms| first + Duration::from_millis(ms);
    let overhead = other.session(own.name).overhead() as u16;
    inputs.push((later(100), Message::Control(vec![1])));
    inputs.push((later(110), Message::Control(vec![2])));
    inputs.push((later(120), Message::Control([&[3], &(1500 - overhead).to_be_bytes()[..]].concat())));
    inputs.sort_by_key(|(at, _)| *at);
    inputs
}

/// Each probe of 2.8.1 is acknowledged by control message 3 with its size.
#[test]
fn probes_of_2_8_1_are_acknowledged() {
    let file = vectors("live_sleeve_pmtu_search");
    let side = Side { name: 2, addr: crate::support::addr(2), uid: 5, key: None, outbound: false };
    let from = crate::support::addr(1);
    let mut control = UdpControl::new(config(side.session(1), 2));
    control.confirm(Instant::ORIGIN);
    control.handle_control_frame(ControlFrame::Heartbeat(ConnectionUid(5)), from, Instant::ORIGIN);
    while control.poll_output().is_some() {}
    let mut answered = Vec::new();
    for event in array(&file["events"]).iter().filter(|event| event["event"] == "probe") {
        let candidate = event["candidate"].as_u64().unwrap() as usize;
        // The black hole: packets of more than 700 bytes do not arrive.
        if candidate + 62 > 700 {
            continue;
        }
        control.handle_control_frame(ControlFrame::parse(&vec![0; candidate + 14]).unwrap(), from, at(event));
        while let Some(output) = control.poll_output() {
            let Output::Control { tag: 3, body } = output else { panic!("{output:?}") };
            answered.push(u64::from(u16::from_be_bytes(body.try_into().unwrap())));
        }
    }
    let acks = array(&file["events"]).iter().filter(|event| event["event"] == "probe_ack");
    assert_eq!(answered, acks.map(|event| event["candidate"].as_u64().unwrap()).collect::<Vec<_>>());
}

/// The same black hole: the result and the first probe are the same.
#[test]
fn search_finds_the_mtu_of_2_8_1_in_less_time() {
    let file = vectors("live_sleeve_pmtu_search");
    let events = array(&file["events"]);
    let verified = events.iter().find(|event| event["event"] == "verified").unwrap();
    let first_probe = events.iter().find(|event| event["event"] == "probe").unwrap();

    let side = Side { name: 1, addr: crate::support::addr(1), uid: 5, key: None, outbound: true };
    let mut control = UdpControl::new(config(side.session(2), 1));
    control.confirm(Instant::ORIGIN);
    let mut now = Instant::ORIGIN;
    control.handle_control_frame(ControlFrame::Heartbeat(ConnectionUid(5)), crate::support::addr(2), now);
    control.handle_control(1, &[], now).unwrap();
    let mut probes = Vec::new();
    let done = 'done: loop {
        while let Some(output) = control.poll_output() {
            match output {
                Output::Datagram { df: true, bytes, .. } if bytes.len() + 28 > 1500 => {
                    control.handle_interface_mtu(1500, now);
                }
                Output::Datagram { df: true, bytes, .. } if bytes.len() > 42 => {
                    // Control message 3 contains the length of the frame without its Ethernet header.
                    let size = (bytes.len() - 6 - 14 - 14) as u16;
                    probes.push(u64::from(size));
                    if bytes.len() + 28 <= 700 {
                        control.handle_control(3, &size.to_be_bytes(), now).unwrap();
                    }
                }
                Output::Event(event) => break 'done event,
                _ => {}
            }
        }
        now = control.poll_timeout().unwrap().0;
        control.handle_timeout(&mut probe_budget(), now);
    };
    assert_eq!(done.to_string(), format!("Effective MTU verified at {}", verified["mtu"]));
    assert_eq!(probes[0], first_probe["candidate"].as_u64().unwrap());
    let took = now.since_origin().as_secs_f64() * 1000.0;
    assert!(took < verified["t_ms"].as_f64().unwrap() / 5.0, "{took} ms");
}
