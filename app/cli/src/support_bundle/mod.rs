//! `weave support-bundle`: one archive with what somebody else needs who is to find out why a peer does not work.
//!
//! ```text
//!   sources: Known, parts --> each part within its time --> redact --> tar.gz with a MANIFEST
//! ```

mod archive;
mod fuzz_entry;
mod redact;
mod sources;

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use weave_api::time::Timestamp;
use weave_host::files::write_atomically;

pub use fuzz_entry::fuzz_entry;

use crate::args::Parsed;
use crate::env::Env;
use crate::{Failure, notice, print, require_root};
use archive::Archive;
use redact::{Redactor, Replaced};

/// A part that takes longer is mentioned on stderr.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of a part. Of what is longer the end stays.
const MAX_PART: usize = 16 << 20;

/// A file of the archive.
struct Part {
    file: &'static str,
    /// What it is and how it is made, for the list of contents.
    what: String,
    /// Longest time that it may take.
    limit: Duration,
    collect: Box<dyn FnOnce() -> Result<String, String> + Send>,
}

pub(crate) fn run(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    if let Some(argument) = parsed.rest.first() {
        return Err(Failure::new(1, format_args!("unexpected argument {argument:?}; {}", parsed.usage)));
    }
    require_root()?;
    let now = now();
    let sources = sources::Sources::read(parsed, env)?;
    let name = format!("weave-support-{}-{}", file_name(&sources.nickname), compact(now));
    let mut redactor = Redactor::new(sources.known.clone());
    let mut archive = Archive::new(&name, now.as_secs());
    let mut contents = String::new();
    for part in sources.parts(parsed, env)? {
        let (file, what) = (part.file, part.what.clone());
        match in_time(part) {
            Ok(text) => {
                let (text, cut) = end_of(redactor.redact(&text));
                archive.add(file, text.as_bytes())?;
                let cut = if cut { format!(" (the last {MAX_PART} bytes)") } else { String::new() };
                contents.push_str(&format!("{file}: {what}{cut}\n"));
            }
            Err(why) => contents.push_str(&redactor.redact(&format!("{file}: missing: {why}\n"))),
        }
    }
    let created = Timestamp::from_unix(Duration::from_secs(now.as_secs()));
    let manifest = manifest(created, &contents, redactor.replaced(), &sources.networks());
    archive.add("MANIFEST", manifest.as_bytes())?;
    let bytes = archive.finish()?;
    match parsed.text("output") {
        Some("-") => to_stdout(&bytes),
        output => {
            let file = output.map_or_else(|| format!("{name}.tar.gz"), str::to_owned);
            write_atomically(Path::new(&file), &bytes, 0o600)
                .map_err(|e| Failure::new(1, format_args!("cannot write {file}: {e}")))?;
            print(&format!("{file}\n"))
        }
    }
}

fn now() -> Duration {
    std::time::UNIX_EPOCH.elapsed().unwrap_or_default()
}

/// `20261130T031527Z`.
fn compact(since_epoch: Duration) -> String {
    let text = Timestamp::from_unix(Duration::from_secs(since_epoch.as_secs())).to_string();
    text.replace(['-', ':'], "")
}

/// The letters, digits and dashes of a nickname.
fn file_name(nickname: &str) -> String {
    nickname.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).take(64).collect()
}

/// Collects a part in a thread of its own, which is left behind if it takes too long.
fn in_time(part: Part) -> Result<String, String> {
    let Part { file, limit, collect, .. } = part;
    let (sender, receiver) = channel();
    let deadline = Instant::now() + limit;
    let thread = std::thread::Builder::new().spawn(move || sender.send(collect()));
    thread.map_err(|e| format!("cannot start a thread: {e}"))?;
    let mut wait = PROGRESS_INTERVAL.min(limit);
    loop {
        match receiver.recv_timeout(wait) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err("collecting it failed".to_owned()),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                return Err(format!("not complete within {} s", limit.as_secs()));
            }
            Err(RecvTimeoutError::Timeout) => {
                notice(format_args!("collecting {file}, at most {} s", limit.as_secs()));
                wait = deadline.saturating_duration_since(Instant::now());
            }
        }
    }
}

/// The end of a text that is too long, from the beginning of a line, and whether something is missing.
fn end_of(text: String) -> (String, bool) {
    let Some(excess) = text.len().checked_sub(MAX_PART).filter(|excess| *excess > 0) else {
        return (text, false);
    };
    let lines = text.bytes().enumerate().skip(excess - 1).find(|(_, byte)| *byte == b'\n');
    let start = lines.map_or(text.len(), |(at, _)| at + 1);
    (text[start..].to_owned(), true)
}

fn manifest(created: Timestamp, contents: &str, replaced: Replaced, networks: &str) -> String {
    let Replaced { secrets, addresses, hardware, names } = replaced;
    format!(
        "Support bundle of weave {}, {created}.\n\
         \n\
         {contents}\n\
         Replaced by [removed], host-address-N, hardware-address-N and host-name-N, the same value by the same word in all files:\n\
         passwords and other secrets: {secrets}\n\
         IP addresses outside of the container network: {addresses}\n\
         Ethernet addresses of hardware: {hardware}\n\
         names of hosts that were named to weave, of this host and its domains: {names}\n\
         \n\
         Kept: addresses of the container network ({networks}), loopback and multicast addresses; peer names, nicknames, names and ids of\n\
         containers, names of weaveDNS. A name of another host that a program wrote into its log is not recognised.\n",
        weave_daemon::VERSION,
    )
}

fn to_stdout(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::{IsTerminal, Write};
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        return Err(Failure::new(
            1,
            "the archive is not for a terminal; redirect stdout, or name a file by --output",
        ));
    }
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|e| Failure::new(1, format_args!("writing to stdout: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(limit: Duration, collect: impl FnOnce() -> Result<String, String> + Send + 'static) -> Part {
        Part { file: "x.txt", what: String::new(), limit, collect: Box::new(collect) }
    }

    #[test]
    fn parts_are_limited_in_time() {
        let long = Duration::from_secs(60);
        assert_eq!(in_time(part(long, || Ok("text".to_owned()))), Ok("text".to_owned()));
        assert_eq!(in_time(part(long, || Err("no".to_owned()))), Err("no".to_owned()));
        let (_sender, receiver) = channel::<()>();
        let hangs = part(Duration::ZERO, move || Err(format!("{:?}", receiver.recv())));
        assert_eq!(in_time(hangs), Err("not complete within 0 s".to_owned()));
        let panics = part(long, || panic!("of a test"));
        assert_eq!(in_time(panics), Err("collecting it failed".to_owned()));
    }

    #[test]
    fn of_a_long_text_the_last_lines_stay() {
        let line = "0123456789abcde\n";
        let whole = line.repeat(MAX_PART / line.len());
        assert_eq!(end_of(whole.clone()), (whole.clone(), false));
        let (kept, cut) = end_of(format!("ä{whole}end"));
        assert!(
            cut && kept.ends_with("\nend") && kept.len() <= MAX_PART && kept.starts_with(line),
            "{}",
            kept.len()
        );
    }

    #[test]
    fn names_of_files() {
        assert_eq!(compact(Duration::from_millis(1_795_835_727_123)), "20261128T031527Z");
        assert_eq!(file_name("../ho st-1.example\n"), "host-1example");
    }
}
