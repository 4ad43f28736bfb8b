//! Commands of earlier versions that are commands no more (docs/spec/cli.md 3.1).

use crate::env::Env;
use crate::{Failure, bridges, launch_plugin, notice};

/// What an old command means now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Another command, with these words before its arguments.
    Now(&'static [&'static str]),
    /// It has no effect any more, for this reason.
    Nothing(&'static str),
    /// The same, in the words of 2.8.1.
    Removed(&'static str),
    CreateBridge,
    LaunchPlugin,
}

pub(crate) static OLD: &[(&str, Meaning)] = &[
    ("launch-router", Meaning::Now(&["launch", "--proxy=false", "--plugin=false"])),
    ("stop-router", Meaning::Now(&["stop"])),
    ("launch-proxy", Meaning::Nothing("the proxy is a part of the daemon that 'weave launch' starts")),
    ("proxy-env", Meaning::Now(&["env"])),
    ("proxy-config", Meaning::Now(&["config"])),
    ("stop-proxy", Meaning::Nothing("the proxy is a part of the daemon that 'weave stop' stops")),
    ("launch-plugin", Meaning::LaunchPlugin),
    ("stop-plugin", Meaning::Nothing("the plugin is a part of the daemon that 'weave stop' stops")),
    (
        "launch-dns",
        Meaning::Removed(
            "The 'launch-dns' command has been removed; DNS is launched as part of 'launch' and 'launch-router'.",
        ),
    ),
    (
        "stop-dns",
        Meaning::Removed(
            "The 'stop-dns' command has been removed; DNS is stopped as part of 'stop' and 'stop-router'.",
        ),
    ),
    ("attach-router", Meaning::Nothing("'weave launch' does it")),
    ("create-bridge", Meaning::CreateBridge),
];

pub(crate) fn find(name: &str) -> Option<Meaning> {
    OLD.iter().find(|(old, _)| *old == name).map(|(_, meaning)| *meaning)
}

/// Runs an old command, or returns the current command line that replaces it.
pub(crate) fn run(
    name: &str,
    meaning: Meaning,
    rest: &[String],
    env: &dyn Env,
) -> Result<Option<Vec<String>>, Failure> {
    if rest.first().is_some_and(|a| a == "--help") {
        notice(explain(name, meaning));
        return Ok(None);
    }
    match meaning {
        Meaning::Now(now) => {
            notice(format_args!(
                "Warning: 'weave {name}' is deprecated; please use 'weave {}'",
                now.join(" ")
            ));
            Ok(Some(now.iter().map(|w| (*w).to_owned()).chain(rest.iter().cloned()).collect()))
        }
        Meaning::Nothing(reason) => {
            notice(format_args!("Warning: 'weave {name}' does nothing any more; {reason}."));
            Ok(None)
        }
        Meaning::Removed(text) => {
            notice(text);
            Ok(None)
        }
        Meaning::CreateBridge => bridges::create(rest, env).map(|()| None),
        Meaning::LaunchPlugin => launch_plugin::run(rest, env).map(|()| None),
    }
}

/// One line for help texts.
pub(crate) fn explain(name: &str, meaning: Meaning) -> String {
    match meaning {
        Meaning::Now(words) => format!("weave {name}: now 'weave {}'", words.join(" ")),
        Meaning::Nothing(reason) => format!("weave {name}: does nothing any more; {reason}"),
        Meaning::Removed(text) => format!("weave {name}: {text}"),
        Meaning::LaunchPlugin => {
            format!(
                "weave {name}: the plugin is a part of the daemon; says which options of 'weave launch' do the same"
            )
        }
        Meaning::CreateBridge => format!(
            "weave {name}: 'weave launch' makes the bridge; with WEAVE_NO_FASTDP set this makes a plain one before"
        ),
    }
}
