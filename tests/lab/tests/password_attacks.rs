//! What somebody on the wire can do without the password: replay what was captured, and guess.

use std::collections::BTreeMap;

use weave_lab::capture::Captured;
use weave_lab::packet::{Ethernet, Udp};
use weave_lab::{Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-21", "F-22");

/// Length of the header of the handshake and of the flag for encryption, behind which the public key follows (docs/spec/mesh.md 4.2).
const BEFORE_KEY: usize = 8;
const KEY_LENGTH: usize = 32;

/// Bytes of the TCP connections of the mesh, by source and destination address and port.
fn streams(captured: &Captured) -> BTreeMap<(String, String), Vec<u8>> {
    let mut segments: BTreeMap<(String, String), BTreeMap<u32, &[u8]>> = BTreeMap::new();
    for frame in captured.frames() {
        let Some(ip) = Ethernet::parse(frame).filter(|e| e.ethertype == 0x0800).map(|e| e.payload) else {
            continue;
        };
        let (header, length) = (usize::from(ip[0] & 15) * 4, usize::from(u16::from_be_bytes([ip[2], ip[3]])));
        let (Some(tcp), true) = (ip.get(header..length), ip[9] == 6) else { continue };
        let end = |ip: &[u8], port: &[u8]| {
            format!("{}.{}.{}.{}:{}", ip[0], ip[1], ip[2], ip[3], u16::from_be_bytes([port[0], port[1]]))
        };
        let ends = (end(&ip[12..16], &tcp[..2]), end(&ip[16..20], &tcp[2..4]));
        let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        if !payload.is_empty() && (ends.0.ends_with(":6783") || ends.1.ends_with(":6783")) {
            segments.entry(ends).or_default().entry(sequence).or_insert(payload);
        }
    }
    // A connection begins with its lowest sequence number unless that wraps, after which it has no header and is left out.
    let streams =
        segments.into_iter().map(|(ends, parts)| (ends, parts.into_values().flatten().copied().collect()));
    streams.filter(|(_, bytes): &(_, Vec<u8>)| bytes.starts_with(b"weave")).collect()
}

fn key(stream: &[u8]) -> &[u8] {
    assert_eq!(stream[BEFORE_KEY - 1], 1, "not encrypted");
    &stream[BEFORE_KEY..BEFORE_KEY + KEY_LENGTH]
}

/// Runs a Python program with these bytes as its standard input, in hexadecimal.
fn python(host: &Host, program: &str, lines: &[&[u8]]) -> String {
    let hex = |bytes: &&[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text = lines.iter().map(hex).collect::<Vec<_>>().join("\n");
    let path = format!("/tmp/weave-lab-replay-{}", host.pid());
    std::fs::write(&path, text).unwrap();
    let outcome = host.command(&["sh", "-c", "exec python3 -c \"$0\" < \"$1\"", program, &path]);
    std::fs::remove_file(&path).unwrap();
    outcome.expect_ok()
}

/// Frames that are sent on the router's interface to h1.
const SEND_FRAMES: &str = "import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('h1', 0))
for line in sys.stdin: s.send(bytes.fromhex(line))";

/// Prints what h1 answers to these bytes until it closes the connection.
const SEND_STREAM: &str = "import socket, sys
s = socket.create_connection(('198.18.0.1', 6783), 10); s.sendall(bytes.fromhex(sys.stdin.read()))
got = b''
try:
    while data := s.recv(65536): got += data
except ConnectionResetError: pass
print(got.hex())";

/// Frames with datagrams of h2's peer.
fn datagrams(captured: &Captured) -> Vec<Vec<u8>> {
    let is_from_h2 = |frame: &&[u8]| {
        Udp::parse(frame).is_some_and(|udp| udp.from.to_string() == "198.18.0.2" && udp.to_port == 6783)
    };
    captured.frames().into_iter().filter(is_from_h2).map(<[u8]>::to_vec).collect()
}

/// Sends frames to h1 again, and waits until it has refused each of them for this reason.
#[track_caller]
fn replayed(lab: &Lab, frames: &[Vec<u8>], reason: &str) {
    let h1 = lab.host("h1");
    let dropped = || h1.report().unwrap()["Router"]["Drops"][reason].as_u64().unwrap_or(0);
    let before = dropped();
    python(lab.wire(), SEND_FRAMES, &frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
    h1.wait("all of them to be counted", SHORT_TIMEOUT, || {
        let counted = dropped() - before;
        if counted == frames.len() as u64 { Ok(()) } else { Err(format!("{counted} of {}", frames.len())) }
    });
}

#[test]
fn captured_traffic_cannot_be_replayed() {
    let Some(lab) = Lab::start("replay", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    // Datagrams in the capture are then as on a wire, one frame each with its checksum.
    lab.wire_offloads(false);
    let options = ["--password", "wEaVe", "--no-fastdp"];
    let mut connections = Vec::new();
    let mut members = Vec::new();
    for _ in 0..2 {
        let capture = lab.wire().capture("h1");
        if members.is_empty() {
            launch(h1, &options, &[]);
        }
        launch(h2, &options, &["h1"]);
        if members.is_empty() {
            members = attach_each(&[h1, h2]);
        }
        h1.wait_established(1, LONG_TIMEOUT);
        members[1].container.reaches(&members[0].ip, SHORT_TIMEOUT);
        let captured = capture.finish();
        let found = streams(&captured);
        let (ends, sent) = found.iter().find(|((from, _), _)| from.starts_with("198.18.0.2:")).unwrap();
        let answered = &found[&(ends.1.clone(), ends.0.clone())];
        let capture = lab.wire().capture("h1");
        members[1].container.ping(&members[0].ip, 5);
        let frames = datagrams(&capture.finish());
        assert!(frames.len() >= 5);

        step("datagrams of the connection that lives are refused, and counted");
        replayed(&lab, &frames, "replayed");
        connections.push((sent.clone(), answered.clone(), frames));
        if connections.len() == 1 {
            h2.weave_ok(&["stop"]);
        }
    }
    step("each connection has its own keys");
    let keys: Vec<&[u8]> =
        connections.iter().flat_map(|(sent, answered, _)| [key(sent), key(answered)]).collect();
    for (i, key) in keys.iter().enumerate() {
        assert!(!keys[..i].contains(key), "{keys:x?}");
    }

    step("datagrams of an earlier connection are forged ones for the next, or have the index of none");
    let (sent, answered, old) = &connections[0];
    let is_warp = |frame: &Vec<u8>| Udp::parse(frame).is_some_and(|udp| udp.payload.first() == Some(&0xf1));
    let (warp, sleeve): (Vec<_>, Vec<_>) = old.iter().cloned().partition(is_warp);
    assert!(warp.len() >= 5);
    replayed(&lab, &sleeve, "forged");
    replayed(&lab, &warp, "unknown sender");

    step("so is an earlier TCP connection as a whole");
    let got = python(h3, SEND_STREAM, &[sent]);
    assert!(got.starts_with("7765617665"), "{got}");
    let their_key = |stream: &[u8]| key(stream).iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_ne!(got[2 * BEFORE_KEY..2 * (BEFORE_KEY + KEY_LENGTH)], their_key(answered));
    h1.wait("the reason in its status", SHORT_TIMEOUT, || {
        let page = h1.weave_ok(&["status", "connections"]);
        let told = page.lines().any(|l| l.contains("198.18.0.3") && l.to_lowercase().contains("password"));
        if told { Ok(()) } else { Err(page) }
    });
    h1.wait_established(1, SHORT_TIMEOUT);
    let pings = members[1].container.ping(&members[0].ip, 3);
    assert_eq!((pings.received, pings.duplicates), (3, 0), "{pings:?}");
    claims(&["F-21"]);
}

/// Guesses passwords for three seconds, over 200 connections at a time. Prints how long that took and how many connections were served.
const GUESS: &str = "import os, select, socket, time
begin, served, guesses = time.monotonic(), 0, {}
def connect():
    s = socket.socket(); s.setblocking(False); s.connect_ex(('198.18.0.1', 6783)); guesses[s] = False
for _ in range(200): connect()
while time.monotonic() < begin + 3:
    for s in select.select(list(guesses), [], [], 0.1)[0]:
        try: data = s.recv(4096)
        except OSError: data = b''
        if data and not guesses[s]:
            guesses[s] = True; served += 1
            s.send(b'weave\\x01\\x02\\x01' + os.urandom(32) + (100).to_bytes(4, 'big') + os.urandom(100))
        elif not data:
            del guesses[s]; s.close(); connect()
print(time.monotonic() - begin, served)";

#[test]
fn guessing_is_slow() {
    let Some(lab) = Lab::start("guess", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &["--password", "wEaVe"], &[]);
    launch(h2, &["--password", "wEaVe"], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    let members = attach_each(&[h1, h2]);
    members[1].container.reaches(&members[0].ip, SHORT_TIMEOUT);
    let remote = || h1.connections().into_iter().find(|c| c.state == "established").map(|c| c.remote);
    let before = remote();
    let capture = lab.wire().capture("h3");
    let pinger = members[1].container.pinging(&members[0].ip, 20);
    let result = python(h3, GUESS, &[]);
    let pings = pinger.finish();
    println!("{result}");
    let (elapsed, served) = result.trim().split_once(' ').unwrap();
    let (elapsed, served): (f64, f64) = (elapsed.parse().unwrap(), served.parse().unwrap());
    // From one address 15, and then four each second (docs/guide/encryption.md).
    assert!(served >= 1.0 && served <= 15.0 + 4.0 * elapsed + 1.0, "{served} connections in {elapsed} s");
    step("the existing connection is not disturbed, and the password is not sent");
    assert!(pings.longest_gap_ms < 2000.0, "{pings:?}");
    assert_eq!(remote(), before);
    let seen = capture.finish();
    assert!(seen.frames().len() > 200 && seen.count(b"wEaVe") == 0);
    assert!(h1.weave_ok(&["status", "connections"]).contains("198.18.0.3"));
    claims(&["F-22"]);
}
