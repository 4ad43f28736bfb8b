//! One peer: launch time, memory, processor time, size.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{cleanup, succeed};
use crate::programs::lab_binary;
use crate::{Host, Outcome};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The program to measure: `WEAVE_BIN`, else the one beside this program.
pub(super) fn program() -> Result<PathBuf> {
    let path = match std::env::var_os("WEAVE_BIN") {
        Some(path) => PathBuf::from(path),
        None => lab_binary()?.with_file_name("weave"),
    };
    path.canonicalize().with_context(|| {
        format!("no `{}`: cargo build --release -p weave-cli -p weave-lab, or set WEAVE_BIN", path.display())
    })
}

/// Runs `weave` in a host.
pub(super) fn weave(host: &Host, program: &Path, args: &[&str]) -> Outcome {
    let program = program.to_string_lossy();
    let mut argv = vec![&*program];
    argv.extend(args);
    host.command_with(&[], &argv, COMMAND_TIMEOUT)
}

/// Seconds from fork to the end of `weave launch`, on a host without any state of weave.
pub(super) fn launches(runs: u32, program: &Path) -> Result<Vec<f64>> {
    let lab = cleanup::lab(1)?;
    let host = lab.host("h1");
    let name = program.to_string_lossy();
    let mut times = Vec::new();
    for _ in 0..runs {
        // The end is not polled for; the time includes entering the namespaces of the host.
        let mut command = host.enter(&[&name, "launch"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let begin = Instant::now();
        let status = command.status().context("cannot start nsenter (package util-linux)")?;
        times.push(begin.elapsed().as_secs_f64());
        ensure!(status.success(), "`weave launch` failed: {status}");
        succeed(weave(host, program, &["reset", "--force"]))?;
    }
    Ok(times)
}

/// Status reads and allocations per second (by their medians) on one connection, for each round.
pub(super) fn allocations(runs: u32, program: &Path) -> Result<Vec<(f64, f64)>> {
    let lab = cleanup::lab(1)?;
    let host = lab.host("h1");
    succeed(weave(host, program, &["launch", "--no-restart"]))?;
    let mut rounds = Vec::new();
    for round in 0..runs {
        let result = host.probe(&["http-rates", "--prefix", &format!("r{round}-")]);
        let figure = |key: &str| result[key].as_f64().with_context(|| format!("no {key} in {result}"));
        rounds.push((figure("status")?, figure("allocate")?));
    }
    Ok(rounds)
}

/// The daemon's pid inside its host.
pub(super) fn daemon_pid(host: &Host) -> Result<i32> {
    host.daemon_pid().with_context(|| format!("no daemon runs on {}", host.name()))
}

/// Bytes.
pub(super) struct Memory {
    /// All resident pages.
    pub(super) resident: f64,
    /// Shared pages count in part, divided by the number of their users.
    pub(super) share: f64,
    /// Heap and stacks, without the program file.
    pub(super) anonymous: f64,
}

pub(super) fn memory(host: &Host, pid: i32) -> Result<Memory> {
    let status = succeed(host.command(&["cat", &format!("/proc/{pid}/status")]))?;
    let rollup = succeed(host.command(&["cat", &format!("/proc/{pid}/smaps_rollup")]))?;
    Ok(Memory {
        resident: kilobytes(&status, "VmRSS:")?,
        share: kilobytes(&rollup, "Pss:")?,
        anonymous: kilobytes(&rollup, "Anonymous:")?,
    })
}

fn kilobytes(text: &str, key: &str) -> Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
    Ok(number.with_context(|| format!("no {key} in {text}"))? * 1024.0)
}

/// The share of one processor that the threads of a process use during `time`.
pub(super) fn processor_share(host: &Host, pid: i32, time: Duration) -> Result<f64> {
    let before = processor_time(host, pid)?;
    let begin = Instant::now();
    std::thread::sleep(time);
    let after = processor_time(host, pid)?;
    Ok((after - before) / begin.elapsed().as_secs_f64())
}

/// Seconds, from the schedstat of the kernel, because clock ticks are too coarse for an idle process.
fn processor_time(host: &Host, pid: i32) -> Result<f64> {
    let text = succeed(host.command(&["sh", "-c", &format!("cat /proc/{pid}/task/*/schedstat")]))?;
    let mut sum = 0;
    for line in text.lines() {
        let ran: Option<u64> = line.split_whitespace().next().and_then(|n| n.parse().ok());
        sum += ran.with_context(|| format!("not a schedstat: {line}"))?;
    }
    if sum == 0 {
        bail!("this kernel keeps no schedstat");
    }
    Ok(sum as f64 / 1e9)
}

/// Size of the program, and of the static programs that `make static` built.
pub(super) fn sizes(program: &Path) -> Result<Vec<(String, u64)>> {
    let mut sizes = vec![(format!("size of the binary ({})", profile(program)), program.metadata()?.len())];
    let target = program.parent().and_then(Path::parent);
    for entry in target.map(std::fs::read_dir).transpose()?.into_iter().flatten().flatten() {
        if let Ok(file) = entry.path().join("release/weave").metadata() {
            sizes.push((format!("size of the static binary ({})", entry.file_name().display()), file.len()));
        }
    }
    Ok(sizes)
}

/// The cargo profile, from the name of the folder.
pub(super) fn profile(program: &Path) -> String {
    let folder = program.parent().and_then(Path::file_name);
    folder.map_or_else(|| "unknown build".to_owned(), |name| name.to_string_lossy().into_owned())
}
