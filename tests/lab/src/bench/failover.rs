//! How long containers hear nothing of each other when a link is cut, and when a daemon restarts.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::figures::{Bar, Figure, Unit};
use super::{cleanup, peer, print_progress, succeed};
use crate::{Container, Host, Lab};

/// Milliseconds between the pings.
const PING_INTERVAL: u32 = 10;
const CUTS: u32 = 20;
const RESTARTS: u32 = 10;
/// After a cut or a restart.
const OBSERVATION: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(30);
const CUT_BAR: f64 = 1.0;
/// Of 95 % of the cuts.
const SLOW_CUT_BAR: f64 = 1.5;
const RESTART_BAR: f64 = 0.3;

/// What carries the frames, and how daemons are launched so that it does.
struct Way {
    name: &'static str,
    options: &'static [&'static str],
}

const SLEEVE: Way = Way { name: "sleeve", options: &["--overlays=sleeve"] };
const FASTDP: Way = Way { name: "fastdp", options: &[] };
const WARP: Way = Way { name: "warp, encrypted", options: &["--password", "bench"] };

/// Three hosts with a container each.
struct Mesh<'a> {
    weave: &'a Path,
    way: &'a Way,
    containers: Vec<Container>,
    lab: Lab,
}

impl Mesh<'_> {
    fn start<'a>(weave: &'a Path, way: &'a Way) -> Result<Mesh<'a>> {
        let lab = cleanup::lab(3)?;
        let containers = lab.hosts().iter().map(|host| host.try_container("c")).collect::<Result<_>>()?;
        let mesh = Mesh { weave, way, containers, lab };
        for (i, (host, container)) in mesh.lab.hosts().iter().zip(&mesh.containers).enumerate() {
            mesh.launch(host)?;
            let address = format!("{}/24", address(i));
            succeed(peer::weave(host, weave, &["attach", &address, &container.netns()]))?;
        }
        Ok(mesh)
    }

    fn launch(&self, host: &Host) -> Result<()> {
        let others = self.lab.hosts().iter().map(Host::name).filter(|name| *name != host.name());
        let args: Vec<&str> =
            ["launch"].into_iter().chain(self.way.options.iter().copied()).chain(others).collect();
        succeed(peer::weave(host, self.weave, &args)).map(drop)
    }

    /// Waits until all connections are established and use the overlay.
    fn wait_complete(&self) -> Result<()> {
        let overlay = self.way.name.split(',').next().unwrap_or_default();
        let begin = Instant::now();
        loop {
            let complete = |host: &Host| {
                let list = peer::weave(host, self.weave, &["status", "connections"]).stdout;
                let ready = |line: &&str| line.contains(" established ") && line.contains(overlay);
                list.lines().filter(ready).count() == self.lab.hosts().len() - 1
            };
            if self.lab.hosts().iter().all(complete) {
                return Ok(());
            }
            ensure!(begin.elapsed() < TIMEOUT, "the mesh is not complete after {TIMEOUT:?}");
            sleep(Duration::from_millis(100));
        }
    }

    /// The longest time without an answer, seconds, while `event` happens.
    fn gap_during(&self, event: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.wait_complete()?;
        let (container, to) = (&self.containers[0], address(2));
        container.reaches(&to, TIMEOUT);
        sleep(OBSERVATION);
        let pinger = container.pinging(&to, PING_INTERVAL);
        sleep(OBSERVATION / 4);
        event()?;
        sleep(OBSERVATION);
        let pings = pinger.finish();
        if pings.received == 0 {
            bail!("no ping is answered");
        }
        Ok(pings.longest_gap_ms / 1e3)
    }
}

/// Gaps after silent cuts of the link between two of three hosts, and after restarts of a daemon.
pub(super) fn figures(weave: &Path) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for way in [&SLEEVE, &FASTDP, &WARP] {
        let mesh = Mesh::start(weave, way)?;
        let (h1, h3) = (mesh.lab.host("h1"), mesh.lab.host("h3"));
        let mut gaps = Vec::new();
        for cut in 1..=CUTS {
            print_progress(&format!("{}, cut {cut} of {CUTS}", way.name));
            gaps.push(mesh.gap_during(|| {
                mesh.lab.cut("h1", "h3");
                Ok(())
            })?);
            mesh.lab.heal("h1", "h3");
            // A new connection, because a path that fails again and again is used less and less.
            succeed(peer::weave(h1, weave, &["stop"]))?;
            mesh.launch(h1)?;
        }
        let name = format!("silence after a cut, {}", way.name);
        let slow = percentile(&gaps, 95);
        figures.push(Figure::new(&name, Unit::Seconds, gaps).bar(Bar::AtMost(CUT_BAR)));
        figures.push(
            Figure::new(&format!("{name}, 95 %"), Unit::Seconds, vec![slow]).bar(Bar::AtMost(SLOW_CUT_BAR)),
        );
        if way.name == WARP.name {
            continue;
        }
        let restarts = |what: &str, restart: &dyn Fn() -> Result<()>| -> Result<Figure> {
            let mut gaps = Vec::new();
            for round in 1..=RESTARTS {
                print_progress(&format!("{}, {what} {round} of {RESTARTS}", way.name));
                gaps.push(mesh.gap_during(restart)?);
            }
            let name = format!("silence during {what}, {}", way.name);
            Ok(Figure::new(&name, Unit::Seconds, gaps).bar(Bar::AtMost(RESTART_BAR)))
        };
        figures.push(restarts("stop and launch", &|| {
            succeed(peer::weave(h3, weave, &["stop"]))?;
            mesh.launch(h3)
        })?);
        figures.push(restarts("SIGKILL", &|| {
            h3.signal_daemon("KILL");
            Ok(())
        })?);
    }
    Ok(figures)
}

fn address(host: usize) -> String {
    format!("10.2.1.{}", host + 1)
}

fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
