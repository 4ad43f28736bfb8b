//! The live picture's stream of views and `weave top` show what `status connections` shows, soon after it.

use std::time::Instant;

use serde_json::{Value, json};
use weave_lab::{Host, Lab, Topology, weave_binary};

use crate::common::*;

/// Keeps the latest view of the event stream in a file.
const READER: &str = "import os, urllib.request
stream = urllib.request.urlopen('http://127.0.0.1:6782/events')
print('ready', flush=True)
for line in stream:
    if line.startswith(b'data: {'):
        open('/run/view.new', 'wb').write(line[6:])
        os.rename('/run/view.new', '/run/view')";

/// A connection as both show it: peer, state, overlay, and why it is not a better one.
type Shown = Vec<(String, String, Option<String>, String)>;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn shown(connections: &Value, reason: &str) -> Shown {
    let list = connections.as_array().cloned().unwrap_or_default();
    let one = |c: &Value| {
        (text(&c["Name"]), text(&c["State"]), c["Overlay"].as_str().map(str::to_owned), text(&c[reason]))
    };
    // A target that leads to a peer that is connected already is no news.
    list.iter().filter(|c| c["State"] != "waiting").map(one).collect()
}

fn status(host: &Host) -> Shown {
    let outcome = host.weave(&["status", "connections", "--json"]);
    shown(
        &serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome}")),
        "OverlayReason",
    )
}

fn view(host: &Host) -> Result<Value, String> {
    let text = host.command(&["cat", "/run/view"]).stdout;
    serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))
}

/// Waits until `status connections` shows this, and then until the stream does.
#[track_caller]
fn follows(host: &Host, what: &str, condition: impl Fn(&Shown) -> bool) {
    let holds = |shown: Shown| if condition(&shown) { Ok(()) } else { Err(format!("{shown:?}")) };
    host.wait(&format!("{what} in the status"), LONG_TIMEOUT, || holds(status(host)));
    let start = Instant::now();
    host.wait(&format!("{what} in the stream"), SHORT_TIMEOUT, || {
        view(host).and_then(|view| holds(shown(&view["Connections"], "Reason")))
    });
    println!("{what}: in the stream {:.1} s after the status", start.elapsed().as_secs_f32());
}

fn reached(host: &Host, name: &str) -> String {
    let view = view(host).unwrap_or_default();
    let peers = view["Peers"].as_array().cloned().unwrap_or_default();
    peers.iter().find(|peer| peer["Name"] == name).map(|peer| text(&peer["Reached"])).unwrap_or_default()
}

#[track_caller]
fn wait_reached(host: &Host, name: &str, words: &str) {
    host.wait(&format!("{name} to be shown as {words}"), LONG_TIMEOUT, || {
        let reached = reached(host, name);
        if reached.contains(words) { Ok(()) } else { Err(reached) }
    });
}

#[test]
fn stream_shows_a_fallback_a_cut_a_partition_and_its_end() {
    let Some(lab) = Lab::start("picture", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|host| lab.host(host));
    let name3 = name_of(h3);
    let members = attach_each(&[h1, h3]);
    members[0].container.reaches(&members[1].ip, SHORT_TIMEOUT);
    h3.weave_ok(&["expose"]);
    wait_overlay(h1, "fastdp");
    let _reader = h1.background(&["python3", "-c", READER], true).unwrap();
    let all_fastdp = |shown: &Shown| {
        shown.len() == 2
            && shown
                .iter()
                .all(|c| c.1 == "established" && c.2.as_deref() == Some("fastdp") && c.3.is_empty())
    };
    follows(h1, "fastdp everywhere", all_fastdp);

    step("round trips, loss and traffic are measured while somebody looks");
    let pinger = members[0].container.pinging(&members[1].ip, 20);
    h1.wait("measurements", SHORT_TIMEOUT, || {
        let view = view(h1)?;
        let connections = view["Connections"].as_array().cloned().unwrap_or_default();
        let measured = |c: &Value| {
            let quality = &c["Quality"];
            (1..1_000_000).contains(&quality["RoundTrip"].as_u64().unwrap_or(0))
                && quality["Probes"].as_u64() > Some(2)
                && quality["Lost"] == 0
        };
        let moves = |c: &Value| {
            c["Traffic"]["Sent"].as_u64() > Some(20) && c["Traffic"]["Received"].as_u64() > Some(20)
        };
        let busy = |c: &&Value| c["Name"] == json!(name3);
        let done = connections.iter().all(measured) && connections.iter().find(busy).is_some_and(moves);
        if done { Ok(()) } else { Err(format!("{connections:?}")) }
    });
    pinger.finish();
    let seen = view(h1).unwrap();
    assert_eq!(seen["Totals"]["Peers"], 3, "{seen}");
    assert_eq!(seen["Containers"][0]["Addresses"][0], "10.2.1.1/24", "{seen}");

    step("a fallback");
    h3.sh("iptables -I INPUT -p udp --dport 6784 -j DROP; iptables -I OUTPUT -p udp --dport 6784 -j DROP");
    let fallback = |shown: &Shown| {
        let other = |c: &(String, String, Option<String>, String)| {
            c.0 == name3 && c.1 == "established" && c.2.as_deref() != Some("fastdp") && c.3.contains("fastdp")
        };
        shown.iter().any(other)
    };
    follows(h1, "a fallback", fallback);
    h3.sh("iptables -D INPUT -p udp --dport 6784 -j DROP; iptables -D OUTPUT -p udp --dport 6784 -j DROP");
    follows(h1, "the end of the fallback", all_fastdp);

    step("a cut");
    lab.cut("h1", "h3");
    let not_direct =
        |shown: &Shown| !shown.iter().any(|c| c.0 == name3 && c.1 == "established" && c.3.is_empty());
    follows(h1, "a cut", not_direct);
    wait_reached(h1, &name3, &format!("{} relays", h2.name()));

    step("a partition");
    lab.cut("h1", "h2");
    follows(h1, "a partition", |shown| !shown.iter().any(|c| c.1 == "established"));
    wait_reached(h1, &name3, "not reached");

    step("its end");
    lab.heal_all();
    follows(h1, "the end of the partition", all_fastdp);
    wait_reached(h1, &name_of(h2), "fastdp");
    let events = view(h1).unwrap()["Events"].to_string();
    assert!(events.contains("overlay_switch") && events.contains("connection shutting down"), "{events}");
}

/// Runs `weave top` on a terminal, types keys when it has shown a peer, and prints what it wrote, and whether the terminal is as it was.
const TERMINAL: &str = "import os, pty, select, sys, termios
start, go = os.pipe()
pid, fd = pty.fork()
if pid == 0: os.read(start, 1); os.execvp(sys.argv[1], [sys.argv[1], 'top'])
before, text, typed = termios.tcgetattr(fd), b'', 0
os.write(go, b'x')
while True:
    if not select.select([fd], [], [], 20)[0]: sys.exit('top is silent')
    try: part = os.read(fd, 65536)
    except OSError: break
    text += part
    if typed == 0 and b'PEER*' in text: os.write(fd, sys.argv[2].encode().decode('unicode_escape').encode()); typed = 1
    if typed == 1 and b'SENT/s*' in text: assert termios.tcgetattr(fd)[3] != before[3]; os.write(fd, b'q' if sys.argv[3] == 'q' else b'\\x03'); typed = 2
print(os.waitpid(pid, 0)[1], ascii(text.decode()))";

#[test]
fn top_shows_peers_on_a_terminal_and_as_lines() {
    let Some(lab) = Lab::start("top", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|host| lab.host(host));
    let without = h1.weave(&["top", "-b", "-n", "1"]);
    assert!(!without.success() && without.stderr.contains("weave is not running"), "{without}");
    launch(h1, &[], &[]);
    let hostile = "\u{1b}[2J\u{1b}]0;x\u{7}h2\u{202e}";
    launch(h2, &["--nickname", hostile], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    wait_overlay(h1, "fastdp");
    let lines = h1.weave_ok(&["top", "-b", "-n", "2", "--sort", "sent"]);
    assert_eq!(lines.matches("PEER ").count(), 2, "{lines}");
    let links = lines.lines().filter(|line| line.contains(" fastdp ") && line.contains(" 1376 "));
    assert_eq!(links.count(), 2, "{lines}");
    assert!(!lines.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{lines:?}");
    let many = h1.sh(&format!("{} top | head -3", weave_binary()));
    assert_eq!(many.lines().count(), 3, "ends when nobody reads: {many}");
    for end in ["q", "interrupt"] {
        let shown = h1.command_ok(&["python3", "-c", TERMINAL, weave_binary(), "sssss", end]);
        assert!(shown.starts_with("0 "), "{shown}");
        let text = shown.trim_end().trim_end_matches('\'');
        assert!(
            shown.contains("\\x1b[?1049h") && text.ends_with("\\x1b[?25h\\x1b[?7h\\x1b[?1049l"),
            "{shown}"
        );
        assert!(
            shown.contains("fastdp") && !shown.contains("\\x1b[2J") && !shown.contains("\\x07"),
            "{shown}"
        );
    }
}
