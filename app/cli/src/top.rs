//! `weave top`: peers, connections and traffic, once a second, on a terminal or as lines for scripts.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::PollTimeout;
use nix::sys::signal::Signal;
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use weave_api::{Client, NetworkView};

use crate::args::Parsed;
use crate::env::Env;
use crate::signals::{Signals, Wakeup};
use crate::top_screen::{COLUMNS, Screen};
use crate::{Failure, query};

/// Longest time for a view to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of a terminal that does not tell it.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Another screen, whose lines are not wrapped, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?7l\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?7h\x1b[?1049l";

struct Options {
    interval: Duration,
    /// How many screens; `None` until the user ends the command.
    count: Option<i64>,
    sort: usize,
}

pub(crate) fn run(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let options = options(parsed)?;
    let client = query::client(parsed, env).with_timeout(REQUEST_TIMEOUT);
    // Nothing is shown if the peer does not run.
    let first = client.network_view().map_err(|e| query::explain(e, parsed, env))?;
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let result = if terminal && !parsed.flag("b") {
        interactive(&client, &options, first)
    } else {
        batch(&client, &options, first)
    };
    result.map_err(|error| match error.downcast::<weave_api::ClientError>() {
        Ok(error) => query::explain(*error, parsed, env),
        Err(error) => Failure::new(1, error),
    })
}

fn options(parsed: &Parsed) -> Result<Options, Failure> {
    let positive = |name: &str| match parsed.number(name) {
        Some(number) if number < 1 => {
            Err(Failure::new(1, format_args!("-{name} {number}: must be at least 1")))
        }
        number => Ok(number),
    };
    let sort = match parsed.text("sort") {
        None => 0,
        Some(name) => COLUMNS.iter().position(|column| column.sort == name).ok_or_else(|| {
            let names: Vec<_> = COLUMNS.iter().map(|column| column.sort).collect();
            Failure::new(1, format_args!("--sort {name:?}: must be one of {}", names.join(", ")))
        })?,
    };
    let interval = Duration::from_secs(positive("d")?.unwrap_or(1).unsigned_abs());
    Ok(Options { interval, count: positive("n")?, sort })
}

type TopResult = Result<(), Box<dyn std::error::Error>>;

/// Prints screens one below the other until there were enough, or nobody reads them.
fn batch(client: &Client, options: &Options, first: NetworkView) -> TopResult {
    let mut screen = Screen::new(first, options.sort);
    let mut printed = 0;
    loop {
        let mut out = io::stdout().lock();
        match out.write_all((screen.lines(None).join("\n") + "\n\n").as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            result => result?,
        }
        drop(out);
        printed += 1;
        if options.count.is_some_and(|count| printed >= count) {
            return Ok(());
        }
        std::thread::sleep(options.interval);
        screen.update(client.network_view()?);
    }
}

fn interactive(client: &Client, options: &Options, first: NetworkView) -> TopResult {
    // Keys are read from the descriptor, because a buffered reader would hide some from `poll`.
    let mut stdin = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let signals = Signals::block(&[
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGWINCH,
    ])?;
    let terminal = Terminal::enter()?;
    let mut screen = Screen::new(first, options.sort);
    let mut due = Instant::now() + options.interval;
    let mut drawn = 1;
    loop {
        terminal.draw(&screen)?;
        let left = due.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match signals.next_or_readable(stdin.as_fd(), timeout)? {
            Wakeup::Signal(Signal::SIGWINCH) => {}
            Wakeup::Signal(_) => return Ok(()),
            Wakeup::Readable => {
                let mut keys = [0; 64];
                let read = stdin.read(&mut keys)?;
                // The terminal is gone.
                if read == 0 || screen.handle_keys(&keys[..read]) {
                    return Ok(());
                }
            }
            Wakeup::Timeout => {
                if options.count.is_some_and(|count| drawn >= count) {
                    return Ok(());
                }
                match client.network_view() {
                    Ok(view) => screen.update(view),
                    Err(error) => screen.set_problem(format!("the peer does not answer: {error}")),
                }
                drawn += 1;
                due = Instant::now() + options.interval;
            }
        }
    }
}

/// The terminal, as it was before once this is dropped.
struct Terminal {
    saved: Termios,
}

impl Terminal {
    fn enter() -> io::Result<Terminal> {
        let stdin = io::stdin();
        let saved = termios::tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        let terminal = Terminal { saved };
        write(ENTER)?;
        Ok(terminal)
    }

    fn draw(&self, screen: &Screen) -> io::Result<()> {
        let size = terminal_size::terminal_size().map_or(DEFAULT_SIZE, |(width, height)| (width.0, height.0));
        // Each line is overwritten and its rest cleared, without flicker.
        let lines = screen.lines(Some(size)).join("\x1b[K\r\n");
        write(&format!("\x1b[H{lines}\x1b[K\x1b[J"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = write(LEAVE);
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.saved);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
