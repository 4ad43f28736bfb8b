//! Log lines on stderr, or in a file of bounded size, in the form of 2.8.1: `INFO: 2026/11/20 08:51:42.126037 message`, times in UTC.
//!
//! A `tracing` subscriber of its own: one line per event, no spans. What a general one costs in size and memory is
//! worth more here than what it can do.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use weave_api::Timestamp;
use weave_types::{Instant, TokenBucket};

use crate::config::{LogFile, LogLevel};
use crate::telemetry::log_file;

/// Characters of a message that are shown.
const MAX_LINE: usize = 4096;

static LEVEL: OnceLock<LogLevel> = OnceLock::new();

/// Sends everything of at least `level` to stderr from now on. Only the first call counts.
pub fn init(level: LogLevel) {
    if LEVEL.set(level).is_ok() {
        let _ = tracing::subscriber::set_global_default(Lines { level });
    }
}

/// Sends all lines to `file` from now on, and what libraries write to stderr as well. Only the first call counts.
///
/// # Errors
/// The file cannot be written.
pub fn to_file(file: &LogFile) -> std::io::Result<()> {
    log_file::begin(file)
}

/// An INFO line.
pub fn info(message: impl Display) {
    tracing::info!("{message}");
}

/// The first line: `Command line options: map[key:value ...]`.
pub fn options_line(options: &[(String, String)]) {
    let options: Vec<_> = options.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    info(format_args!("Command line options: map[{}]", options.join(" ")));
}

/// What a daemon that cannot go on says last.
pub fn fatal_line(error: impl Display) -> String {
    format_line("FATA", &error.to_string())
}

/// Writes a line, whatever the level.
pub fn line(level: &str, message: &str) {
    write_out(&(format_line(level, message) + "\n"));
}

fn format_line(level: &str, message: &str) -> String {
    let now = Timestamp::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    // A line stays a line, whatever a peer puts into its nickname.
    let clean = message.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c });
    let clean: String = clean.take(MAX_LINE).collect();
    let more = if message.chars().nth(MAX_LINE).is_some() { " ..." } else { "" };
    format!("{level}: {}.{:06} {clean}{more}", now.slashes(), now.subsec_nanos() / 1000)
}

/// In one write, so that lines of several processes do not mix. A full disk must not stop the network.
fn write_out(text: &str) {
    if !log_file::write(text) {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

struct Lines {
    level: LogLevel,
}

fn word(level: Level) -> (LogLevel, &'static str) {
    match level {
        Level::ERROR => (LogLevel::Error, "ERRO"),
        Level::WARN => (LogLevel::Warning, "WARN"),
        Level::INFO => (LogLevel::Info, "INFO"),
        _ => (LogLevel::Debug, "DEBU"),
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Per packet is TRACE, and nobody reads that here.
        *metadata.level() <= Level::DEBUG
            && metadata.target().starts_with("weave")
            && word(*metadata.level()).0 <= self.level
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let message = text.message + &text.fields;
        line(word(*event.metadata().level()).1, message.trim_start());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Limits the lines that other hosts can cause.
#[derive(Debug)]
pub(crate) struct Limiter {
    lines: TokenBucket,
    suppressed: u64,
}

impl Limiter {
    const BURST: u32 = 1000;
    const INTERVAL: Duration = Duration::from_millis(20);

    /// `None` if the line is to be suppressed, otherwise the number of lines suppressed before it.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.lines.try_take(now) {
            return Some(std::mem::take(&mut self.suppressed));
        }
        self.suppressed += 1;
        None
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter { lines: TokenBucket::new(Self::BURST, Self::INTERVAL), suppressed: 0 }
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form() {
        let line = fatal_line("two\nlines");
        let (level, rest) = line.split_once(": ").unwrap();
        assert_eq!(level, "FATA");
        assert!(rest.ends_with(" two lines"));
        let shape: String = rest.chars().take(26).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000/00/00 00:00:00.000000");
        let long = fatal_line("ä".repeat(1 << 20));
        assert!(long.chars().count() < MAX_LINE + 100 && long.ends_with("ä ..."));
    }

    #[test]
    fn a_flood_of_lines_is_cut() {
        let at = |ms| Instant::from_origin(Duration::from_millis(ms));
        let mut limiter = Limiter::default();
        let written = (0..5000).filter(|_| limiter.admit(at(0)).is_some()).count();
        assert_eq!(written, Limiter::BURST as usize);
        assert_eq!(limiter.admit(at(19)), None);
        assert_eq!(limiter.admit(at(20)), Some(4001));
        assert_eq!(limiter.admit(at(20)), None);
        assert_eq!(limiter.admit(at(40)), Some(1));
        assert_eq!(limiter.admit(at(60_000)), Some(0));
    }
}
