//! Commands of earlier versions that are commands no more (docs/spec/cli.md 3.1): what they mean now.

use crate::args::Parsed;
use crate::options::Env;
use crate::{Failure, bridges, notice, query};

/// What an old command means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Another command with these words before its arguments.
    Now(&'static [&'static str]),
    /// Nothing any more, and why.
    Nothing(&'static str),
    /// A part of the daemon was started or stopped by itself.
    Part { part: Part, start: bool },
    /// The bridge was made by hand.
    CreateBridge,
}

/// A part of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Proxy,
    Plugin,
}

/// All of them.
pub(crate) static OLD: &[(&str, Meaning)] = &[
    ("launch-router", Meaning::Now(&["launch", "--proxy=false", "--plugin=false"])),
    ("stop-router", Meaning::Now(&["stop"])),
    ("proxy-env", Meaning::Now(&["env"])),
    ("proxy-config", Meaning::Now(&["config"])),
    ("launch-proxy", Meaning::Part { part: Part::Proxy, start: true }),
    ("stop-proxy", Meaning::Part { part: Part::Proxy, start: false }),
    ("launch-plugin", Meaning::Part { part: Part::Plugin, start: true }),
    ("stop-plugin", Meaning::Part { part: Part::Plugin, start: false }),
    ("launch-dns", Meaning::Nothing("names are served by the daemon that 'weave launch' starts")),
    ("stop-dns", Meaning::Nothing("names are served by the daemon until 'weave stop'")),
    ("attach-router", Meaning::Nothing("'weave launch' does it")),
    ("create-bridge", Meaning::CreateBridge),
];

/// What `name` meant.
pub(crate) fn find(name: &str) -> Option<Meaning> {
    OLD.iter().find(|(old, _)| *old == name).map(|(_, meaning)| *meaning)
}

/// Runs an old command that is not simply another one today.
pub(crate) fn run(name: &str, meaning: Meaning, rest: &[String], env: &dyn Env) -> Result<(), Failure> {
    if rest.first().is_some_and(|a| a == "--help") {
        notice(explain(name, meaning));
        return Ok(());
    }
    match meaning {
        Meaning::Now(_) => Ok(()),
        Meaning::Nothing(why) => {
            notice(format_args!("Warning: 'weave {name}' does nothing any more; {why}."));
            Ok(())
        }
        Meaning::CreateBridge => bridges::create(rest, env),
        Meaning::Part { part, start } => run_part(part, start, env),
    }
}

/// For help texts.
pub(crate) fn explain(name: &str, meaning: Meaning) -> String {
    match meaning {
        Meaning::Now(words) => format!("weave {name}: now 'weave {}'", words.join(" ")),
        Meaning::Nothing(why) => format!("weave {name}: nothing any more; {why}"),
        Meaning::Part { .. } => {
            format!("weave {name}: a part of the daemon now; see 'weave help launch' and 'weave help stop'")
        }
        Meaning::CreateBridge => format!(
            "weave {name}: 'weave launch' makes the bridge; with WEAVE_NO_FASTDP set this makes a plain one before"
        ),
    }
}

fn run_part(part: Part, start: bool, env: &dyn Env) -> Result<(), Failure> {
    let parsed = Parsed::default();
    let report = query::client(&parsed, env).report();
    if report.is_err() && !start {
        // Nothing runs, so neither does its part.
        return Ok(());
    }
    let report = report.map_err(|e| query::explain(e, &parsed, env))?;
    let (runs, what, option) = match part {
        Part::Proxy => (report.proxy.is_some(), "Docker API proxy", "--proxy"),
        Part::Plugin => (report.plugin.is_some(), "Docker network plugin", "--plugin"),
    };
    match (start, runs) {
        (true, true) | (false, false) => Ok(()),
        (true, false) => Err(Failure::new(
            1,
            format_args!(
                "the {what} is a part of the daemon and cannot be added to one that runs: \
                 'weave stop', then 'weave launch {option} ...'"
            ),
        )),
        (false, true) => Err(Failure::new(
            1,
            format_args!(
                "the {what} is a part of the daemon: 'weave stop' ends both, 'weave launch {option}=false' starts \
                 without it"
            ),
        )),
    }
}
