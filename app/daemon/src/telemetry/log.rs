//! Log lines on stderr, or in a file of bounded size, in the format of 2.8.1: `INFO: 2026/11/20 08:51:42.126037 message`, times in
//! UTC. The fields of an event and of the spans around it follow the message as `name=value`.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use weave_api::Timestamp;
use weave_types::{Instant, TokenBucket};

use super::log_file;
use crate::config::{LogFile, LogLevel};

/// Characters of a message that are written.
const MAX_LINE: usize = 4096;

/// Starts to write all events of weave's crates of at least this level. Only the first call has an effect.
pub fn init(level: LogLevel) {
    let _ = tracing::subscriber::set_global_default(subscriber(level, || Output));
}

fn subscriber<W>(level: LogLevel, writer: W) -> impl Subscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let lines = tracing_subscriber::fmt::layer().event_format(LineFormat).with_writer(writer);
    tracing_subscriber::registry().with(lines).with(Targets::new().with_target("weave", level))
}

/// Redirects all lines to `file`, and stderr and stdout of this process as well. Only the first call has an effect.
pub fn to_file(file: &LogFile) -> io::Result<()> {
    log_file::begin(file)
}

/// For callers that have no `tracing` of their own.
pub fn info(message: impl Display) {
    tracing::info!("{message}");
}

/// The first line: `Command line options: map[key:value ...]`.
pub fn options_line(options: &[(String, String)]) {
    let options: Vec<_> = options.iter().map(|(k, v)| format!("{k}:{v}")).collect();
    tracing::info!("Command line options: map[{}]", options.join(" "));
}

/// The last line of a daemon that fails.
pub fn fatal_line(error: impl Display) -> String {
    format_line("FATA", &error.to_string())
}

/// Writes a line without regard to the log level.
pub fn line(level: &str, message: &str) {
    write_out((format_line(level, message) + "\n").as_bytes());
}

fn format_line(level: &str, message: &str) -> String {
    let now = Timestamp::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    // The nickname of a peer, for example, may contain a line break.
    let clean = message.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c });
    let clean: String = clean.take(MAX_LINE).collect();
    let more = if message.chars().nth(MAX_LINE).is_some() { " ..." } else { "" };
    format!("{level}: {}.{:06} {clean}{more}", now.slashes(), now.subsec_nanos() / 1000)
}

/// Uses one write per line, so that lines of several processes do not mix. A full disk must not stop the network, so errors
/// are ignored.
fn write_out(text: &[u8]) {
    if !log_file::write(text) {
        let _ = io::stderr().lock().write_all(text);
    }
}

struct Output;

impl io::Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_out(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct LineFormat;

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = EventText::default();
        event.record(&mut text);
        for span in ctx.event_scope().into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|f| !f.is_empty()) {
                write!(text.fields, " {fields}")?;
            }
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "ERRO",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            _ => "DEBU",
        };
        let message = text.message + &text.fields;
        writeln!(to, "{}", format_line(level, message.trim_start()))
    }
}

/// Limits the lines that other hosts can cause.
#[derive(Debug)]
pub(crate) struct LogLimiter {
    lines: TokenBucket,
    suppressed: u64,
}

impl LogLimiter {
    const BURST: u32 = 1000;
    const INTERVAL: Duration = Duration::from_millis(20);

    pub(crate) fn new(burst: u32, interval: Duration) -> LogLimiter {
        LogLimiter { lines: TokenBucket::new(burst, interval), suppressed: 0 }
    }

    /// `None` if the line is to be suppressed, otherwise the number of lines suppressed before it.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.lines.try_take(now) {
            return Some(std::mem::take(&mut self.suppressed));
        }
        self.suppressed += 1;
        None
    }
}

impl Default for LogLimiter {
    fn default() -> LogLimiter {
        LogLimiter::new(Self::BURST, Self::INTERVAL)
    }
}

#[derive(Default)]
struct EventText {
    message: String,
    fields: String,
}

impl Visit for EventText {
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
    fn lines_have_the_format_of_the_original() {
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
    fn fields_of_events_and_spans_follow_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let subscriber = subscriber(LogLevel::Info, std::fs::File::create(&path).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            let _outer = tracing::info_span!("connection", peer = "h2", address = %"10.0.0.2:6783").entered();
            let _inner = tracing::debug_span!("filtered", detail = 7).entered();
            tracing::warn!(frames = 3, "left out");
            tracing::debug!("below the level");
            tracing::error!(target: "other", "of another crate");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("WARN: ") && text.ends_with('\n'), "{text:?}");
        let message = &text[text.match_indices(' ').nth(2).unwrap().0..];
        assert_eq!(message, " left out frames=3 peer=\"h2\" address=10.0.0.2:6783\n");
    }

    #[test]
    fn a_flood_of_lines_is_cut() {
        let at = |ms| Instant::from_origin(Duration::from_millis(ms));
        let mut limiter = LogLimiter::default();
        let written = (0..5000).filter(|_| limiter.admit(at(0)).is_some()).count();
        assert_eq!(written, LogLimiter::BURST as usize);
        assert_eq!(limiter.admit(at(19)), None);
        assert_eq!(limiter.admit(at(20)), Some(4001));
        assert_eq!(limiter.admit(at(20)), None);
        assert_eq!(limiter.admit(at(40)), Some(1));
        assert_eq!(limiter.admit(at(60_000)), Some(0));
    }
}
