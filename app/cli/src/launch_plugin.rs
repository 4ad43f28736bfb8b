//! `weave launch-plugin`, which started the Docker network plugin before 2.0.

use crate::env::Env;
use crate::{Failure, args, commands, notice, query};

/// The plugin is a part of the daemon. Succeeds if it runs as it is wanted.
pub(crate) fn run(arguments: &[String], env: &dyn Env) -> Result<(), Failure> {
    let Some(command) = commands::find("report") else { return Err(commands::unknown("report")) };
    let parsed = args::parse(command, &[]).map_err(|e| Failure::new(1, e))?;
    let report = query::client(&parsed, env).report();
    let runs = report.as_ref().map(|report| report.plugin.is_some());
    let wanted = Replacement::of(arguments);
    let situation = match runs {
        Ok(true) if wanted.options.is_empty() && !wanted.without_multicast => {
            notice(
                "Warning: 'weave launch-plugin' does nothing any more; the plugin is a part of the daemon, which runs with it.",
            );
            return Ok(());
        }
        Ok(true) => "The plugin is a part of the daemon, which runs with other options.",
        Ok(false) => "The plugin is a part of the daemon, which runs without it.",
        Err(_) => "The plugin is a part of the daemon, which does not run.",
    };
    let stop = if runs.is_ok() { "weave stop; " } else { "" };
    let options: String = wanted.options.iter().map(|option| format!(" {option}")).collect();
    let mut text = format!(
        "{situation} Instead of 'weave launch-plugin', with the other options and peers of the launch:\n{stop}weave launch{options}"
    );
    if wanted.without_multicast {
        text += "\nWhether its containers get the multicast route is an option of a network:\n\
                 docker network create --driver weavemesh --ipam-driver weavemesh --opt works.weave.multicast=false <name>";
    }
    Err(Failure::new(1, text))
}

/// What replaces the options of `launch-plugin`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Replacement {
    options: Vec<String>,
    without_multicast: bool,
}

impl Replacement {
    fn of(arguments: &[String]) -> Replacement {
        let mut replacement = Replacement::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let body = argument.trim_start_matches('-');
            let (name, inline) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v.to_owned())));
            let mut value = || inline.clone().or_else(|| arguments.next().cloned()).unwrap_or_default();
            let option = match name {
                "mesh-network-name" => format!("--mesh-network-name={}", value()),
                "socket" => format!("--plugin-socket={}", value()),
                "meshsocket" => format!("--plugin-mesh-socket={}", value()),
                // The daemon's log has a level of its own.
                "log-level" => {
                    value();
                    continue;
                }
                "no-multicast-route" => {
                    replacement.without_multicast = inline.as_deref() != Some("false");
                    continue;
                }
                _ => continue,
            };
            replacement.options.push(option);
        }
        replacement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replaces_options_of_launch_plugin() {
        let of =
            |line: &str| Replacement::of(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("--log-level=debug --log-level debug"), Replacement::default());
        assert_eq!(
            of("--mesh-network-name= --no-multicast-route --meshsocket /x.sock"),
            Replacement {
                options: vec!["--mesh-network-name=".into(), "--plugin-mesh-socket=/x.sock".into()],
                without_multicast: true
            }
        );
    }
}
