//! Runs the commands of the guide, page by page. A block of commands that is not run says so: `<!-- not run: reason -->` stands before it.
//!
//! A command follows a prompt, `host1$ ` or `host1# `, or that of a container, `c1$ `. What follows the command is what it prints, with `...` for what may
//! be anything. Each host and container has one shell for the whole page.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use weave_lab::docker::Dockerd;
use weave_lab::{Background, Host, Lab, Topology};

use crate::common::*;

/// Pages with tests below, by their paths in the repository.
const RUN: [&str; 9] = [
    "README.md",
    "docs/guide/docker.md",
    "docs/guide/encryption.md",
    "docs/guide/expose.md",
    "docs/guide/ipam.md",
    "docs/guide/launch.md",
    "docs/guide/names.md",
    "docs/guide/networks.md",
    "docs/guide/support.md",
];

/// What is repeated until it succeeds, because it takes a moment to become true.
const REPEATED: [&str; 6] =
    ["ping", "echo", "weave status", "weave dns-lookup", "docker exec", "docker run --rm"];

/// A fenced block of a page.
#[derive(Debug, Default)]
struct Block {
    /// Where it begins.
    line: usize,
    language: String,
    /// The comment before it, without `<!-- ` and ` -->`.
    comment: Option<String>,
    lines: Vec<String>,
}

/// A command with its prompt and what it prints.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    place: String,
    command: String,
    output: Vec<String>,
}

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn read(page: &str) -> String {
    std::fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"))
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open, mut comment) = (Vec::new(), None::<Block>, None);
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => {
                let language = language.to_owned();
                open = Some(Block { line: index + 1, language, comment: comment.take(), lines: Vec::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.lines.push(line.to_owned()),
            (None, None) => {
                comment =
                    line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).map(str::to_owned);
            }
        }
    }
    assert!(open.is_none(), "a block does not end: {open:?}");
    blocks
}

impl Block {
    fn has_commands(&self) -> bool {
        matches!(self.language.as_str(), "" | "sh")
    }

    /// `None` if what it contains does not begin with a prompt.
    fn steps(&self) -> Option<Vec<Step>> {
        let mut steps: Vec<Step> = Vec::new();
        for line in &self.lines {
            let prompt = line.find(['$', '#']).map(|at| (&line[..at], &line[at + 1..]));
            let is_prompt = |place: &str, rest: &str| {
                let is_name = place.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
                is_name && !place.is_empty() && rest.starts_with(' ')
            };
            match prompt.filter(|(place, rest)| is_prompt(place, rest)) {
                Some((place, command)) => {
                    let (place, command) = (place.to_owned(), command[1..].to_owned());
                    steps.push(Step { place, command, output: Vec::new() });
                }
                None => steps.last_mut()?.output.push(line.clone()),
            }
        }
        Some(steps)
    }
}

fn pages() -> Vec<String> {
    let folder = root().join("docs/guide");
    let entries =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<_> =
        entries.filter(|name| name.ends_with(".md")).map(|name| format!("docs/guide/{name}")).collect();
    pages.push("README.md".to_owned());
    pages.sort();
    pages
}

#[test]
fn every_command_of_the_guide_is_run_or_says_why_not() {
    let tests = root().join("tests/lab/tests");
    let sources = std::fs::read_dir(tests)
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
    let sources: String = sources.collect();
    let mut run = Vec::new();
    for page in pages() {
        for block in blocks(&read(&page)).iter().filter(|block| block.has_commands()) {
            let place = format!("{page}:{}", block.line);
            let (kind, rest) = block.comment.as_deref().and_then(|c| c.split_once(": ")).unwrap_or_default();
            match kind {
                "not run" => assert!(rest.len() > 10, "{place}: no reason"),
                "script" => {
                    let chapter = page.trim_start_matches("docs/guide/").trim_end_matches(".md");
                    let call = format!("guide_script(\"{chapter}\", \"{rest}\")");
                    assert!(sources.contains(&call), "{place}: no test has {call}");
                }
                _ => {
                    assert!(
                        block.steps().is_some_and(|steps| !steps.is_empty()),
                        "{place}: no prompt, and not marked as not run"
                    );
                    run.push(page.clone());
                }
            }
        }
    }
    run.dedup();
    assert_eq!(run, RUN, "the pages that have tests");
}

#[test]
fn blocks_and_steps() {
    let text = "<!-- not run: because -->\n```sh\nx\n```\ntext\n```\nhost1$ a b\none\n...\nc1# d $ e\n```\n";
    let [first, second] = &blocks(text)[..] else { panic!("two blocks") };
    assert_eq!(
        (first.comment.as_deref(), first.line, first.steps().is_none()),
        (Some("not run: because"), 2, true)
    );
    let step = |place: &str, command: &str, output: &[&str]| Step {
        place: place.to_owned(),
        command: command.to_owned(),
        output: output.iter().map(|line| (*line).to_owned()).collect(),
    };
    assert_eq!(second.comment, None);
    assert_eq!(second.steps(), Some(vec![step("host1", "a b", &["one", "..."]), step("c1", "d $ e", &[])]));
    let printed = |printed: &str, expected: &[&str]| prints(printed, &step("h", "c", expected).output);
    assert!(printed("a\nx b y\nc\n", &["a", "... b ...", "c"]) && printed("a\n", &[]));
    assert!(printed("xb\n", &["...b..."]) && printed("xb\n", &["...b"]));
    assert!(!printed("a\nc\n", &["c", "a"]) && !printed("ab\n", &["a"]) && !printed("ab\n", &["b"]));
}

/// Whether the lines are printed in this order.
fn prints(printed: &str, expected: &[String]) -> bool {
    let mut lines = printed.lines();
    expected.iter().all(|expected| lines.any(|line| matches(line.trim_end(), expected)))
}

fn matches(line: &str, expected: &str) -> bool {
    let Some((start, end)) = expected.split_once("...") else { return line == expected };
    let Some(rest) = line.strip_prefix(start) else { return false };
    let mut places = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    places.any(|at| matches(&rest[at..], end))
}

/// A shell in a host or a container.
struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Shell {
    fn start(host: &Host, container: Option<&str>) -> Shell {
        let command = ["bash", "--norc", "-s"].map(str::to_owned);
        let mut process = host.interactive(container, "", &command);
        process.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut shell = Shell { child, input, lines };
        shell.run("cd /run; nc() { busybox nc \"$@\"; }; HOST2=198.18.0.2 HOST3=198.18.0.3").unwrap();
        shell
    }

    /// What a command prints, or fails with.
    fn run(&mut self, command: &str) -> Result<String, String> {
        let quoted = command.replace('\'', r"'\''");
        writeln!(self.input, "eval '{quoted}' < /dev/null 2>&1; echo \"@end $?\"").unwrap();
        let (mut text, deadline) = (String::new(), Instant::now() + LONG_TIMEOUT);
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|e| panic!("{command}: no end ({e}):\n{text}"));
            match line.split_once("@end ") {
                Some((rest, code)) => {
                    text.push_str(rest);
                    return if code == "0" { Ok(text) } else { Err(format!("{text}exit code {code}")) };
                }
                None => text.push_str(&format!("{line}\n")),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the commands of a page. `places` are prompts other than `host1`, with a host and, in it, a container. Docker's containers end with
/// each block, so that another one may use their names.
fn run_page(page: &str, lab: &Lab, places: &[(&str, &str, Option<&str>)], dockers: &[Dockerd<'_>]) {
    for host in lab.hosts() {
        host.sh("for n in 1 2 3 4; do echo \"198.18.0.$n host$n\"; done >> /etc/hosts");
    }
    for block in blocks(&read(page)).iter().filter(|block| block.has_commands() && block.comment.is_none()) {
        let mut shells: BTreeMap<String, Shell> = BTreeMap::new();
        for Step { place, command, output } in block.steps().unwrap() {
            step(format!("{page}:{}: {place}$ {command}", block.line).leak());
            let shell = shells.entry(place.clone()).or_insert_with(|| {
                let named = places.iter().find(|(name, ..)| *name == place);
                match named {
                    Some((_, host, container)) => Shell::start(lab.host(host), *container),
                    None => Shell::start(lab.host(&place.replace("host", "h")), None),
                }
            });
            let mut attempt = || match shell.run(&command) {
                Ok(text) if prints(&text, &output) => Ok(()),
                Ok(text) => Err(format!("{text}\ninstead of {output:#?}")),
                Err(text) => Err(text),
            };
            if REPEATED.iter().any(|start| command.starts_with(start)) {
                lab.hosts()[0].wait(&command, LONG_TIMEOUT, attempt);
            } else {
                attempt().unwrap_or_else(|text| panic!("{text}"));
            }
        }
        for docker in dockers {
            let all = docker.ok(&["ps", "-aq"]);
            let ids: Vec<&str> = all.lines().collect();
            if !ids.is_empty() {
                docker.ok(&[&["rm", "-f"], &ids[..]].concat());
            }
        }
    }
}

/// Docker on all hosts, with images `alpine` and `nginx` of the programs of this machine; the second one runs until it is stopped.
fn with_docker(lab: &Lab) -> Option<Vec<Dockerd<'_>>> {
    let dockers = lab.hosts().iter().map(Dockerd::start_with_bridge).collect::<Option<Vec<_>>>()?;
    for docker in &dockers {
        // Where Docker has its configuration elsewhere than in the lab.
        docker.host().sh("mkdir -p /etc/docker && mount --bind /etc/docker-lab /etc/docker");
        docker.import_image("alpine");
        let container = docker.ok(&["create", "alpine"]);
        docker.ok(&["commit", "--change", r#"CMD ["sleep", "1000000"]"#, &container, "nginx"]);
        docker.ok(&["rm", &container]);
    }
    Some(dockers)
}

/// A server that sends back what it receives.
fn echo(host: &Host, container: Option<&str>, port: u16) -> Background {
    let port = port.to_string();
    let serve = ["busybox", "nc", "-ll", "-p", &port, "-e", "cat"];
    let enter = container
        .map(|name| ["nsenter".to_owned(), format!("--net=/run/netns/{name}")])
        .into_iter()
        .flatten();
    let argv: Vec<String> = enter.chain(serve.map(str::to_owned)).collect();
    host.background(&argv.iter().map(String::as_str).collect::<Vec<_>>(), false).unwrap()
}

#[test]
fn launch_page() {
    let Some(lab) = Lab::start("guidelaunch", &Topology::hosts(3)) else { return };
    run_page("docs/guide/launch.md", &lab, &[], &[]);
}

#[test]
fn ipam_page() {
    let Some(lab) = Lab::start("guideipam", &Topology::hosts(2)) else { return };
    run_page("docs/guide/ipam.md", &lab, &[], &[]);
}

#[test]
fn encryption_page() {
    let Some(lab) = Lab::start("guidepassword", &Topology::hosts(2)) else { return };
    run_page("docs/guide/encryption.md", &lab, &[], &[]);
}

#[test]
fn support_page() {
    let Some(lab) = Lab::start("guidesupport", &Topology::hosts(1)) else { return };
    launch(lab.host("h1"), &[], &[]);
    run_page("docs/guide/support.md", &lab, &[], &[]);
}

#[test]
fn expose_page() {
    let Some(lab) = Lab::start("guideexpose", &Topology::hosts(4)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|host| lab.host(host));
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    let _members = attach_each(&[h1, h2]);
    let _servers = [echo(h1, Some("c1"), 4422), echo(h3, None, 2211)];
    run_page("docs/guide/expose.md", &lab, &[("c1", "h1", Some("c1")), ("world", "h4", None)], &[]);
}

/// Runs a page about Docker on two hosts whose peers run.
fn docker_page(name: &str, page: &str) {
    let Some(lab) = Lab::start(name, &Topology::hosts(2)) else { return };
    let Some(dockers) = with_docker(&lab) else { return };
    launch_mesh(&lab, &[]);
    run_page(page, &lab, &[], &dockers);
}

#[test]
fn networks_page() {
    docker_page("guidenetworks", "docs/guide/networks.md");
}

#[test]
fn names_page() {
    docker_page("guidenames", "docs/guide/names.md");
}

#[test]
fn page_about_docker() {
    docker_page("guidedocker", "docs/guide/docker.md");
}

#[test]
fn readme() {
    let Some(lab) = Lab::start("readme", &Topology::hosts(2)) else { return };
    let Some(dockers) = with_docker(&lab) else { return };
    run_page("README.md", &lab, &[], &dockers);
}
