//! Calls of the CNI plugins as a runtime makes them.

use serde_json::{Value, json};
use weave_lab::{Host, Outcome};

use super::LONG_TIMEOUT;

/// Where Debian has the plugins of the CNI project.
pub const DEBIAN_PLUGINS: &str = "/usr/lib/cni";

/// A container as a runtime names it.
#[derive(Clone, Copy)]
pub struct Attachment<'a> {
    pub host: &'a Host,
    /// Of `ip netns`; empty if there is none any more.
    pub netns: &'a str,
    pub container: &'a str,
    pub interface: &'a str,
}

impl<'a> Attachment<'a> {
    /// Interface `eth0` of a container whose id is the name of its namespace.
    pub fn new(host: &'a Host, netns: &'a str) -> Attachment<'a> {
        Attachment { host, netns, container: netns, interface: "eth0" }
    }

    /// Runs a plugin.
    #[track_caller]
    pub fn plugin(&self, plugin: &str, command: &str, config: &Value) -> Outcome {
        self.plugin_with(plugin, &[("CNI_COMMAND", command)], &config.to_string())
    }

    /// Runs a plugin with further variables, and with any input.
    #[track_caller]
    pub fn plugin_with(&self, plugin: &str, variables: &[(&str, &str)], input: &str) -> Outcome {
        let netns = if self.netns.is_empty() { String::new() } else { format!("/run/netns/{}", self.netns) };
        let path = format!("/opt/cni/bin:{DEBIAN_PLUGINS}");
        let mut env = vec![
            ("CNI_CONTAINERID", self.container),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_IFNAME", self.interface),
            ("CNI_PATH", path.as_str()),
            ("CNI_INPUT", input),
        ];
        env.extend(variables);
        let script = format!("export PATH={path}:$PATH; printf %s \"$CNI_INPUT\" | {plugin}");
        self.host.command_with(&env, &["sh", "-c", &script], LONG_TIMEOUT)
    }

    /// `ADD` by `weave-net`; the result.
    #[track_caller]
    pub fn add(&self, config: &Value) -> Value {
        json_of(&self.plugin("weave-net", "ADD", config).expect_ok())
    }

    /// A command of `weave-net` that has to succeed and to print nothing.
    #[track_caller]
    pub fn ok(&self, command: &str, config: &Value) {
        let printed = self.plugin("weave-net", command, config).expect_ok();
        assert_eq!(printed, "", "{command}");
    }

    /// A command of `weave-net` that has to fail; code and message of the error.
    #[track_caller]
    pub fn refused(&self, command: &str, config: &Value) -> (u64, String) {
        error_of(&self.plugin("weave-net", command, config))
    }
}

/// The configuration of the network `weave`.
pub fn config(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "weave", "type": "weave-net" })
}

/// A configuration with more fields.
pub fn with(mut config: Value, more: Value) -> Value {
    let fields = config.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    config
}

/// The configuration with which a runtime calls after `ADD` has given `result`.
pub fn after(config: &Value, result: &Value) -> Value {
    with(config.clone(), json!({ "prevResult": result }))
}

#[track_caller]
pub fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Code and message of the error that a plugin printed.
#[track_caller]
pub fn error_of(outcome: &Outcome) -> (u64, String) {
    assert_eq!(outcome.code, Some(1), "{outcome}");
    let error = json_of(&outcome.stdout);
    let (code, msg) = (error["code"].as_u64(), error["msg"].as_str());
    (code.expect("a code"), msg.expect("a message").to_owned())
}

/// The first address of a result, without prefix length.
#[track_caller]
pub fn address(result: &Value) -> String {
    let cidr = result["ips"][0]["address"].as_str().or(result["ip4"]["ip"].as_str());
    cidr.unwrap_or_else(|| panic!("no address: {result}")).split('/').next().unwrap().to_owned()
}

/// Owners and addresses as the allocator of the host has them.
#[track_caller]
pub fn recorded(host: &Host) -> Vec<(String, Vec<String>)> {
    let all = json_of(&host.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]));
    let mut owned: Vec<(String, Vec<String>)> = all["owned"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|owner| {
            let addrs = owner["addrs"].as_array().unwrap();
            let addrs = addrs.iter().map(|addr| addr.as_str().unwrap().to_owned()).collect();
            (owner["containerid"].as_str().unwrap().to_owned(), addrs)
        })
        .collect();
    owned.sort();
    owned
}
