//! Reports and status pages of 2.8.1 daemons (`tests/vectors/cli`): the schema reads and writes the same JSON, and the pages
//! have the same content, apart from the documented differences and the order, which was arbitrary there.

use std::fs;
use std::path::{Path, PathBuf};

use weave_api::{Report, status};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli"));
    let mut cases: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("report.json").exists())
        .collect();
    cases.sort();
    assert!(cases.len() >= 15, "vectors are missing: {cases:?}");
    cases
}

fn read(case: &Path, name: &str) -> String {
    fs::read_to_string(case.join(name)).unwrap()
}

/// The recorder's footer `[http NNN]` and its status, where there is one.
fn page(case: &Path, name: &str) -> (String, u16) {
    let text = read(case, name);
    match text.split_once("\n[http ") {
        Some((body, code)) => (body.to_owned(), code.trim_end_matches("]\n").parse().unwrap()),
        None => (text, 200),
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort();
    lines
}

/// A peer's line with its connections' lines, each group sorted.
fn groups(text: &str) -> Vec<Vec<&str>> {
    let mut groups: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        if line.starts_with(' ') {
            groups.last_mut().expect("begins with a peer").push(line);
        } else {
            groups.push(vec![line]);
        }
    }
    groups.iter_mut().for_each(|g| g[1..].sort());
    groups.sort();
    groups
}

#[test]
fn json_is_read_and_written_unchanged() {
    for case in cases() {
        let text = read(&case, "report.json");
        let report = Report::from_json(&text).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        assert_eq!(report.to_json().trim_end(), text.trim_end(), "{case:?}");
    }
}

#[test]
fn pages() {
    for case in cases() {
        let report = Report::from_json(&read(&case, "report.json")).unwrap();
        let (expected, _) = page(&case, "status.txt");
        // One line more than the original.
        let summary = status::summary(&report);
        let (added, same): (Vec<&str>, Vec<&str>) =
            summary.lines().partition(|l| l.starts_with("      Consensus: "));
        assert_eq!(same.join("\n").trim_end(), expected.trim_end(), "{case:?}");
        assert_eq!(added.len(), usize::from(report.ipam.is_some()), "{case:?}");
        let (expected, _) = page(&case, "status-targets.txt");
        assert_eq!(status::targets(&report).lines().collect::<Vec<_>>(), sorted(&expected), "{case:?}");
        let expected = page(&case, "status-connections.txt").0.replace("truemtu", "true mtu");
        assert_eq!(sorted(&status::connections(&report)), sorted(&expected), "{case:?}");
        let (expected, _) = page(&case, "status-peers.txt");
        assert_eq!(groups(&status::peers(&report)), groups(&expected), "{case:?}");
        for (text, name) in
            [(status::dns(&report), "status-dns.txt"), (status::ipam(&report), "status-ipam.txt")]
        {
            match page(&case, name) {
                (expected, 200) => assert_eq!(sorted(&text), sorted(&expected), "{case:?}"),
                (_, 500) => assert_eq!(text, "", "{case:?}: a service that is off"),
                (_, code) => panic!("{case:?}: {name} has status {code}"),
            }
        }
    }
}

#[test]
fn ourselves_come_first_in_the_shares() {
    let case = cases().into_iter().find(|c| c.ends_with("three-peers-host3")).unwrap();
    let report = Report::from_json(&read(&case, "report.json")).unwrap();
    let text = status::ipam(&report);
    assert!(text.starts_with("8a:3e:3e:3e:3e:03(host3)"), "{text}");
}

#[test]
fn additions_do_not_disturb() {
    let case = cases().into_iter().find(|c| c.ends_with("three-peers-host3")).unwrap();
    let mut report = Report::from_json(&read(&case, "report.json")).unwrap();
    report.router.connections[0].overlay_reason = Some("fastdp not offered by peer".into());
    let text = status::connections(&report);
    let line = text.lines().next().unwrap();
    assert!(line.ends_with(" mtu=1438 reason=\"fastdp not offered by peer\""), "{line}");
    report.router.drops.insert("no-route".into(), 3);
    let back = Report::from_json(&report.to_json()).unwrap();
    assert_eq!(back, report);
}
