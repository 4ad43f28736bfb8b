//! The program `weave`: all commands.
//!
//! Results go to stdout; diagnostics, notices and help to stderr. A command that fails says in one line what is wrong
//! and what to do, and ends with a code other than 0 (docs/spec/cli.md 2.1).
#![forbid(unsafe_code)]

mod addresses;
mod args;
mod bridges;
mod cni;
mod commands;
mod container;
mod deprecated;
mod dns;
mod docker_bridge;
mod doctor;
mod env;
mod env_vars;
mod expose;
mod fuzz_entry;
mod generated;
#[cfg(test)]
mod guide;
mod host_client;
mod host_rules;
mod hosts_file;
mod ipam;
mod launch;
mod launch_options;
mod launch_plugin;
mod link;
mod netavark;
mod oci_runtime;
mod options;
mod output;
mod plugin_options;
mod proxy;
mod proxy_options;
mod ps;
mod query;
mod run;
mod service;
mod setup;
mod setup_docker;
mod signals;
mod stop;
mod supervise;
mod support_bundle;
mod takeover;
mod target;
#[cfg(test)]
mod tests;
mod top;
mod top_screen;
mod trace;
mod waiting;
mod weaveutil;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

#[doc(hidden)]
pub use fuzz_entry::fuzz_entry;
#[doc(hidden)]
pub use support_bundle::fuzz_entry as fuzz_redaction;

pub(crate) use output::{Failure, notice, print, require_root};

use env::{Env, ProcessEnv};

/// The program: runs the command line of this process.
pub fn main() -> ExitCode {
    weave_host::use_builtin_name_resolution();
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let result = text_arguments(args).and_then(|mut args| {
        if let Some(plugin) = cni::plugin(Path::new(&program)).filter(|_| args.is_empty()) {
            return cni::run(plugin, &ProcessEnv);
        }
        if netavark::is_plugin(Path::new(&program)) {
            return netavark::run(&args, &ProcessEnv);
        }
        if Path::new(&program).file_name() == Some("weaveutil".as_ref()) {
            args.insert(0, "weaveutil".to_owned());
        }
        run(&args, &ProcessEnv)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                notice(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// The arguments as text. An argument or a variable that is not text is an error rather than changed, or not given.
fn text_arguments(args: impl Iterator<Item = OsString>) -> Result<Vec<String>, Failure> {
    let text = |(number, arg): (usize, OsString)| {
        arg.into_string().map_err(|_| {
            let hint = "a password may be any bytes in WEAVE_PASSWORD or a --password-file";
            Failure::new(1, format_args!("argument {number} is not UTF-8 text; {hint}"))
        })
    };
    let not_text = |name: &&str| matches!(std::env::var(name), Err(std::env::VarError::NotUnicode(_)));
    let names = env_vars::VARIABLES.iter().map(|variable| variable.name);
    if let Some(name) = names.filter(|name| *name != "WEAVE_PASSWORD").find(not_text) {
        return Err(Failure::new(1, format_args!("the value of {name} is not UTF-8 text")));
    }
    args.enumerate().map(|(index, arg)| text((index + 1, arg))).collect()
}

fn run(args: &[String], env: &dyn Env) -> Result<(), Failure> {
    // The script of 2.8.1 ran itself in a container unless `--local` was given; this is always local.
    let args = args.strip_prefix(&["--local".to_owned()]).unwrap_or(args);
    let Some((name, rest)) = args.split_first() else {
        return Err(Failure::new(1, commands::program().render_help()));
    };
    match name.as_str() {
        "help" | "--help" | "-h" | "-help" => return help(rest.first()),
        "supervise" => return supervise::run(rest, env),
        "contained" => {
            service::docker::enter_host_mounts()?;
            return run(&[&["daemon".to_owned()], rest].concat(), env);
        }
        "weaveutil" => return weaveutil::run(rest, env),
        // Its other arguments are runc's.
        "oci-runtime" if rest.first().is_none_or(|arg| arg != "--help") => return oci_runtime::run(rest),
        // Its arguments are netavark's.
        "netavark" if rest.first().is_none_or(|arg| arg != "--help") => return netavark::run(rest, env),
        oci_runtime::HOOK => return oci_runtime::hook(rest, env),
        "--version" => return run(&["version".to_owned()], env),
        _ => {}
    }
    if let Some(meaning) = deprecated::find(name) {
        return match deprecated::run(name, meaning, rest, env)? {
            Some(current) => run(&current, env),
            None => Ok(()),
        };
    }
    let Some(command) = commands::find(name) else {
        return Err(commands::unknown(name));
    };
    let parsed = match name.as_str() {
        "run" => run::parse(command, rest),
        // Its arguments may be those of `docker run`, which mean nothing here.
        "dns-args" => args::parse(command.clone(), rest).or_else(|_| args::parse(command, &[])),
        _ => args::parse(command, rest),
    };
    let parsed = parsed.map_err(|e| {
        // 2.8.1's daemon exits with 125 then.
        let code = if name == "daemon" { 125 } else { 1 };
        Failure::new(code, format_args!("{e}\nSee 'weave {name} --help'."))
    })?;
    if parsed.help {
        return help(Some(name));
    }
    parsed.warnings.iter().for_each(notice);
    if !matches!(name.as_str(), "launch" | "daemon") {
        options::check_instance(&parsed, env)?;
    }
    match name.as_str() {
        "launch" => launch::run(parsed, env),
        "daemon" => launch::daemon(&parsed, env),
        "stop" => stop::stop(&parsed, env),
        "setup" => setup::run(&parsed, env),
        "setup-cni" => setup::cni(env),
        "setup-podman" => netavark::setup(&parsed),
        "setup-docker" => setup_docker::run(&parsed, env),
        "reset" => stop::reset(&parsed, env),
        "prime" | "consense" => ipam::prime(&parsed, env),
        "rmpeer" => ipam::rmpeer(&parsed, env),
        "connect" => query::connect(&parsed, env),
        "forget" => query::forget(&parsed, env),
        "run" => run::run(&parsed, env),
        "start" => run::start(&parsed, env),
        "restart" => run::restart(&parsed, env),
        "attach" => container::attach(&parsed, env),
        "detach" => container::detach(&parsed, env),
        "expose" => expose::expose(&parsed, env),
        "hide" => expose::hide(&parsed, env),
        "dns-add" => dns::add(&parsed, env),
        "dns-remove" => dns::remove(&parsed, env),
        "dns-lookup" => dns::lookup(&parsed, env),
        "dns-args" => dns::args(&parsed, env),
        "status" => query::status(&parsed, env),
        "report" => query::report(&parsed, env),
        "support-bundle" => support_bundle::run(&parsed, env),
        "top" => top::run(&parsed, env),
        "doctor" => doctor::run(&parsed, env),
        "trace" => trace::run(&parsed, env),
        "version" => query::version(&parsed, env),
        "ps" => ps::ps(&parsed, env),
        "env" => proxy::env(&parsed, env),
        "config" => proxy::config(&parsed, env),
        "attach-bridge" => bridges::join(&parsed, env),
        "bridge-type" => bridges::kind(&parsed, env),
        "docker-bridge-ip" => docker_bridge::print_ip(env),
        "completions" => generated::completions(&parsed),
        "man" => generated::man(&parsed),
        _ => Err(commands::unknown(name)),
    }
}

fn help(command: Option<&String>) -> Result<(), Failure> {
    let text = match command.filter(|name| !name.starts_with('-')) {
        None => commands::program().render_help().to_string(),
        Some(name) => match (commands::help(name), deprecated::find(name)) {
            (Some(text), _) => text,
            (None, Some(meaning)) => deprecated::explain(name, meaning),
            (None, None) => return Err(commands::unknown(name)),
        },
    };
    notice(text.trim_end());
    Ok(())
}
