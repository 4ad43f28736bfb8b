//! The daemon as a Docker container named `weave`, as in 2.8.1: `docker ps|logs|attach|restart|kill weave` work, and
//! Docker starts it again after a crash and after a reboot.
//!
//! Its image contains only this program, which therefore must be static. The container has the host's network, process ids and host
//! name, and single capabilities rather than all privileges. It begins by entering the host's mount namespace, so that the daemon
//! works with the host's files.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use weave_daemon::log;
use weave_runtime::{ContainerInfo, Docker};

use super::elf;
use super::manager::{LaunchRequest, ServiceManager};
use crate::env::Env;
use crate::{Failure, options, proxy_options};

/// Name of the images that `launch` makes; 2.8.1's are `weaveworks/weave`.
const IMAGE: &str = "weave";
/// Label of the images and containers that `launch` makes.
pub(crate) const LABEL: &str = "works.weave.net=peer";
/// Label of 2.8.1's data containers.
pub(crate) const VOLUMES: &str = "weavevolumes";
/// Capabilities that the daemon needs (`unit.rs` says what for), with their numbers. Docker before 23 does not
/// know BPF and PERFMON, which SYS_ADMIN includes.
const CAPABILITIES: [(u32, &str); 14] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (2, "DAC_READ_SEARCH"),
    (3, "FOWNER"),
    (5, "KILL"),
    (10, "NET_BIND_SERVICE"),
    (12, "NET_ADMIN"),
    (13, "NET_RAW"),
    (14, "IPC_LOCK"),
    (16, "SYS_MODULE"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (24, "SYS_RESOURCE"),
];
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Docker that does not answer by then is regarded as absent.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Importing an image and starting a container may take long on a busy host.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Docker on this host, if it answers.
pub(crate) fn local(env: &dyn Env) -> Option<Docker> {
    let docker = Docker::at(proxy_options::docker_host(env).as_deref());
    if !docker.is_local() {
        return None;
    }
    docker.clone().with_timeout(PING_TIMEOUT).ping().ok()?;
    Some(docker.with_timeout(REQUEST_TIMEOUT))
}

pub(crate) fn container_name(named: String, env: &dyn Env) -> String {
    env.var("WEAVE_CONTAINER_NAME").filter(|n| !n.is_empty()).unwrap_or(named)
}

/// Whether it is a Weave Net peer, of this version or of 2.8.1 (`weaveworks/weave:2.8.1`, or a copy of it).
pub(crate) fn is_peer(service: &ContainerInfo) -> bool {
    let image = service.image.rsplit('/').next().unwrap_or_default();
    let name = image.split([':', '@']).next();
    matches!(name, Some("weave" | "weaver"))
}

/// Name of 2.8.1's container while the container of this version has its name.
fn original_container_name(name: &str) -> String {
    format!("{name}-original")
}

/// Removes the container of this version, and gives 2.8.1's container its name back.
pub(crate) fn hand_back(parsed: &crate::args::Parsed, env: &dyn Env) -> Vec<String> {
    let Some(docker) = local(env) else { return Vec::new() };
    let name = container_name(options::named("weave", parsed, env), env);
    let remove_ours = || match docker.inspect(&name)? {
        Some(ours) if is_peer(&ours) && !ours.is_legacy_daemon() => docker.remove(&ours.id),
        _ => Ok(()),
    };
    let rename_original = || match docker.inspect(&original_container_name(&name))? {
        Some(original) => docker.rename(&original.id, &name),
        None => Ok(()),
    };
    [remove_ours(), rename_original()].into_iter().filter_map(Result::err).map(|e| e.to_string()).collect()
}

/// Why an existing container of this name prevents a launch (docs/spec/cli.md 2.2). One that has ended does not.
pub(crate) fn refusal(name: &str, service: &ContainerInfo) -> Option<Failure> {
    let running = service.state == "running";
    if !is_peer(service) {
        let running = if running { "running " } else { "" };
        let text = format!("Found another {running}container named '{name}'. Aborting.");
        return Some(Failure::new(2, text));
    }
    match service.state.as_str() {
        "exited" | "dead" => None,
        "running" => Some(Failure::new(3, "weave is already running; you can stop it with 'weave stop'.")),
        _ => Some(Failure::new(
            1,
            "weave is created, paused, or restarting; you can stop it with 'weave stop'.",
        )),
    }
}

pub(super) struct Container<'a> {
    request: &'a LaunchRequest<'a>,
    docker: Docker,
    program: Vec<u8>,
    name: String,
    id: Option<String>,
    /// Id of 2.8.1's container that had the name.
    renamed: Option<String>,
    polled: Instant,
}

impl<'a> Container<'a> {
    pub(super) fn new(request: &'a LaunchRequest<'a>) -> Result<Container<'a>, Failure> {
        match Self::if_usable(request)? {
            Ok(container) => Ok(container),
            Err(why) => Err(Failure::new(1, format_args!("--service docker: {why}"))),
        }
    }

    /// If Docker answers and can run this program; else why not. Fails if a container prevents the launch.
    pub(super) fn if_usable(
        request: &'a LaunchRequest<'a>,
    ) -> Result<Result<Container<'a>, String>, Failure> {
        let docker = Docker::at(proxy_options::docker_host(request.env).as_deref());
        if !docker.is_local() {
            return Ok(Err("DOCKER_HOST does not name a Docker on this host".to_owned()));
        }
        if let Err(e) = docker.clone().with_timeout(PING_TIMEOUT).ping() {
            // The rest of the text is advice for `attach`.
            let text = e.to_string();
            return Ok(Err(format!("there is no {}", text.split(';').next().unwrap_or("docker"))));
        }
        let program = std::fs::read("/proc/self/exe")?;
        if elf::is_static(&program) != Some(true) {
            return Ok(Err(
                "Docker cannot run this program, which needs the host's libraries (build it with 'make static')"
                    .to_owned(),
            ));
        }
        let name = container_name(request.named("weave"), request.env);
        let docker = docker.with_timeout(REQUEST_TIMEOUT);
        if let Some(there) = docker.inspect(&name)?
            && !there.is_legacy_daemon()
            && let Some(refusal) = refusal(&name, &there)
        {
            return Err(refusal);
        }
        Ok(Ok(Container { request, docker, program, name, id: None, renamed: None, polled: Instant::now() }))
    }

    /// The image of this program, imported if it does not exist.
    fn image(&self) -> Result<String, Failure> {
        let hash = Sha256::digest(&self.program);
        let hash: String = hash.iter().take(6).map(|b| format!("{b:02x}")).collect();
        let tag = format!("{}-{hash}", weave_daemon::VERSION);
        let image = format!("{IMAGE}:{tag}");
        if !self.docker.has_image(&image)? {
            self.docker.import_program(IMAGE, &tag, "weave", &self.program, LABEL)?;
        }
        Ok(image)
    }

    fn run(&mut self, image: &str) -> Result<(), Failure> {
        let id = self.docker.create(&self.name, &self.spec(image))?;
        self.id = Some(id.clone());
        Ok(self.docker.start(&id)?)
    }

    fn spec(&self, image: &str) -> Value {
        // The sub-command that enters the host's mount namespace and becomes the daemon.
        let mut command = vec!["contained".to_owned()];
        command.extend(self.request.options().canonical());
        command.push("--".to_owned());
        command.extend(self.request.parsed.rest.iter().cloned());
        let host = proxy_options::docker_host(self.request.env);
        let environment: Vec<String> = host.iter().map(|host| format!("DOCKER_HOST={host}")).collect();
        let (label, value) = LABEL.split_once('=').unwrap_or((LABEL, ""));
        let labels: Map<String, Value> = [(label.to_owned(), value.into())].into_iter().collect();
        let mut host = json!({
            "NetworkMode": "host",
            "PidMode": "host",
            "UTSMode": "host",
            "RestartPolicy": { "Name": if self.request.restart { "always" } else { "no" } },
            "CapDrop": ["ALL"],
            "CapAdd": capabilities(),
            "SecurityOpt": ["apparmor=unconfined", "label=disable"],
            // /dev/net/tun
            "DeviceCgroupRules": ["c 10:200 rwm"],
        });
        // Only these drivers accept the size limits.
        let driver = self.docker.info().map(|i| i.logging_driver).unwrap_or_default();
        if matches!(driver.as_str(), "json-file" | "local")
            && let Some(host) = host.as_object_mut()
        {
            let limits = json!({ "max-size": "10m", "max-file": "5" });
            host.insert("LogConfig".to_owned(), json!({ "Type": driver, "Config": limits }));
        }
        json!({
            "Image": image,
            "Cmd": command,
            "Env": environment,
            "Labels": labels,
            "AttachStdin": false,
            "AttachStdout": false,
            "AttachStderr": false,
            "HostConfig": host,
        })
    }
}

/// Those of [`CAPABILITIES`] that this host allows; Docker refuses to start a container with another.
fn capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    let bounding = bounding.and_then(|b| u64::from_str_radix(b.trim(), 16).ok()).unwrap_or(u64::MAX);
    CAPABILITIES.iter().filter(|(bit, _)| bounding >> bit & 1 == 1).map(|(_, name)| *name).collect()
}

impl ServiceManager for Container<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let image = self.image()?;
        if let Some(old) = self.docker.inspect(&self.name)? {
            if old.is_legacy_daemon() {
                // It has been stopped, and is started again if this launch fails.
                self.docker.rename(&old.id, &original_container_name(&self.name))?;
                self.renamed = Some(old.id);
            } else {
                // It has ended: with any other the launch was refused.
                self.docker.remove(&old.id)?;
            }
        }
        let result = self.run(&image);
        if result.is_err() {
            self.roll_back();
        }
        result
    }
    fn exit_reason(&mut self) -> Result<Option<String>, Failure> {
        let Some(id) = &self.id else { return Ok(None) };
        if self.polled.elapsed() < POLL_INTERVAL {
            return Ok(None);
        }
        self.polled = Instant::now();
        let died = "The weave container has died. Consult the container logs for further details.";
        let Some(service) = self.docker.inspect(id)? else { return Ok(Some(died.to_owned())) };
        if service.state == "running" {
            return Ok(None);
        }
        let last = self.docker.last_log_line(id).unwrap_or_default();
        Ok(Some(if last.is_empty() { died.to_owned() } else { format!("{died} Its last line: {last}") }))
    }

    fn roll_back(&mut self) {
        if let Some(id) = self.id.take() {
            let _ = self.docker.stop(&id, 5);
            let _ = self.docker.remove(&id);
        }
        if let Some(original) = self.renamed.take() {
            let _ = self.docker.rename(&original, &self.name);
        }
    }

    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

/// Leaves the container's mount namespace for the host's, before the daemon starts in the container.
pub(crate) fn enter_host_mounts() -> Result<(), Failure> {
    let path = Path::new("/proc/1/ns/mnt");
    let fatal = |step: &str, e: &dyn std::fmt::Display| {
        let text = format!("cannot {step} the host's mount namespace {}: {e}", path.display());
        Failure::new(1, log::fatal_line(text))
    };
    let host = std::fs::File::open(path).map_err(|e| fatal("open", &e))?;
    setns(&host, CloneFlags::CLONE_NEWNS).map_err(|e| fatal("enter", &e))?;
    std::env::set_current_dir("/").map_err(|e| fatal("change to the root of", &e))
}

/// Existing containers of this peer and its helpers, of this version and of 2.8.1 and before.
pub(crate) fn containers(
    docker: &Docker,
    parsed: &crate::args::Parsed,
    env: &dyn Env,
) -> Result<Vec<ContainerInfo>, Failure> {
    let name = container_name(options::named("weave", parsed, env), env);
    let mut names = vec![original_container_name(&name), name];
    if options::instance(parsed, env).is_none() {
        names.extend(["weaveplugin", "weaveproxy"].map(str::to_owned));
    }
    let mut found = Vec::new();
    for name in names {
        if let Some(service) = docker.inspect(&name)? {
            let helper = service.name != "weave" && service.image.contains("weave");
            if is_peer(&service) || helper {
                found.push(service);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(image: &str, state: &str) -> ContainerInfo {
        ContainerInfo {
            id: "1".into(),
            name: "weave".into(),
            image: image.into(),
            state: state.into(),
            ..ContainerInfo::default()
        }
    }

    #[test]
    fn existing_containers_refuse_a_launch() {
        let texts = [
            (
                "weaveworks/weave:2.8.1",
                "running",
                Some((3, "weave is already running; you can stop it with 'weave stop'.")),
            ),
            (
                "weave:3.0.0-abc",
                "running",
                Some((3, "weave is already running; you can stop it with 'weave stop'.")),
            ),
            (
                "localhost:5000/x/weave",
                "paused",
                Some((1, "weave is created, paused, or restarting; you can stop it with 'weave stop'.")),
            ),
            (
                "weave:3",
                "created",
                Some((1, "weave is created, paused, or restarting; you can stop it with 'weave stop'.")),
            ),
            ("weave:3", "exited", None),
            ("weaveworks/weave", "dead", None),
            ("busybox", "running", Some((2, "Found another running container named 'weave'. Aborting."))),
            ("busybox", "exited", Some((2, "Found another container named 'weave'. Aborting."))),
            ("myweave:1", "exited", Some((2, "Found another container named 'weave'. Aborting."))),
        ];
        for (image, state, expected) in texts {
            let refused = refusal("weave", &service(image, state));
            assert_eq!(refused, expected.map(|(code, text)| Failure::new(code, text)), "{image} {state}");
        }
    }

    #[test]
    fn capabilities_are_limited_to_those_of_the_host() {
        let all = capabilities();
        assert!(all.len() <= CAPABILITIES.len());
        let mut bits: Vec<u32> = CAPABILITIES.iter().map(|(bit, _)| *bit).collect();
        bits.dedup();
        assert!(bits.is_sorted() && bits.len() == CAPABILITIES.len());
    }
}
