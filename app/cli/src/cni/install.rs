//! Installs the CNI plugins (docs/spec/containers.md C.1).
//!
//! ```text
//! /opt/cni/bin/weave-net, weave-ipam -> weave-plugin-<version> -> this program
//! /etc/cni/net.d/10-weave.conflist
//! ```
//!
//! 2.8.1 copied its program. A link makes plugin and daemon the same version after an upgrade.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::env::Env;
use crate::service::files::{Undo, is_read_only, remove};
use crate::{Failure, link, options};

/// Names by which this program is a plugin.
const PLUGINS: [&str; 2] = ["weave-net", "weave-ipam"];
const CONFIG_DIR: &str = "/etc/cni/net.d";

/// Installs the plugins, and the configuration of a network where a runtime looks for one. What is there stays.
pub(crate) fn install(env: &dyn Env) -> Result<(), Failure> {
    let dir = env.var("WEAVE_CNI_PLUGIN_DIR").filter(|dir| !dir.is_empty());
    let dir = PathBuf::from(dir.unwrap_or_else(|| "/opt/cni/bin".to_owned()));
    let mut undo = Undo::default();
    undo.directory(&dir, 0o755)?;
    let program = std::env::current_exe()?;
    let versioned = format!("weave-plugin-{}", weave_daemon::VERSION);
    link::replace(&program, &dir.join(&versioned))?;
    for name in PLUGINS {
        link::replace(Path::new(&versioned), &dir.join(name))?;
    }
    let config_dir = Path::new(CONFIG_DIR);
    remove(&config_dir.join("10-weave.conf"))?;
    let config = config_dir.join("10-weave.conflist");
    if config_dir.is_dir() && !config.exists() {
        undo.replace(&config, Some(network(env).as_bytes()), 0o644)?;
    }
    undo.keep();
    Ok(())
}

/// For `launch`, which does not fail because of it; a warning if something is missing. A peer that is not the host's only one has a control
/// socket of its own, which the plugins would not find.
pub(crate) fn install_if_possible(parsed: &crate::args::Parsed, env: &dyn Env) -> Option<String> {
    if options::instance(parsed, env).is_some() || is_read_only(Path::new("/opt/cni/bin")) {
        return None;
    }
    install(env).err().map(|e| format!("Warning: the CNI plugins are not installed: {}", e.message))
}

/// The configuration of the network `weave`. Runtimes that know 1.1.0 choose it.
fn network(env: &dyn Env) -> String {
    let hairpin = env.var("HAIRPIN_MODE").is_none_or(|value| value != "false");
    let config = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "weave",
        "plugins": [
            { "name": "weave", "type": "weave-net", "hairpinMode": hairpin },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ],
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::NoEnv;

    #[test]
    fn configuration_of_the_network() {
        let config: serde_json::Value = serde_json::from_str(&network(&NoEnv)).expect("JSON");
        assert_eq!(config["plugins"][0]["hairpinMode"], true);
        assert_eq!(config["plugins"][1]["type"], "portmap");
        assert_eq!((&config["cniVersion"], &config["cniVersions"][1]), (&json!("1.0.0"), &json!("1.1.0")));
    }
}
