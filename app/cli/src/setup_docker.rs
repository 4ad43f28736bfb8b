//! `weave setup-docker`: makes `weave oci-runtime` a runtime of Docker, by its configuration file.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::args::Parsed;
use crate::env::Env;
use crate::service::files::{Undo, failed};
use crate::{Failure, print, ps, require_root};

const CONFIG_FILE: &str = "/etc/docker/daemon.json";
const PID_FILE: &str = "/var/run/docker.pid";
/// Name of the runtime in Docker.
const RUNTIME: &str = "weave";
/// Docker reads its configuration within this time.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) fn run(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    require_root()?;
    let path = Path::new(parsed.text("config-file").unwrap_or(CONFIG_FILE));
    let before = match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|e| Failure::new(1, format_args!("{} is left as it is: {e}", path.display())))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(e) => return Err(failed("read", path, &e)),
    };
    let wanted = !parsed.flag("undo");
    let runtime = json!({ "path": std::env::current_exe()?, "runtimeArgs": ["oci-runtime"] });
    let after = change(&before, wanted.then_some(&runtime))
        .map_err(|why| Failure::new(1, format_args!("{} is left as it is: {why}", path.display())))?;
    if after == before {
        let state = if wanted { "has the runtime already" } else { "does not have the runtime" };
        return print(&format!("{} {state}\n", path.display()));
    }
    let mut undo = Undo::default();
    if let Some(dir) = path.parent() {
        undo.directory(dir, 0o755)?;
    }
    let text = serde_json::to_string_pretty(&after)? + "\n";
    undo.replace(path, (!after.is_empty()).then_some(text.as_bytes()), 0o644)?;
    let pid_file = after.get("pidfile").and_then(Value::as_str).unwrap_or(PID_FILE);
    let pid_file = Path::new(parsed.text("pid-file").unwrap_or(pid_file));
    let (what, then) = if wanted {
        let then = match reload(pid_file, env)? {
            true => "Docker has read it",
            false => "Docker does not run, and reads it when it starts",
        };
        (format!("added \"runtimes\": {{\"{RUNTIME}\": {runtime}}}"), then)
    } else {
        (format!("removed \"{RUNTIME}\" from \"runtimes\""), "Docker knows the runtime until it is restarted")
    };
    undo.keep();
    print(&format!("{}: {what}\n{then}\n", path.display()))
}

/// The configuration with this runtime, or without one. Everything else stays.
fn change(config: &Map<String, Value>, runtime: Option<&Value>) -> Result<Map<String, Value>, String> {
    let mut config = config.clone();
    let runtimes = config.entry("runtimes").or_insert_with(|| json!({}));
    let runtimes = runtimes.as_object_mut().ok_or("\"runtimes\" is not an object")?;
    match runtime {
        Some(runtime) => runtimes.insert(RUNTIME.to_owned(), runtime.clone()),
        None => runtimes.remove(RUNTIME),
    };
    if runtimes.is_empty() {
        config.remove("runtimes");
    }
    if runtime.is_none() && config.get("default-runtime").is_some_and(|default| default == RUNTIME) {
        return Err(format!("\"default-runtime\" is \"{RUNTIME}\", choose another first"));
    }
    Ok(config)
}

/// Lets Docker read its configuration; `false` if it does not run. It is an error if it does not know the runtime afterwards.
fn reload(pid_file: &Path, env: &dyn Env) -> Result<bool, Failure> {
    let pid = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let is_docker = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "dockerd")
    };
    let Some(pid) = pid.filter(is_docker) else { return Ok(false) };
    kill(Pid::from_raw(pid), Signal::SIGHUP)?;
    let deadline = Instant::now() + RELOAD_TIMEOUT;
    while ps::docker(env).info()?.runtimes.iter().all(|name| name != RUNTIME) {
        if Instant::now() > deadline {
            return Err(Failure::new(
                1,
                "Docker has not accepted the new configuration, see its log; the file is as it was before",
            ));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_else_stays() {
        let map = |value: Value| value.as_object().cloned().expect("an object");
        let runtime = json!({ "path": "/usr/local/bin/weave", "runtimeArgs": ["oci-runtime"] });
        for config in [
            json!({}),
            json!({ "icc": false, "dns": ["10.0.0.1"], "max-concurrent-downloads": 18_446_744_073_709_551_615_u64 }),
            json!({ "runtimes": { "kata": { "path": "/usr/bin/kata" } }, "default-runtime": "kata" }),
        ] {
            let before = map(config);
            let with = change(&before, Some(&runtime)).expect("changed");
            assert_eq!(with["runtimes"]["weave"], runtime);
            assert_eq!(change(&with, Some(&runtime)), Ok(with.clone()), "repeating changes nothing");
            assert_eq!(change(&with, None), Ok(before.clone()));
            assert_eq!(change(&before, None), Ok(before));
        }
        assert!(change(&map(json!({ "runtimes": 7 })), Some(&runtime)).is_err());
        let default = map(json!({ "default-runtime": "weave", "runtimes": { "weave": runtime } }));
        assert!(change(&default, None).is_err());
    }
}
