//! Options of the Docker network plugin (docs/spec/containers.md B.1), and the command that started it before 2.0.

use std::path::{Path, PathBuf};

use weave_daemon::config::{PluginConfig, PluginMode};

use crate::args::{self, Parsed};
use crate::env::Env;
use crate::{Failure, commands, notice, query};

/// Why an option is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginOptionError {
    #[error("--{0}: {1:?} is not an absolute path that ends in .sock")]
    Socket(&'static str, String),
    #[error("--mesh-network-name: {0:?} is not the name of a network of Docker")]
    Network(String),
}

/// What `weave launch` adds to its command line: that the plugin runs. `only_peer`: no other peer of this host has a plugin.
pub(crate) fn complete(parsed: &mut Parsed, only_peer: bool) {
    if parsed.text("plugin").is_none() && parsed.text("docker-api") != Some("") && only_peer {
        parsed.set("plugin", "true");
    }
}

/// The plugin as the options say; `None`: it is off.
pub(crate) fn config(parsed: &Parsed) -> Result<Option<PluginConfig>, PluginOptionError> {
    let mut config = PluginConfig::default();
    for (option, socket) in
        [("plugin-socket", &mut config.socket), ("plugin-mesh-socket", &mut config.mesh_socket)]
    {
        let Some(text) = parsed.text(option) else { continue };
        let path = Path::new(text);
        // The rest of the name is that of the driver.
        let fits = path.is_absolute() && path.extension().is_some_and(|e| e == "sock");
        if !text.is_empty() && !fits {
            return Err(PluginOptionError::Socket(option, text.to_owned()));
        }
        *socket = (!text.is_empty()).then(|| PathBuf::from(text));
    }
    if let Some(name) = parsed.text("mesh-network-name") {
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
            return Err(PluginOptionError::Network(name.to_owned()));
        }
        config.network = (!name.is_empty()).then(|| name.to_owned());
    }
    if parsed.flag("plugin-v2") {
        config.mode = PluginMode::Managed { multicast: parsed.flag("plugin-v2-multicast") };
        config.network = None;
    } else if !parsed.flag("plugin") {
        return Ok(None);
    }
    Ok(Some(config))
}

/// `weave launch-plugin`: the plugin is a part of the daemon. Succeeds if it runs as it is wanted.
pub(crate) fn launch_plugin(arguments: &[String], env: &dyn Env) -> Result<(), Failure> {
    let Some(command) = commands::find("report") else { return Err(commands::unknown("report", false)) };
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

    fn parsed(line: &str) -> Parsed {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        args::parse(commands::find("launch").expect("a command"), &words).expect(line)
    }

    #[test]
    fn what_launch_adds() {
        let complete = |line: &str, only_peer| {
            let mut parsed = parsed(line);
            super::complete(&mut parsed, only_peer);
            parsed.flag("plugin")
        };
        assert!(complete("", true) && complete("--plugin", false));
        assert!(
            !complete("--plugin=false", true) && !complete("--docker-api=", true) && !complete("", false)
        );
    }

    #[test]
    fn options_of_the_plugin() {
        let config = |line: &str| super::config(&parsed(line)).map_err(|e| e.to_string());
        assert_eq!(config("").unwrap(), None);
        assert_eq!(config("--plugin").unwrap(), Some(PluginConfig::default()));
        let given = config("--plugin --plugin-socket= --plugin-mesh-socket=/x/net.sock --mesh-network-name=");
        let given = given.unwrap().unwrap();
        assert_eq!((given.socket, given.network), (None, None));
        assert_eq!(given.mesh_socket, Some(PathBuf::from("/x/net.sock")));
        assert_eq!(
            config("--plugin --mesh-network-name=n1").unwrap().unwrap().network.as_deref(),
            Some("n1")
        );
        let managed = config("--plugin-v2 --plugin-v2-multicast").unwrap().unwrap();
        assert_eq!((managed.mode, managed.network), (PluginMode::Managed { multicast: true }, None));
        for (line, error) in [
            ("--plugin-socket=x.sock", "--plugin-socket: \"x.sock\" is not an absolute path"),
            ("--plugin-mesh-socket=/x", "--plugin-mesh-socket: \"/x\" is not an absolute path"),
            ("--mesh-network-name=a/b", "--mesh-network-name: \"a/b\" is not the name"),
        ] {
            assert!(config(line).is_err_and(|e| e.starts_with(error)), "{line}: {:?}", config(line));
        }
    }

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
