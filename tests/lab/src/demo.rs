//! `lab demo`: shows the network in a minute, step by step, and leaves it up.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::host::Container;
use crate::host::Host;
use crate::lab::{Lab, Topology};
use crate::state::LabState;
use crate::wait::within;

/// Id of the lab.
const ID: &str = "demo";
/// Sent between containers and searched for on the wire.
const SECRET: &[u8] = b"who is there?";
/// Timeout of steps that wait for the network to notice a change.
const STEP_TIMEOUT: Duration = Duration::from_secs(100);

/// Shows the network. With `check`, removes the lab at the end.
pub fn demo(check: bool) -> Result<()> {
    let start = Instant::now();
    if LabState::load(ID).is_ok() {
        say("The lab of an earlier demo is still up; replacing it.");
        down()?;
    }
    if let Err(e) = run() {
        if let Ok(lab) = Lab::open(ID) {
            eprintln!("{}", lab.diagnostics());
        }
        return Err(e);
    }
    println!("\n{}", bold(&format!("Done in {:.0} s.", start.elapsed().as_secs_f64())));
    if check {
        return down();
    }
    print_next();
    Ok(())
}

/// Removes the lab of the demo.
pub fn down() -> Result<()> {
    match LabState::load(ID) {
        Ok(state) => state.remove(),
        Err(_) => {
            say("No demo is up.");
            Ok(())
        }
    }
}

fn run() -> Result<()> {
    step("Three hosts on one wire, each a set of network namespaces on this machine");
    let lab = Lab::create(ID, &Topology::hosts(3), true)?;
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|name| lab.host(name));
    for host in lab.hosts() {
        say(&format!("{} {}", host.name(), host.ip()));
    }

    step("Weave on each of them; h2 and h3 are launched with the address of h1 and find each other");
    weave(h1, &["launch"])?;
    weave(h2, &["launch", "h1"])?;
    weave(h3, &["launch", "h1"])?;
    wait_mesh(&lab)?;
    weave(h3, &["status", "connections"])?;

    step("A container on each host, all in 10.2.1.0/24");
    let mut containers = Vec::new();
    for (i, host) in lab.hosts().iter().enumerate() {
        let container = host.try_container(&format!("c{}", i + 1))?;
        weave(host, &["attach", &format!("10.2.1.{}/24", i + 1), &container.netns()])?;
        containers.push(container);
    }
    let [c1, _, c3] = &containers[..] else { bail!("not three containers") };
    ping(c1, "10.2.1.2")?;
    ping(c1, "10.2.1.3")?;

    step("Names: two containers are called web, on h1 and h2; c3 asks the peer of its host");
    weave(h3, &["expose", "10.2.1.103/24"])?;
    let mut webs = Vec::new();
    for (host, ip) in [(h1, "10.2.1.11"), (h2, "10.2.1.12")] {
        let web = host.try_container(&format!("web-{}", host.name()))?;
        weave(host, &["attach", &format!("{ip}/24"), "--name", "web.weave.local", &web.netns()])?;
        webs.push(web);
    }
    let found = resolve(c3, 2)?;
    say(&format!("web.weave.local has the addresses {}", found.join(" ")));
    ping(c3, &found[0])?;
    say("the container on h1 ends");
    webs.remove(0).end();
    let end = Instant::now();
    let found = resolve(c3, 1)?;
    say(&format!("web.weave.local is {}, {:.1} s later", found.join(" "), end.elapsed().as_secs_f64()));
    ping(c3, &found[0])?;

    step("The link between h1 and h3 is cut while c1 and c3 talk: h2 relays");
    let chat = c1.chat(c3, "10.2.1.3", 20);
    command("lab cut h1 h3");
    lab.cut("h1", "h3");
    let (h2_name, h3_name) = (peer_name(h2)?, peer_name(h3)?);
    let cut = Instant::now();
    wait("h1 to send over h2", || via(h1, &h3_name).is_ok_and(|via| via == h2_name))?;
    ping(c1, "10.2.1.3")?;
    say(&format!("c1 reaches c3 over h2, {:.1} s after the cut", cut.elapsed().as_secs_f64()));
    weave(h1, &["status", "connections"])?;
    command("lab heal h1 h3");
    lab.heal("h1", "h3");
    let heal = Instant::now();
    wait("h1 to send directly", || via(h1, &h3_name).is_ok_and(|via| via == h3_name))?;
    say(&format!("directly again, {:.1} s after the link is back", heal.elapsed().as_secs_f64()));

    step("The peer on h2 is restarted under the same traffic");
    let around = containers[1].chat(c3, "10.2.1.3", 20);
    weave(h2, &["stop"])?;
    weave(h2, &["launch", "h1"])?;
    wait_mesh(&lab)?;
    ping(&containers[1], "10.2.1.3")?;
    for (chat, who) in [(chat, "c1 - c3"), (around, "c2 - c3")] {
        let talk = chat.finish();
        match talk.broken {
            None => say(&format!(
                "TCP {who}: one connection throughout, {} messages, longest pause {:.1} s",
                talk.messages,
                talk.longest_gap_ms / 1000.0
            )),
            Some(reason) => bail!("TCP {who} broke: {reason}"),
        }
    }

    step("Without a password, everything can be read on the wire");
    say(&format!(
        "frames with the text \"{}\": {}",
        String::from_utf8_lossy(SECRET),
        count_secret(&lab, &containers)?
    ));

    step("The same network with a password");
    for host in lab.hosts() {
        weave(host, &["stop"])?;
    }
    weave(h1, &["launch", "--password", "wEaVe"])?;
    weave(h2, &["launch", "--password", "wEaVe", "h1"])?;
    weave(h3, &["launch", "--password", "wEaVe", "h1"])?;
    wait_mesh(&lab)?;
    weave(h1, &["status", "connections"])?;
    ping(c1, "10.2.1.2")?;
    ping(c1, "10.2.1.3")?;
    let seen = count_secret(&lab, &containers)?;
    say(&format!("frames with the text \"{}\": {seen}", String::from_utf8_lossy(SECRET)));
    if seen != 0 {
        bail!("the wire is readable in spite of the password");
    }
    Ok(())
}

fn print_next() {
    let lab = std::env::current_exe().map_or_else(|_| "lab".to_owned(), |p| p.display().to_string());
    println!("\nThe network is still up. To try next:\n");
    for (command, what) in [
        ("shell h1", "a shell on h1: weave status, weave status peers, ip addr, ..."),
        ("enter h1 c1", "a shell in container c1: ping 10.2.1.3"),
        ("cut h1 h3", "nothing passes between h1 and h3; ping on and see"),
        ("heal h1 h3", "ends the cut"),
        ("run-container h2 web", "one more container; attach it with"),
        ("shell h2 -- weave attach 10.2.1.9/24 netns:web", ""),
        ("demo-down", "removes the lab (also: make demo-down)"),
    ] {
        println!("  {lab} {command:<48} {what}");
    }
    println!();
}

/// Sends [`SECRET`] from c1 to c3 and counts the frames on the wire that contain it.
fn count_secret(lab: &Lab, containers: &[Container]) -> Result<usize> {
    let capture = lab.wire().capture("h3");
    let _server = containers[2].listen_cast(None);
    let answered = containers[0].cast("10.2.1.3", 1);
    if answered != ["10.2.1.3"] {
        bail!("c3 did not answer");
    }
    Ok(capture.finish().count(SECRET))
}

fn wait_mesh(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        wait(&format!("the connections of {}", host.name()), || {
            host.connections().iter().filter(|c| c.state == "established").count() == lab.hosts().len() - 1
        })?;
    }
    Ok(())
}

fn peer_name(host: &Host) -> Result<String> {
    let report = host.report().map_err(anyhow::Error::msg)?;
    Ok(report["Router"]["Name"].as_str().context("a report without a name")?.to_owned())
}

/// The neighbour over which a host sends to a peer.
fn via(host: &Host, to: &str) -> Result<String> {
    let report = host.report().map_err(anyhow::Error::msg)?;
    let routes = report["Router"]["UnicastRoutes"].as_array().context("no routes")?;
    let route = routes.iter().find(|r| r["Dest"] == to).context("no route")?;
    Ok(route["Via"].as_str().unwrap_or_default().to_owned())
}

fn ping(from: &Container, to: &str) -> Result<()> {
    let (host, name) = (from.host().name(), from.name());
    wait(&format!("an answer of {to}"), || from.ping(to, 1).received == 1)?;
    let pings = from.ping(to, 3);
    say(&format!(
        "{} {name}@{host}$ ping {to}: {} of {} answered, {:.2} ms",
        if pings.received == pings.sent { "ok " } else { "BAD" },
        pings.received,
        pings.sent,
        pings.median_ms
    ));
    if pings.received == 0 {
        bail!("{name} does not reach {to}");
    }
    Ok(())
}

/// Asks the peer of h3 for the addresses of `web.weave.local` until there are so many.
fn resolve(from: &Container, count: usize) -> Result<Vec<String>> {
    let until = count.to_string();
    let answer =
        from.probe(&["dns-query", "10.2.1.103", "web.weave.local", "--until", &until, "--wait-ms", "20000"]);
    let records = answer["records"].as_array().cloned().unwrap_or_default();
    let found: Vec<String> = records.iter().filter_map(|r| r.as_str().map(str::to_owned)).collect();
    if found.len() != count {
        bail!("web.weave.local has not {count} addresses: {answer}");
    }
    Ok(found)
}

fn wait(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    within(what, STEP_TIMEOUT, condition).map_err(anyhow::Error::msg)
}

/// Runs `weave` and shows the command and its output.
fn weave(host: &Host, args: &[&str]) -> Result<()> {
    command(&format!("{}$ weave {}", host.name(), args.join(" ")));
    let outcome = host.weave(args);
    for line in outcome.stdout.lines().chain(outcome.stderr.lines()).filter(|l| !l.trim().is_empty()) {
        println!("      {line}");
    }
    if !outcome.success() {
        bail!("{outcome}");
    }
    Ok(())
}

fn step(title: &str) {
    println!("\n{}", bold(title));
}

fn command(line: &str) {
    println!("    {line}");
}

fn say(line: &str) {
    println!("    {line}");
}

fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { format!("== {text}") }
}
