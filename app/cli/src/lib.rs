//! The one binary, `weave`: everything a person types.
//!
//! Results go to stdout; diagnostics, notices and help to stderr. A command that fails says in one line what is wrong
//! and what to do, and ends with a code other than 0 (docs/spec/cli.md 2.1).
#![forbid(unsafe_code)]

mod addresses;
mod args;
mod bridges;
mod complete;
mod container;
mod docker_args;
mod environment;
mod exercise;
mod expose;
mod guard;
#[cfg(test)]
mod guide;
mod host_rules;
mod hosts_file;
mod ipam;
mod launch;
mod manual;
mod names;
mod old;
mod options;
mod ps;
mod query;
mod service;
mod setup;
mod stop;
mod supervise;
mod takeover;
#[cfg(test)]
mod tests;
mod usage;
mod waiting;
mod weaveutil;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

#[doc(hidden)]
pub use exercise::exercise;

use args::Parsed;
use options::{Env, ProcessEnv};
use usage::Command;

/// Why a command failed: what it says on stderr (without final newline; may be empty) and its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl fmt::Display) -> Failure {
        Failure { message: message.to_string(), code }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(1, error)
    }
}

/// The program: runs the command line of this process.
pub fn main() -> ExitCode {
    weave_host::use_builtin_name_resolution();
    let mut args: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let program = if args.is_empty() { String::new() } else { args.remove(0) };
    if program.rsplit('/').next() == Some("weaveutil") {
        args.insert(0, "weaveutil".to_owned());
    }
    if let Some(code) = guard::run(&program, &args) {
        return code;
    }
    match run(&args, &ProcessEnv) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                notice(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// A line for a person, on stderr. A closed stderr is nobody's problem.
pub(crate) fn notice(line: impl fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// A result, on stdout, exactly as given.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `weave report | head` is no failure.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| Failure::new(1, format_args!("writing to stdout: {e}"))),
    }
}

fn run(args: &[String], env: &dyn Env) -> Result<(), Failure> {
    // The script of 2.8.1 ran itself in a container unless told `--local`; this is always local.
    let args = args.strip_prefix(&["--local".to_owned()]).unwrap_or(args);
    let Some((name, rest)) = args.split_first() else {
        return Err(Failure::new(1, usage::overview(width()).trim_end()));
    };
    match name.as_str() {
        "help" | "--help" | "-h" | "-help" => return help(rest),
        "supervise" => return supervise::run(rest, env),
        "contained" => return service::docker::contained(rest, env),
        "weaveutil" => return weaveutil::run(rest, env),
        "--version" => return query::version(&Parsed::default(), env),
        _ => {}
    }
    if let Some(meaning) = old::find(name) {
        let old::Meaning::Now(now) = meaning else { return old::run(name, meaning, rest, env) };
        notice(format_args!("Warning: 'weave {name}' is deprecated; please use 'weave {}'", now.join(" ")));
        let now: Vec<String> = now.iter().map(|w| (*w).to_owned()).chain(rest.iter().cloned()).collect();
        return run(&now, env);
    }
    let Some(command) = usage::find(name) else {
        return Err(unknown(name, rest));
    };
    // Whatever it is, it is docker's.
    if command.name == "dns-args" && !rest.iter().any(|a| a == "--help") {
        return docker_args::dns_args(&Parsed::default(), env);
    }
    let parsed = args::parse(command.table(), rest).map_err(|e| {
        // The daemon's code for it is 125 in 2.8.1.
        let code = if command.name == "daemon" { 125 } else { 1 };
        Failure::new(code, format_args!("{e}\nSee 'weave {} --help'.", command.name))
    })?;
    if parsed.help {
        notice(usage::command(command, width()).trim_end());
        return Ok(());
    }
    parsed.warnings.iter().for_each(notice);
    if !matches!(command.name, "launch" | "daemon" | "help") {
        options::check_instance(&parsed, env)?;
    }
    match command.name {
        "launch" => launch::run(parsed, env),
        "daemon" => launch::daemon(&parsed, env),
        "stop" => stop::stop(&only_options(command, parsed)?, env),
        "setup" => setup::run(&only_options(command, parsed)?, env),
        "reset" => stop::reset(&only_options(command, parsed)?, env),
        "prime" | "consense" => ipam::prime(&only_options(command, parsed)?, env),
        "rmpeer" => ipam::rmpeer(command, &parsed, env),
        "connect" => query::connect(command, &parsed, env),
        "forget" => query::forget(command, &parsed, env),
        "attach" => container::attach(command, &parsed, env),
        "detach" => container::detach(command, &parsed, env),
        "expose" => expose::expose(command, &parsed, env),
        "hide" => expose::hide(command, &parsed, env),
        "status" => query::status(command, &parsed, env),
        "report" => query::report(&only_options(command, parsed)?, env),
        "version" => query::version(&only_options(command, parsed)?, env),
        "ps" => ps::ps(&parsed, env),
        "env" => docker_args::env(&only_options(command, parsed)?, env),
        "config" => docker_args::config(&only_options(command, parsed)?, env),
        "dns-add" => names::add(command, &parsed, env),
        "dns-remove" => names::remove(command, &parsed, env),
        "dns-lookup" => names::lookup(command, &parsed, env),
        "attach-bridge" => bridges::join(command, &parsed, env),
        "bridge-type" => bridges::kind(&only_options(command, parsed)?, env),
        "docker-bridge-ip" => {
            only_options(command, parsed)?;
            docker_args::docker_bridge_ip(env)
        }
        "completions" => complete::run(command, &parsed),
        "man" => manual::run(&only_options(command, parsed)?),
        _ => Err(unknown(name, rest)),
    }
}

fn unknown(name: &str, rest: &[String]) -> Failure {
    let asks_help = rest.first().is_some_and(|a| a == "--help");
    if usage::NOT_YET.contains(&name) {
        let code = if asks_help { 0 } else { 1 };
        return Failure::new(code, format_args!("weave {name} is not in this version yet; see 'weave help'"));
    }
    Failure::new(1, format_args!("Unknown weave command '{name}'\nSee 'weave help'."))
}

fn help(rest: &[String]) -> Result<(), Failure> {
    let text = match rest.first().filter(|name| !name.starts_with('-')) {
        None => usage::overview(width()),
        Some(name) => match usage::find(name) {
            Some(command) => usage::command(command, width()),
            None => match old::find(name) {
                Some(meaning) => old::explain(name, meaning),
                None => return Err(unknown(name, &["--help".to_owned()])),
            },
        },
    };
    notice(text.trim_end());
    Ok(())
}

/// The command takes no arguments but options.
fn only_options(command: &Command, parsed: Parsed) -> Result<Parsed, Failure> {
    match parsed.rest.first() {
        None => Ok(parsed),
        Some(extra) => {
            Err(Failure::new(1, format_args!("unexpected argument '{extra}'; {}", command.synopsis())))
        }
    }
}

/// Columns for help texts.
fn width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(100).clamp(60, 120)
}

/// Most of what changes a host needs it.
pub(crate) fn require_root() -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Failure::new(1, "weave must be run as 'root' when run locally; try 'sudo weave ...'"))
    }
}
