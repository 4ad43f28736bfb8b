//! Running commands with deadlines, in the foreground and in the background.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Timeout of commands that specify none.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// The output of a command must end within this time after the command; otherwise a process that it started keeps it open.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(3);

/// Exit code and output of a command.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub command: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// The command was killed at its deadline.
    pub timed_out: bool,
    pub took: Duration,
}

impl Outcome {
    /// Exit code 0 before the deadline.
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }

    /// Standard output; panics if the command failed.
    #[track_caller]
    pub fn expect_ok(self) -> String {
        assert!(self.success(), "command failed\n{self}");
        self.stdout
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = match (self.timed_out, self.code) {
            (true, _) => "killed at its deadline".to_owned(),
            (false, Some(code)) => format!("exit code {code}"),
            (false, None) => "ended by a signal".to_owned(),
        };
        write!(f, "$ {}\n  {result} after {:?}", self.command, self.took)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            for line in text.lines() {
                write!(f, "\n  {name}: {line}")?;
            }
        }
        Ok(())
    }
}

/// Runs `command` until it ends or the deadline passes. `input` is its standard input.
pub(crate) fn run(mut command: Command, input: Option<&str>, deadline: Duration) -> Result<Outcome> {
    let text = describe(&command);
    let start = Instant::now();
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        use std::io::Write;
        pipe.write_all(input.as_bytes()).with_context(|| format!("cannot write to `{text}`"))?;
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let (status, timed_out) = wait(&mut child, start + deadline)?;
    let took = start.elapsed();
    let mut outcome = Outcome {
        command: text,
        code: status.code(),
        stdout: String::new(),
        stderr: String::new(),
        timed_out,
        took,
    };
    outcome.stdout = drained(&stdout, "standard output", &outcome)?;
    outcome.stderr = drained(&stderr, "standard error", &outcome)?;
    Ok(outcome)
}

/// Runs a set-up command of the lab itself; anything but success is an error.
pub(crate) fn must(command: Command, input: Option<&str>) -> Result<String> {
    let outcome = run(command, input, COMMAND_TIMEOUT)?;
    if !outcome.success() {
        bail!("{outcome}");
    }
    Ok(outcome.stdout)
}

fn describe(command: &Command) -> String {
    let mut words: Vec<String> = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| {
        let a = a.to_string_lossy();
        if a.is_empty() || a.contains(' ') { format!("'{a}'") } else { a.into_owned() }
    }));
    // The words before `--` only enter the namespaces.
    let inner = words.iter().position(|w| w == "--").map_or(0, |i| i + 1);
    words[inner..].join(" ")
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (tx, rx) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            let _ = tx.send(String::from_utf8_lossy(&bytes).into_owned());
        });
    }
    rx
}

fn drained(rx: &mpsc::Receiver<String>, what: &str, so_far: &Outcome) -> Result<String> {
    match rx.recv_timeout(OUTPUT_TIMEOUT) {
        Ok(text) => Ok(text),
        Err(_) => {
            bail!(
                "{what} stays open after the end of the command: a process that it started keeps it open\n{so_far}"
            )
        }
    }
}

fn wait(child: &mut Child, until: Instant) -> Result<(ExitStatus, bool)> {
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, false));
        }
        if Instant::now() >= until {
            kill_tree(child.id(), Signal::SIGKILL);
            return Ok((child.wait()?, true));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Signals a child and what it started (`nsenter` has the real command as its child).
fn kill_tree(pid: u32, signal: Signal) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|c| c.parse().ok()) {
        kill_tree(child, signal);
    }
    let _ = kill(Pid::from_raw(pid as i32), signal);
}

fn first_of_namespace(pid: u32, may_be_itself: bool) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
    if may_be_itself && ids.split_whitespace().last() == Some("1") {
        return Some(pid as i32);
    }
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|c| c.parse().ok()).find_map(|c| first_of_namespace(c, true))
}

/// A command in the background: a server, a series of pings, a capture. It ends when its standard input closes, and is killed when
/// the value is dropped.
#[derive(Debug)]
pub struct Background {
    command: String,
    child: Child,
    lines: BufReader<ChildStdout>,
    stderr: mpsc::Receiver<String>,
}

impl Background {
    /// Starts `command`; with `ready`, waits for `ready` as its first line.
    pub(crate) fn start(mut command: Command, ready: bool) -> Result<Background> {
        let text = describe(&command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{text}`"))?;
        let stderr = collect(child.stderr.take());
        let stdout = child.stdout.take().context("no pipe")?;
        let mut background = Background { command: text, child, lines: BufReader::new(stdout), stderr };
        if ready {
            let mut line = String::new();
            background.lines.read_line(&mut line)?;
            if line.trim() != "ready" {
                let stderr = background.stderr.recv_timeout(OUTPUT_TIMEOUT).unwrap_or_default();
                bail!("`{}` did not become ready: {line}{stderr}", background.command);
            }
        }
        Ok(background)
    }

    /// Pid of the process under it that is process 1 of a pid namespace.
    pub(crate) fn process_one(&self) -> Option<i32> {
        first_of_namespace(self.child.id(), false)
    }

    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Closes its standard input, waits for its end and returns its output.
    pub fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let (status, timed_out) = wait(&mut self.child, Instant::now() + Duration::from_secs(20))?;
        let mut text = String::new();
        self.lines.read_to_string(&mut text)?;
        if !status.success() || timed_out {
            let stderr = self.stderr.recv_timeout(OUTPUT_TIMEOUT).unwrap_or_default();
            bail!("`{}` failed ({status}): {text}{stderr}", self.command);
        }
        Ok(text)
    }

    /// Sends SIGKILL.
    pub fn kill(self) {}
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.running() {
            kill_tree(self.child.id(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}
