//! Meshes of many real daemons on one machine: how long they need, what they cost when nothing happens, and after failures.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::figures::{Bar, Figure, Unit};
use super::{cleanup, peer, print_progress};
use crate::{Host, Lab};

/// Numbers of peers, and the seconds that they may need for a full mesh.
const MESHES: [(usize, f64); 3] = [(50, 60.0), (100, 60.0), (150, 120.0)];
/// MTU of a connection by each overlay: an underlay of 1500 bytes, containers of 1376, without a password.
const MTUS: [(&str, &str); 3] = [(" fastdp ", "mtu=1376"), (" warp ", "mtu=1412"), (" sleeve ", "mtu=1438")];
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Time after the mesh is complete in which gossip of the topology ends.
const REST: Duration = Duration::from_secs(15);
const IDLE_BAR: f64 = 0.003;
const MEMORY_BAR: f64 = 20e6;
const SETTLE_BAR: f64 = 10.0;
/// Daemons that are killed, and links that are cut.
const FAILURES: usize = 10;
/// `weave launch` processes that run at the same time.
const LAUNCHERS: usize = 4;
const FORM_TIMEOUT: Duration = Duration::from_secs(600);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(90);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The numbers of peers to measure: those that are wanted, or all.
pub(super) fn sizes(wanted: &[usize]) -> Result<Vec<usize>> {
    for size in wanted {
        ensure!(MESHES.iter().any(|(known, _)| known == size), "no mesh of {size} peers is measured");
    }
    let all = MESHES.iter().map(|(size, _)| *size);
    Ok(all.filter(|size| wanted.is_empty() || wanted.contains(size)).collect())
}

/// A daemon, observed from outside of its host without a process for each look.
struct Daemon<'a> {
    host: &'a Host,
    /// `/proc/<pid>` of the daemon in the mount namespace of its host.
    proc: PathBuf,
}

/// Sums over the threads of a daemon since its start.
#[derive(Clone, Copy)]
struct Usage {
    seconds: f64,
    wakeups: f64,
}

impl Daemon<'_> {
    fn of(host: &Host) -> Result<Daemon<'_>> {
        let root = PathBuf::from(format!("/proc/{}/root", host.pid()));
        let file = root.join("run/weave/weave.pid");
        let pid =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Daemon { host, proc: root.join("proc").join(pid.trim()) })
    }

    /// The page `weave status connections`.
    fn connections(&self) -> Result<String> {
        let socket = format!("/proc/{}/root/run/weave/control.sock", self.host.pid());
        let mut stream =
            UnixStream::connect(&socket).with_context(|| format!("cannot connect to {socket}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET /status/connections HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// Numbers of established connections, and of those among them with the true MTU.
    fn established(&self) -> Result<(usize, usize)> {
        let page = self.connections()?;
        let established = page.lines().filter(|line| line.contains(" established "));
        let is_right =
            |line: &&str| MTUS.iter().any(|(overlay, mtu)| line.contains(overlay) && line.contains(mtu));
        Ok((established.clone().count(), established.filter(is_right).count()))
    }

    fn usage(&self) -> Result<Usage> {
        let mut usage = Usage { seconds: 0.0, wakeups: 0.0 };
        for thread in std::fs::read_dir(self.proc.join("task"))? {
            let thread = thread?.path();
            let ran = std::fs::read_to_string(thread.join("schedstat"))?;
            let status = std::fs::read_to_string(thread.join("status"))?;
            let ran = ran.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
            usage.seconds += ran.context("this kernel keeps no schedstat")? / 1e9;
            usage.wakeups += field(&status, "voluntary_ctxt_switches:")?;
        }
        Ok(usage)
    }

    fn memory(&self) -> Result<f64> {
        Ok(field(&std::fs::read_to_string(self.proc.join("status"))?, "VmRSS:")? * 1024.0)
    }
}

fn field(text: &str, key: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse().ok());
    number.with_context(|| format!("no {key} in {text}"))
}

/// Figures of a mesh of one of the [`sizes`].
pub(super) fn figures(weave: &Path, size: usize) -> Result<Vec<Figure>> {
    let bar = MESHES.iter().find(|(known, _)| *known == size).map_or(f64::INFINITY, |(_, bar)| *bar);
    print_progress(&format!("{size} hosts"));
    let lab = cleanup::lab(size)?;
    print_progress(&format!("{size} daemons"));
    let begin = Instant::now();
    launch(weave, lab.hosts())?;
    let launched = begin.elapsed().as_secs_f64();
    let daemons = lab.hosts().iter().map(Daemon::of).collect::<Result<Vec<_>>>()?;
    let expected = vec![size - 1; size];
    let complete = wait_established(&daemons, &expected, begin, FORM_TIMEOUT)?;
    let formed = begin.elapsed().as_secs_f64();
    let started = usages(&daemons)?;
    let right = complete.iter().map(|(_, right)| right).sum::<usize>();
    let wrong = |right: usize| (size * (size - 1) - right) as f64;
    print_progress(&format!("rest, then idle for {} s", IDLE_TIME.as_secs()));
    std::thread::sleep(REST);
    let before = usages(&daemons)?;
    std::thread::sleep(IDLE_TIME);
    let after = usages(&daemons)?;
    let per_second = |value: fn(&Usage) -> f64| -> Vec<f64> {
        let pairs = after.iter().zip(&before);
        pairs.map(|(after, before)| (value(after) - value(before)) / IDLE_TIME.as_secs_f64()).collect()
    };
    let memory = daemons.iter().map(Daemon::memory).collect::<Result<Vec<_>>>()?;
    let later = daemons.iter().map(|daemon| Ok(daemon.established()?.1)).sum::<Result<usize>>()?;
    print_progress(&format!("{FAILURES} daemons are killed, {FAILURES} links are cut"));
    let settled = fail(&lab, &daemons)?;
    let name = |what: &str| format!("{size} peers: {what}");
    let most = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
    Ok(vec![
        Figure::new(&name("all launched"), Unit::Seconds, vec![launched]),
        Figure::new(&name("full mesh"), Unit::Seconds, vec![formed]).bar(Bar::AtMost(bar)),
        Figure::new(
            &name("processor time until then, each"),
            Unit::Seconds,
            started.iter().map(|usage| usage.seconds).collect(),
        ),
        Figure::new(&name("ends without the true MTU then"), Unit::Count, vec![wrong(right)]),
        Figure::new(&name("ends without the true MTU, idle"), Unit::Count, vec![wrong(later)])
            .bar(Bar::AtMost(0.0)),
        Figure::new(&name("idle, of a processor each"), Unit::Share, per_second(|usage| usage.seconds))
            .bar(Bar::AtMost(IDLE_BAR)),
        Figure::new(&name("wake-ups, each"), Unit::PerSecond, per_second(|usage| usage.wakeups)),
        Figure::new(&name("memory, VmRSS, the largest"), Unit::Bytes, vec![most(memory)])
            .bar(Bar::AtMost(MEMORY_BAR)),
        Figure::new(&name("settled after failures"), Unit::Seconds, vec![settled])
            .bar(Bar::AtMost(SETTLE_BAR)),
    ])
}

/// Launches the first daemon, then the others with its address.
fn launch(weave: &Path, hosts: &[Host]) -> Result<()> {
    let run = |host: &Host, args: &[&str]| -> Result<()> {
        let outcome = peer::weave(host, weave, args);
        if !outcome.success() {
            cleanup::unless_interrupted();
            bail!("{}: {outcome}", host.name());
        }
        Ok(())
    };
    let [first, others @ ..] = hosts else { return Ok(()) };
    run(first, &["launch", "--no-restart"])?;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let launcher = || {
            while let Some(host) = others.get(next.fetch_add(1, Ordering::Relaxed)) {
                run(host, &["launch", "--no-restart", first.name()])?;
            }
            Ok(())
        };
        let launchers: Vec<_> = (0..LAUNCHERS).map(|_| scope.spawn(launcher)).collect();
        launchers.into_iter().try_for_each(|l| l.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })
}

fn usages(daemons: &[Daemon<'_>]) -> Result<Vec<Usage>> {
    daemons.iter().map(Daemon::usage).collect()
}

/// Waits until each daemon has exactly the expected number of established connections, all in one round of looks. Returns
/// what [`Daemon::established`] gave in that round.
fn wait_established(
    daemons: &[Daemon<'_>],
    expected: &[usize],
    begin: Instant,
    timeout: Duration,
) -> Result<Vec<(usize, usize)>> {
    // Daemons that have not been seen complete yet; looks cost them time.
    let mut waiting: Vec<usize> = (0..daemons.len()).collect();
    let mut shown = Instant::now();
    loop {
        let mut missing = 0;
        let mut still = Vec::new();
        for &i in &waiting {
            let have = daemons[i].established()?.0;
            if have != expected[i] {
                missing += expected[i].abs_diff(have);
                still.push(i);
                // One is enough to know that the mesh is incomplete.
                if still.len() >= 3 {
                    still.extend(waiting.iter().skip_while(|&&j| j != i).skip(1));
                    break;
                }
            }
        }
        waiting = still;
        if waiting.is_empty() {
            let all = daemons.iter().map(Daemon::established).collect::<Result<Vec<_>>>()?;
            if all.iter().zip(expected).all(|((have, _), expected)| have == expected) {
                return Ok(all);
            }
            waiting = (0..daemons.len()).collect();
        }
        if begin.elapsed() >= timeout {
            cleanup::unless_interrupted();
            bail!("{} daemons are not connected as expected after {timeout:?}", waiting.len());
        }
        if shown.elapsed() >= Duration::from_secs(5) {
            shown = Instant::now();
            let names: Vec<&str> = waiting.iter().take(3).map(|&i| daemons[i].host.name()).collect();
            print_progress(&format!(
                "{} of {} incomplete, {missing} connections at {}",
                waiting.len(),
                daemons.len(),
                names.join(" ")
            ));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Kills the last daemons and cuts links between others at the same time. Returns the seconds until each of the remaining daemons
/// has exactly the connections that are possible.
fn fail(lab: &Lab, daemons: &[Daemon<'_>]) -> Result<f64> {
    let remaining = daemons.len() - FAILURES;
    let mut expected = vec![remaining - 1; remaining];
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for daemon in &daemons[remaining..] {
            scope.spawn(|| daemon.host.signal_daemon("KILL"));
        }
        for i in 0..FAILURES {
            let (a, b) = (2 * i, 2 * i + 1);
            lab.cut(daemons[a].host.name(), daemons[b].host.name());
            expected[a] -= 1;
            expected[b] -= 1;
        }
    });
    wait_established(&daemons[..remaining], &expected, begin, SETTLE_TIMEOUT)?;
    Ok(begin.elapsed().as_secs_f64())
}
