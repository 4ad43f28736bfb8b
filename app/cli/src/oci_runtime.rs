//! Attaches containers before their program starts, by a hook of the OCI runtime. `weave oci-runtime` is such a runtime for Docker: it adds
//! the hook and leaves everything else to runc. Podman adds it by a file in its directory of hooks.
//!
//! ```text
//! Docker -> weave oci-runtime ... create --bundle B ID    adds a hook to B/config.json, becomes runc
//!             runc makes the namespaces, and calls the hook
//!               -> weave oci-hook < state                 asks the daemon to attach the namespace
//!        -> weave oci-runtime ... start ID                becomes runc, the program starts
//! ```
//!
//! Which containers, with which addresses: those with a network namespace of their own, with the addresses in `WEAVE_CIDR` of their
//! environment as the proxy reads it (docs/spec/containers.md A.5). Of Podman those with an annotation, which has the addresses.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::{Value, json};
use weave_api::host_requests::AttachRequest;
use weave_host::NetNs;
use weave_host::files::write_atomically;

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::service::files::failed;
use crate::{Failure, addresses, host_client, notice, query, target};

/// The command that runc calls.
pub(crate) const HOOK: &str = "oci-hook";
/// Argument of the command if Podman's file names it.
const PODMAN: &str = "podman";
/// The annotation of Podman's containers with their addresses.
const ANNOTATION: &str = "works.weave.cidr";
/// The runtime that does the work.
const RUNC: &str = "runc";
/// Seconds for which a container may wait for an address before its start fails.
const HOOK_TIMEOUT: u32 = 60;
/// Options before runc's command that have a value.
const GLOBAL_OPTIONS: [&str; 5] = ["root", "log", "log-format", "criu", "rootless"];
/// Longest state that a hook reads.
const MAX_STATE: u64 = 1 << 20;

/// Runs runc with these arguments, after a hook has been added if they create a container.
pub(crate) fn run(line: &[String]) -> Result<(), Failure> {
    if let Some(bundle) = new_bundle(line) {
        let path = bundle.join("config.json");
        // What cannot be read is runc's to complain about.
        let config = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(mut config) = config
            && add_hook(&mut config, &std::env::current_exe()?)
        {
            let mode = std::fs::metadata(&path).map_err(|e| failed("read", &path, &e))?.permissions().mode();
            write_atomically(&path, config.to_string().as_bytes(), mode & 0o7777)
                .map_err(|e| failed("write", &path, &e))?;
        }
    }
    let error = Command::new(RUNC).args(line).exec();
    Err(Failure::new(1, format_args!("cannot run {RUNC}: {error}")))
}

/// The directory of the container that a command line of runc creates.
fn new_bundle(line: &[String]) -> Option<PathBuf> {
    let mut args = line.iter().map(String::as_str);
    let command = loop {
        let arg = args.next()?;
        let Some(option) = arg.strip_prefix('-') else { break arg };
        if GLOBAL_OPTIONS.contains(&option.trim_start_matches('-')) {
            args.next();
        }
    };
    if !["create", "run"].contains(&command) {
        return None;
    }
    while let Some(arg) = args.next() {
        match arg.trim_start_matches('-') {
            _ if !arg.starts_with('-') => {}
            "bundle" | "b" => return args.next().map(PathBuf::from),
            option => {
                if let Some(bundle) = option.strip_prefix("bundle=").or_else(|| option.strip_prefix("b=")) {
                    return Some(bundle.into());
                }
            }
        }
    }
    Some(".".into())
}

/// Adds a hook to the configuration of a container that is to be attached. `program`: this one.
fn add_hook(config: &mut Value, program: &Path) -> bool {
    let namespaces = config["linux"]["namespaces"].as_array();
    let own_network = namespaces.is_some_and(|all| {
        all.iter().any(|ns| ns["type"] == "network" && ns["path"].as_str().is_none_or(str::is_empty))
    });
    if !own_network || wanted(config).is_none() {
        return false;
    }
    let hook = json!({
        "path": program,
        "args": ["weave", HOOK],
        "timeout": HOOK_TIMEOUT,
    });
    let Some(config) = config.as_object_mut() else { return false };
    let hooks = config.entry("hooks").or_insert_with(|| json!({}));
    if hooks.is_null() {
        *hooks = json!({});
    }
    let Some(hooks) = hooks.as_object_mut() else { return false };
    match hooks.entry("createRuntime").or_insert_with(|| json!([])) {
        Value::Array(all) => all.push(hook),
        other => *other = json!([hook]),
    }
    true
}

/// Podman's file with the hook (oci-hooks(5)). `program`: this one.
pub(crate) fn podman_hook(program: &Path) -> String {
    let annotation = format!("^{}$", ANNOTATION.replace('.', "\\."));
    let hook = json!({
        "version": "1.0.0",
        "hook": { "path": program, "args": ["weave", HOOK, PODMAN], "timeout": HOOK_TIMEOUT },
        "when": { "annotations": { annotation: ".*" } },
        "stages": ["createRuntime"],
    });
    format!("{hook:#}\n")
}

/// The words of `WEAVE_CIDR`; none if it is not set. `None`: the container is not to be attached.
fn wanted(config: &Value) -> Option<Vec<String>> {
    let env = config["process"]["env"].as_array();
    let requested = weave_proxy::requested_addresses(env.into_iter().flatten().filter_map(Value::as_str));
    requested.ok().map(Option::unwrap_or_default)
}

/// State of a container, as runc gives it to hooks.
#[derive(Deserialize)]
struct State {
    id: String,
    pid: u32,
    bundle: PathBuf,
}

/// Attaches the container whose state is on standard input. A failure fails the start of the container.
pub(crate) fn hook(arguments: &[String], env: &dyn Env) -> Result<(), Failure> {
    let of_podman = arguments.first().is_some_and(|argument| argument == PODMAN);
    let mut text = String::new();
    std::io::stdin().take(MAX_STATE).read_to_string(&mut text)?;
    let state: State = serde_json::from_str(&text)
        .map_err(|e| Failure::new(1, format_args!("cannot read the state of the container: {e}")))?;
    let path = state.bundle.join("config.json");
    let config = std::fs::read(&path).map_err(|e| failed("read", &path, &e))?;
    let config: Value = serde_json::from_slice(&config)?;
    let words = if of_podman {
        config["annotations"][ANNOTATION]
            .as_str()
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
    } else {
        wanted(&config)
    };
    let Some(words) = words else { return Ok(()) };
    let (wanted, rest) = addresses::leading(&words)?;
    if let Some(word) = rest.first() {
        return Err(Failure::new(
            1,
            format_args!(
                "{}: '{word}' is no address, which is as 10.2.1.1/24, net:10.2.1.0/24 or net:default",
                if of_podman { ANNOTATION } else { "WEAVE_CIDR" }
            ),
        ));
    }
    let parsed = Parsed::default();
    let name = config["hostname"].as_str().filter(|name| name.contains('.'));
    let ns = NetNs::of_process(state.pid)?;
    let id = if of_podman { target::id_of_namespace(&ns) } else { None };
    let request = AttachRequest {
        container: id.unwrap_or_else(|| state.id.clone()),
        naming: state.pid.to_string(),
        bridge: options::bridge(&parsed, env),
        addresses: wanted.iter().map(ToString::to_string).collect(),
        former: false,
        record: true,
        multicast_route: true,
        hairpin: true,
        hosts_file: None,
        name: name.map(str::to_owned),
        starting: true,
    };
    let attached = host_client::attach(request, ns, &wanted, &parsed, env);
    match attached {
        // After a reboot Docker may start its containers before the peer, which attaches those that it knows.
        Err(failure)
            if !of_podman
                && failure.message == query::NO_DAEMON
                && weave_daemon::was_attached(&options::state_dir(&parsed, env), &state.id) =>
        {
            notice("weave is not running; it attaches the container when it is launched");
            Ok(())
        }
        attached => attached.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_of_new_containers() {
        let bundle = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            new_bundle(&words).map(|bundle| bundle.to_string_lossy().into_owned())
        };
        for line in [
            "--root /r --log /l --log-format json create --bundle /b --pid-file /p c1",
            "--root=/r --systemd-cgroup create --no-pivot --bundle=/b c1",
            "run -b /b c1",
            "--debug create --console-socket /s -bundle /b c1",
        ] {
            assert_eq!(bundle(line).as_deref(), Some("/b"), "{line}");
        }
        assert_eq!(bundle("create c1").as_deref(), Some("."));
        for line in
            ["--root create start c1", "kill create", "--version", "", "--log create delete --bundle /b c1"]
        {
            assert_eq!(bundle(line), None, "{line}");
        }
    }

    #[test]
    fn hooks_of_containers_with_a_network_of_their_own() {
        let config = |ns: Value, variables: &[&str]| json!({ "linux": { "namespaces": [{ "type": "pid" }, ns] }, "process": { "env": variables } });
        let own = || json!({ "type": "network" });
        let hooks = |mut config: Value| {
            let added = add_hook(&mut config, Path::new("/bin/weave"));
            assert_eq!(added, config["hooks"]["createRuntime"].is_array());
            added
        };
        assert!(hooks(config(own(), &[])), "the default subnet");
        assert!(hooks(config(json!({ "type": "network", "path": "" }), &["A=b", "WEAVE_CIDR=10.2.1.1/24"])));
        assert!(!hooks(config(own(), &["WEAVE_CIDR=none"])));
        assert!(
            !hooks(config(json!({ "type": "network", "path": "/proc/7/ns/net" }), &[])),
            "that of another"
        );
        assert!(!hooks(config(json!({ "type": "mount" }), &["WEAVE_CIDR=10.2.1.1/24"])), "that of the host");
        for damaged in [json!(null), json!([]), json!({ "linux": 7 })] {
            assert!(!hooks(damaged));
        }
        let mut with_hooks = config(own(), &["WEAVE_CIDR=net:default  10.2.1.1/24"]);
        with_hooks["hooks"] = json!({ "prestart": [{ "path": "/a" }], "createRuntime": [{ "path": "/b" }] });
        assert_eq!(wanted(&with_hooks), Some(vec!["net:default".to_owned(), "10.2.1.1/24".to_owned()]));
        assert!(add_hook(&mut with_hooks, Path::new("/bin/weave")));
        assert_eq!(with_hooks["hooks"]["prestart"][0]["path"], "/a");
        assert_eq!(with_hooks["hooks"]["createRuntime"][0]["path"], "/b");
        assert_eq!(with_hooks["hooks"]["createRuntime"][1]["path"], "/bin/weave");
    }
}
