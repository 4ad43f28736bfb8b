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
/// Beginning of the name of the link to this program.
const VERSIONED: &str = "weave-plugin-";
const CONFIG_DIR: &str = "/etc/cni/net.d";
const CONFIG_FILE: &str = "10-weave.conflist";

fn plugin_dir(env: &dyn Env) -> PathBuf {
    let dir = env.var("WEAVE_CNI_PLUGIN_DIR").filter(|dir| !dir.is_empty());
    PathBuf::from(dir.unwrap_or_else(|| "/opt/cni/bin".to_owned()))
}

/// The links that [`install`] makes for runtimes.
pub(crate) fn plugins(env: &dyn Env) -> [PathBuf; 2] {
    let dir = plugin_dir(env);
    PLUGINS.map(|name| dir.join(name))
}

/// What [`install`] has made: files, and the directories that they are in. A configuration that somebody has changed stays, and so do
/// the programs of 2.8.1.
pub(crate) fn installed(env: &dyn Env) -> (Vec<PathBuf>, [PathBuf; 2]) {
    let dir = plugin_dir(env);
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let is_ours = |path: &PathBuf| {
        let Ok(target) = path.read_link() else { return false };
        let links_to_versioned = name(&target).is_some_and(|name| name.starts_with(VERSIONED));
        name(path).is_some_and(|name| {
            name.starts_with(VERSIONED) || PLUGINS.contains(&name.as_str()) && links_to_versioned
        })
    };
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(is_ours).collect();
    files.sort();
    let config = Path::new(CONFIG_DIR).join(CONFIG_FILE);
    let is_written = |text: String| [true, false].iter().any(|hairpin| text == network(*hairpin));
    if std::fs::read_to_string(&config).is_ok_and(is_written) {
        files.push(config);
    }
    let parent = dir.parent().unwrap_or(&dir).to_owned();
    (files, [dir, parent])
}

/// Installs the plugins, and the configuration of a network where a runtime looks for one. What is there stays.
pub(crate) fn install(env: &dyn Env) -> Result<(), Failure> {
    let dir = plugin_dir(env);
    let mut undo = Undo::default();
    undo.directory(&dir, 0o755)?;
    let program = std::env::current_exe()?;
    let versioned = format!("{VERSIONED}{}", weave_daemon::VERSION);
    link::replace(&program, &dir.join(&versioned))?;
    for name in PLUGINS {
        link::replace(Path::new(&versioned), &dir.join(name))?;
    }
    let config_dir = Path::new(CONFIG_DIR);
    remove(&config_dir.join("10-weave.conf"))?;
    let config = config_dir.join(CONFIG_FILE);
    if config_dir.is_dir() && !config.exists() {
        let hairpin = env.var("HAIRPIN_MODE").is_none_or(|value| value != "false");
        undo.replace(&config, Some(network(hairpin).as_bytes()), 0o644)?;
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
fn network(hairpin: bool) -> String {
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

    #[test]
    fn configuration_of_the_network() {
        let config: serde_json::Value = serde_json::from_str(&network(true)).expect("JSON");
        assert_eq!(config["plugins"][0]["hairpinMode"], true);
        assert_eq!(config["plugins"][1]["type"], "portmap");
        assert_eq!((&config["cniVersion"], &config["cniVersions"][1]), (&json!("1.0.0"), &json!("1.1.0")));
    }
}
