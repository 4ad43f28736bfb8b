//! What `weave top` shows: lines of text made from two views of the network.

use std::cmp::Ordering;

use weave_api::network_view::{Connection, Peer};
use weave_api::report::Traffic;
use weave_api::{NetworkView, Timestamp};

/// A column of the table, and by which word it is chosen for sorting.
pub(crate) struct Column {
    pub(crate) sort: &'static str,
    title: &'static str,
    width: usize,
}

const fn column(sort: &'static str, title: &'static str, width: usize) -> Column {
    Column { sort, title, width }
}

/// Peers are sorted by name upwards, by everything else downwards.
pub(crate) const COLUMNS: [Column; 9] = [
    column("name", "PEER", 26),
    column("overlay", "REACHED BY", 16),
    column("encrypted", "ENCR", 4),
    column("rtt", "RTT", 9),
    column("loss", "LOSS", 5),
    column("sent", "SENT/s", 9),
    column("received", "RECV/s", 9),
    column("mtu", "MTU", 5),
    column("addresses", "ADDRESSES", 16),
];

/// Lines for problems and for events, while the table needs the others.
const MIN_PROBLEMS: usize = 3;
const MIN_EVENTS: usize = 4;

pub(crate) struct Screen {
    view: NetworkView,
    /// The view before, for rates.
    before: Option<NetworkView>,
    /// Index in [`COLUMNS`].
    sort: usize,
    /// Number of peers above those that are shown.
    scroll: usize,
    /// Why the view is old.
    problem: Option<String>,
}

/// A peer with its connection and datagrams per second, sent and received.
struct Row<'a> {
    peer: &'a Peer,
    connection: Option<&'a Connection>,
    rates: Option<[f64; 2]>,
}

impl Screen {
    pub(crate) fn new(view: NetworkView, sort: usize) -> Screen {
        Screen { view, before: None, sort, scroll: 0, problem: None }
    }

    pub(crate) fn update(&mut self, view: NetworkView) {
        self.before = Some(std::mem::replace(&mut self.view, view));
        self.problem = None;
    }

    pub(crate) fn set_problem(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// Whether the user wants to end the command.
    pub(crate) fn handle_keys(&mut self, keys: &[u8]) -> bool {
        let mut keys = keys;
        while let [key, rest @ ..] = keys {
            keys = rest;
            let last = self.view.peers.len().saturating_sub(1);
            match key {
                b'q' | b'Q' => return true,
                b's' => self.sort = (self.sort + 1) % COLUMNS.len(),
                0x1b => {
                    let ([b'[' | b'O', arrow, rest @ ..] | [arrow, rest @ ..]) = keys else { return false };
                    keys = rest;
                    match arrow {
                        b'A' => self.scroll = self.scroll.saturating_sub(1),
                        b'B' => self.scroll = (self.scroll + 1).min(last),
                        b'C' => self.sort = (self.sort + 1) % COLUMNS.len(),
                        b'D' => self.sort = (self.sort + COLUMNS.len() - 1) % COLUMNS.len(),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        false
    }

    /// The screen for a terminal of this width and height, or all of it. No line has a character that changes a terminal.
    pub(crate) fn lines(&self, size: Option<(u16, u16)>) -> Vec<String> {
        let view = &self.view;
        let mut head = vec![self.summary()];
        if !view.range.is_empty() {
            head.push(format!("addresses {}: {}", view.range, view.allocation));
        }
        head.extend(self.problem.iter().map(|problem| format!("! {problem}")));
        let problems: Vec<_> = view.problems.iter().map(|problem| format!("! {problem}")).collect();
        let mut table: Vec<_> = self.rows().iter().map(Row::text).collect();
        let events: Vec<_> =
            view.events.iter().rev().map(|event| format!("{} {}", time(event.time), event.text)).collect();
        let (mut problems, mut events) = (problems, events);
        if let Some((_, height)) = size {
            // The title of the table, and two empty lines.
            let room = usize::from(height).saturating_sub(head.len() + 3);
            let for_events = events.len().min(MIN_EVENTS).min(room);
            let for_problems = problems.len().min(MIN_PROBLEMS).min(room - for_events);
            let for_table = table.len().min(room - for_events - for_problems);
            let spare = room - for_events - for_problems - for_table;
            shorten(&mut problems, for_problems + spare);
            table.drain(..self.scroll.min(table.len() - for_table));
            table.truncate(for_table);
            events.truncate(room - problems.len() - for_table);
        }
        let title = self.title();
        let empty = || [String::new()];
        let lines = head.into_iter().chain(problems).chain(empty()).chain([title]).chain(table);
        let height = size.map_or(usize::MAX, |(_, height)| usize::from(height));
        let lines = lines.chain(empty()).chain(events).take(height);
        let width = size.map_or(usize::MAX, |(width, _)| usize::from(width));
        lines.map(|line| clean(&line).trim_end().chars().take(width).collect()).collect()
    }

    fn summary(&self) -> String {
        let NetworkView { time: now, version, name, nick_name, totals, encryption, .. } = &self.view;
        let password = if *encryption { "with a password" } else { "without a password" };
        format!(
            "weave {version} {name}({nick_name}) {}: {} peers, {} links, {} containers here, {} names, {password}",
            time(*now),
            totals.peers,
            totals.links,
            totals.containers,
            totals.names
        )
    }

    fn title(&self) -> String {
        let cell = |(index, column): (usize, &Column)| {
            let title =
                if index == self.sort { format!("{}*", column.title) } else { column.title.to_owned() };
            format!("{title:<width$}", width = column.width)
        };
        COLUMNS.iter().enumerate().map(cell).collect::<Vec<_>>().join(" ")
    }

    fn rows(&self) -> Vec<Row<'_>> {
        let mut rows: Vec<_> = self.view.peers.iter().map(|peer| self.row(peer)).collect();
        let by = COLUMNS[self.sort].sort;
        rows.sort_by(|a, b| match by {
            "name" => a.name().cmp(b.name()),
            "overlay" => b.peer.reached.cmp(&a.peer.reached),
            by => compare(b.value(by), a.value(by)),
        });
        rows
    }

    fn row<'a>(&'a self, peer: &'a Peer) -> Row<'a> {
        let of_peer = || self.view.connections.iter().filter(|c| c.name == peer.name);
        let connection = of_peer().find(|c| c.is_established()).or_else(|| of_peer().next());
        Row { peer, connection, rates: connection.and_then(|connection| self.rates(connection)) }
    }

    fn rates(&self, connection: &Connection) -> Option<[f64; 2]> {
        let before = self.before.as_ref()?;
        let same = |c: &&Connection| c.name == connection.name && c.address == connection.address;
        let (old, new) = (before.connections.iter().find(same)?.traffic?, connection.traffic?);
        let seconds = self.view.time.checked_sub(before.time).filter(|ms| *ms > 0)? as f64 / 1000.0;
        Some(differences(old, new).map(|count| f64::from(count) / seconds))
    }
}

/// What was counted between. Counters wrap, and begin again with another overlay.
fn differences(old: Traffic, new: Traffic) -> [u32; 2] {
    [(old.sent, new.sent), (old.received, new.received)].map(|(old, new)| {
        let difference = new.wrapping_sub(old);
        if difference > u32::MAX / 2 { 0 } else { difference }
    })
}

fn compare(a: Option<f64>, b: Option<f64>) -> Ordering {
    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
}

/// At most `limit` lines, of which the last one says how many are missing.
fn shorten(lines: &mut Vec<String>, limit: usize) {
    if lines.len() > limit {
        lines.truncate(limit.saturating_sub(1));
        if limit > 0 {
            lines.push("! and more".to_owned());
        }
    }
}

impl Row<'_> {
    fn name(&self) -> &str {
        if self.peer.nick_name.is_empty() { &self.peer.name } else { &self.peer.nick_name }
    }

    fn round_trip(&self) -> Option<u64> {
        self.connection?.quality?.round_trip
    }

    /// Per cent.
    fn loss(&self) -> Option<f64> {
        let quality = self.connection?.quality.filter(|quality| quality.probes > 0)?;
        Some(f64::from(quality.lost) * 100.0 / f64::from(quality.probes))
    }

    fn value(&self, by: &str) -> Option<f64> {
        match by {
            "encrypted" => self.connection?.encrypted.map(|encrypted| f64::from(u8::from(encrypted))),
            "rtt" => self.round_trip().map(|micros| micros as f64),
            "loss" => self.loss(),
            "sent" => self.rates.map(|[sent, _]| sent),
            "received" => self.rates.map(|[_, received]| received),
            "mtu" => self.connection?.mtu.map(|mtu| mtu as f64),
            _ => Some(self.peer.ips as f64),
        }
    }

    fn text(&self) -> String {
        let peer = self.peer;
        let rate = |index: usize| self.rates.map(|rates| format!("{:.0}", rates[index]));
        let encrypted =
            self.connection.and_then(|c| c.encrypted).map(|e| if e { "yes" } else { "no" }.to_owned());
        let cells = [
            Some(self.name().to_owned()),
            Some(peer.reached.clone()),
            encrypted,
            self.round_trip().map(|micros| format!("{:.2} ms", micros as f64 / 1000.0)),
            self.loss().map(|percent| format!("{percent:.0}%")),
            rate(0),
            rate(1),
            self.connection.and_then(|c| c.mtu).map(|mtu| mtu.to_string()),
            (peer.ips > 0).then(|| format!("{} ({:.1}%)", peer.ips, peer.percent)),
        ];
        let cell = |(cell, column): (Option<String>, &Column)| {
            let text = clean(&cell.unwrap_or_else(|| "-".to_owned()));
            let text: String = text.chars().take(column.width).collect();
            format!("{text:<width$}", width = column.width)
        };
        cells.into_iter().zip(&COLUMNS).map(cell).collect::<Vec<_>>().join(" ")
    }
}

/// `2026/11/20 08:51:42`, UTC.
fn time(millis: u64) -> String {
    Timestamp::from_unix(std::time::Duration::from_millis(millis)).slashes()
}

/// Text without control characters, and without characters that change the direction of others or are not seen.
fn clean(text: &str) -> String {
    let unseen = |c: char| {
        matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().map(|c| if c.is_control() || unseen(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use weave_api::network_view::Event;
    use weave_api::report::PathQuality;

    use super::*;

    fn view(seconds: u64, counts: u32) -> NetworkView {
        let peer = |name: &str, reached: &str, ips| Peer {
            name: format!("8a:00:00:00:00:0{name}"),
            nick_name: format!("host{name}"),
            reachable: true,
            reached: reached.to_owned(),
            ips,
            percent: ips as f64,
            ..Peer::default()
        };
        let connection = |name: &str, counts: u32, micros| Connection {
            address: format!("192.0.2.{name}:6783"),
            state: "established".to_owned(),
            name: format!("8a:00:00:00:00:0{name}"),
            overlay: Some("fastdp".to_owned()),
            encrypted: Some(false),
            mtu: Some(1376),
            traffic: Some(Traffic { sent: counts, received: counts.wrapping_mul(2) }),
            quality: Some(PathQuality { round_trip: Some(micros), probes: 10, lost: 1 }),
            ..Connection::default()
        };
        NetworkView {
            time: 1_700_000_000_000 + seconds * 1000,
            version: "3.0.0".to_owned(),
            name: "8a:00:00:00:00:01".to_owned(),
            nick_name: "host1".to_owned(),
            peers: vec![peer("1", "this peer", 50), peer("2", "fastdp", 20), peer("3", "host2 relays", 30)],
            connections: vec![connection("2", counts, 400), connection("3", counts.wrapping_mul(10), 1500)],
            range: "10.32.0.0/12".to_owned(),
            allocation: "ready".to_owned(),
            problems: vec!["8a:00:00:00:00:03(host3): host2 relays".to_owned()],
            events: vec![Event { time: 1_700_000_000_000, text: "an event".to_owned() }],
            ..NetworkView::default()
        }
    }

    fn names(screen: &Screen) -> Vec<String> {
        screen.rows().iter().map(|row| row.name().to_owned()).collect()
    }

    #[test]
    fn screen_of_three_peers() {
        let mut screen = Screen::new(view(0, u32::MAX - 9), 0);
        assert!(screen.lines(None)[6].ends_with("0.40 ms   10%   -         -         1376  20 (20.0%)"));
        screen.update(view(2, 10));
        let lines = screen.lines(None);
        let expected = [
            "weave 3.0.0 8a:00:00:00:00:01(host1) 2023/11/14 22:13:22: 0 peers, 0 links, 0 containers here, 0 names, without a password",
            "addresses 10.32.0.0/12: ready",
            "! 8a:00:00:00:00:03(host3): host2 relays",
            "",
            "PEER*                      REACHED BY       ENCR RTT       LOSS  SENT/s    RECV/s    MTU   ADDRESSES",
            "host1                      this peer        -    -         -     -         -         -     50 (50.0%)",
            "host2                      fastdp           no   0.40 ms   10%   10        20        1376  20 (20.0%)",
            "host3                      host2 relays     no   1.50 ms   10%   100       200       1376  30 (30.0%)",
            "",
            "2023/11/14 22:13:20 an event",
        ];
        assert_eq!(lines, expected, "the counters have wrapped");
    }

    #[test]
    fn keys_sort_scroll_and_end() {
        let mut screen = Screen::new(view(0, 0), 0);
        screen.update(view(1, 10));
        assert_eq!(names(&screen), ["host1", "host2", "host3"]);
        // Right three times: by round trip; what has none is last.
        assert!(!screen.handle_keys(b"\x1b[C\x1b[Cs"));
        assert_eq!(names(&screen), ["host3", "host2", "host1"]);
        assert!(!screen.handle_keys(b"\x1bOD\x1b[D\x1b[D\x1b[D"));
        assert_eq!((COLUMNS[screen.sort].sort, names(&screen)[0].as_str()), ("addresses", "host1"));
        assert!(!screen.handle_keys(b"\x1b[B\x1b[B\x1b[B\x1b[B\x1b[A"));
        assert_eq!(screen.scroll, 1);
        assert!(!screen.handle_keys(b"\x1b") && !screen.handle_keys(b"\x1b[") && !screen.handle_keys(b"x"));
        assert!(screen.handle_keys(b"sq"));
    }

    #[test]
    fn screen_fits_the_terminal() {
        let mut many = view(0, 0);
        many.peers = (0..200).map(|n| Peer { nick_name: format!("peer{n:03}"), ..Peer::default() }).collect();
        many.problems = (0..50).map(|n| format!("problem {n} {}", "x".repeat(300))).collect();
        many.events = vec![many.events[0].clone(); 50];
        let mut screen = Screen::new(many, 0);
        screen.set_problem("no answer".to_owned());
        for (width, height) in [(80, 24), (40, 60), (1, 1), (200, 300), (0, 0)] {
            let lines = screen.lines(Some((width, height)));
            assert!(lines.len() <= usize::from(height), "{width} {height}: {}", lines.len());
            assert!(lines.iter().all(|line| line.chars().count() <= usize::from(width)), "{lines:#?}");
        }
        let lines = screen.lines(Some((80, 24)));
        let shown = lines.iter().filter(|line| line.starts_with("peer")).count();
        assert_eq!((lines.len(), shown, lines[5].as_str()), (24, 11, "! and more"), "{lines:#?}");
        screen.scroll = 199;
        assert!(screen.lines(Some((80, 24))).iter().any(|line| line.starts_with("peer199")));
    }

    #[test]
    fn texts_of_others_do_not_change_the_terminal() {
        let mut hostile = view(0, 0);
        let text = "\x1b[2J\u{9b}31m\x07\r\n\u{202e}gnp\u{200b}\u{2066}<script>";
        hostile.peers[1].nick_name = text.to_owned();
        hostile.peers[1].reached = text.to_owned();
        hostile.problems = vec![text.to_owned()];
        hostile.events[0].text = text.to_owned();
        hostile.allocation = text.to_owned();
        hostile.nick_name = text.to_owned();
        let lines = Screen::new(hostile, 0).lines(Some((200, 50)));
        let bad = |c: char| c.is_control() || ('\u{200b}'..='\u{206f}').contains(&c);
        assert!(!lines.iter().any(|line| line.contains(bad)), "{lines:?}");
        assert_eq!(lines.iter().filter(|line| line.contains("<script>")).count(), 5, "{lines:#?}");
    }
}
