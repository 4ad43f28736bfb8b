//! Options of the Docker network plugin (docs/spec/containers.md B.1).

use std::path::{Path, PathBuf};

use weave_daemon::config::{PluginConfig, PluginMode};

use crate::args::Parsed;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{args, commands};

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
}
