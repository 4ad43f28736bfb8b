//! Running commands with deadlines, in the foreground and in the background.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Foreground commands may take this long unless told otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// After a command has ended, its output must end within this time; otherwise something it started holds on to it.
const DRAIN: Duration = Duration::from_secs(3);

/// How a command ended and what it said.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The deadline passed and it was killed.
    pub timed_out: bool,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Exit code 0 within the time.
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    pub fn expect_ok(self) -> String {
        assert!(self.success(), "command failed\n{self}");
        self.stdout
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match (self.timed_out, self.code) {
            (true, _) => "killed at its deadline".to_owned(),
            (false, Some(code)) => format!("exit code {code}"),
            (false, None) => "ended by a signal".to_owned(),
        };
        write!(f, "$ {}\n  {end} after {:?}", self.command, self.took)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            for line in text.lines() {
                write!(f, "\n  {name}: {line}")?;
            }
        }
        Ok(())
    }
}

/// Runs `command` to its end or to the deadline. `input` is its standard input.
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
    let outcome = run(command, input, PATIENCE)?;
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
    // What a reader wants to see is the command, not how the lab got into the namespace.
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
    match rx.recv_timeout(DRAIN) {
        Ok(text) => Ok(text),
        Err(_) => {
            bail!("{what} stays open after the end of the command: something it started holds it\n{so_far}")
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

fn first_of_namespace(pid: u32, this: bool) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
    if this && ids.split_whitespace().last() == Some("1") {
        return Some(pid as i32);
    }
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|c| c.parse().ok()).find_map(|c| first_of_namespace(c, true))
}

/// A command that runs beside the test: a server, a stream of pings, a capture. It ends when its standard input closes.
/// Killed when dropped.
#[derive(Debug)]
pub struct Background {
    command: String,
    child: Child,
    lines: BufReader<ChildStdout>,
    stderr: mpsc::Receiver<String>,
}

impl Background {
    /// Starts `command`; with `ready`, waits for its first line, which is the sign that it is working.
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
                let said = background.stderr.recv_timeout(DRAIN).unwrap_or_default();
                bail!("`{}` did not become ready: {line}{said}", background.command);
            }
        }
        Ok(background)
    }

    /// The process that is process 1 of a namespace, among what it started: its pid here.
    pub(crate) fn process_one(&self) -> Option<i32> {
        first_of_namespace(self.child.id(), false)
    }

    /// Whether it is still running.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Closes its standard input, waits for its end and gives back what it printed.
    pub fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let (status, late) = wait(&mut self.child, Instant::now() + Duration::from_secs(20))?;
        let mut text = String::new();
        self.lines.read_to_string(&mut text)?;
        if !status.success() || late {
            let said = self.stderr.recv_timeout(DRAIN).unwrap_or_default();
            bail!("`{}` failed ({status}): {text}{said}", self.command);
        }
        Ok(text)
    }

    /// Kills it with SIGKILL.
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
