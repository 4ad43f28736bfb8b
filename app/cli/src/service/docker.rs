//! The daemon as a Docker container named `weave`, as 2.8.1 ran: `docker ps|logs|attach|restart|kill weave` work, and
//! Docker starts it again after a crash and after a reboot.
//!
//! Its image holds nothing but this very program, which therefore must be static. It runs with the host's network, process
//! ids and host name, asks for single capabilities rather than all privileges, and begins by entering the host's mount
//! namespace: from there on it is a daemon like any other, with the host's files.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use weave_runtime::{ContainerInfo, Docker};

use super::{Job, Keeper, elf};
use crate::options::Env;
use crate::{Failure, options};

/// Name of our images; 2.8.1's are `weaveworks/weave`.
const IMAGE: &str = "weave";
/// Marks our images and containers.
pub(crate) const LABEL: &str = "works.weave.net=peer";
/// Marks the data containers of 2.8.1.
pub(crate) const VOLUMES: &str = "weavevolumes";
/// What the daemon needs, of which what this machine lacks is not asked for (`unit.rs` says what for). Docker before 23 does not
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
/// How often Docker is asked.
const LOOK: Duration = Duration::from_millis(200);
/// Docker that does not answer by then is not there.
const PATIENCE: Duration = Duration::from_secs(3);
/// Starting and importing may take long on a busy machine.
const WORK: Duration = Duration::from_secs(60);

/// Docker on this machine, if it answers.
pub(crate) fn local(env: &dyn Env) -> Option<Docker> {
    let docker = Docker::at(env.var("DOCKER_HOST").as_deref());
    if !docker.is_local() {
        return None;
    }
    docker.clone().with_timeout(PATIENCE).ping().ok()?;
    Some(docker.with_timeout(WORK))
}

/// Name of this peer's container.
pub(crate) fn container_name(named: String, env: &dyn Env) -> String {
    env.var("WEAVE_CONTAINER_NAME").filter(|n| !n.is_empty()).unwrap_or(named)
}

/// Whether it is a Weave Net peer: ours or one of 2.8.1 (`weaveworks/weave:2.8.1`, or somebody's copy of it).
pub(crate) fn is_peer(service: &ContainerInfo) -> bool {
    let image = service.image.rsplit('/').next().unwrap_or_default();
    let name = image.split([':', '@']).next();
    matches!(name, Some("weave" | "weaver"))
}

/// What the original's container is called while ours has its name.
fn set_aside(name: &str) -> String {
    format!("{name}-original")
}

/// Makes room for the original: our container goes, and its own gets its name back.
pub(crate) fn hand_back(parsed: &crate::args::Parsed, env: &dyn Env) -> Result<(), Failure> {
    let Some(docker) = local(env) else { return Ok(()) };
    let name = container_name(options::named("weave", parsed, env), env);
    if let Some(ours) = docker.inspect(&name)?
        && is_peer(&ours)
        && !ours.is_legacy_daemon()
    {
        docker.remove(&ours.id)?;
    }
    if let Some(original) = docker.inspect(&set_aside(&name))? {
        docker.rename(&original.id, &name)?;
    }
    Ok(())
}

/// A container of the name that must not be there for a launch (docs/spec/cli.md 2.2). One that has ended may be removed.
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
    job: &'a Job<'a>,
    docker: Docker,
    program: Vec<u8>,
    name: String,
    id: Option<String>,
    /// The original's container that had the name.
    renamed: Option<String>,
    looked: Instant,
}

impl<'a> Container<'a> {
    pub(super) fn new(job: &'a Job<'a>) -> Result<Container<'a>, Failure> {
        match Self::if_usable(job)? {
            Ok(container) => Ok(container),
            Err(why) => Err(Failure::new(1, format_args!("--service docker: {why}"))),
        }
    }

    /// If Docker is there and can run this program; else why not. An error if a container is in the way.
    pub(super) fn if_usable(job: &'a Job<'a>) -> Result<Result<Container<'a>, String>, Failure> {
        let docker = Docker::at(job.env.var("DOCKER_HOST").as_deref());
        if !docker.is_local() {
            return Ok(Err("DOCKER_HOST does not name a Docker of this machine".to_owned()));
        }
        if let Err(e) = docker.clone().with_timeout(PATIENCE).ping() {
            // Most of its text is about what a container needs.
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
        let name = container_name(job.named("weave"), job.env);
        let docker = docker.with_timeout(WORK);
        if let Some(there) = docker.inspect(&name)?
            && !there.is_legacy_daemon()
            && let Some(refusal) = refusal(&name, &there)
        {
            return Err(refusal);
        }
        Ok(Ok(Container { job, docker, program, name, id: None, renamed: None, looked: Instant::now() }))
    }

    /// The image of this program, made if it is not there.
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
        let mut command = vec!["contained".to_owned()];
        command.extend(self.job.options().canonical());
        command.push("--".to_owned());
        command.extend(self.job.parsed.rest.iter().cloned());
        let environment: Vec<String> = ["DOCKER_HOST"]
            .iter()
            .filter_map(|name| Some(format!("{name}={}", self.job.env.var(name)?)))
            .collect();
        let (label, value) = LABEL.split_once('=').unwrap_or((LABEL, ""));
        let labels: Map<String, Value> = [(label.to_owned(), value.into())].into_iter().collect();
        let mut host = json!({
            "NetworkMode": "host",
            "PidMode": "host",
            "UTSMode": "host",
            "RestartPolicy": { "Name": if self.job.restart { "always" } else { "no" } },
            "CapDrop": ["ALL"],
            "CapAdd": capabilities(),
            "SecurityOpt": ["apparmor=unconfined", "label=disable"],
            // The TUN device.
            "DeviceCgroupRules": ["c 10:200 rwm"],
        });
        // Other drivers have limits of their own.
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

/// Those of the machine, which may have less than all; asking for one that it lacks fails.
fn capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|l| l.strip_prefix("CapBnd:"));
    let bounding = bounding.and_then(|b| u64::from_str_radix(b.trim(), 16).ok()).unwrap_or(u64::MAX);
    CAPABILITIES.iter().filter(|(bit, _)| bounding >> bit & 1 == 1).map(|(_, name)| *name).collect()
}

impl Keeper for Container<'_> {
    fn start(&mut self) -> Result<(), Failure> {
        let image = self.image()?;
        if let Some(old) = self.docker.inspect(&self.name)? {
            if old.is_legacy_daemon() {
                // It has been stopped, and may come back if we do not work.
                self.docker.rename(&old.id, &set_aside(&self.name))?;
                self.renamed = Some(old.id);
            } else {
                // One that has ended; anything else was refused.
                self.docker.remove(&old.id)?;
            }
        }
        let result = self.run(&image);
        if result.is_err() {
            self.abandon();
        }
        result
    }
    fn ended(&mut self) -> Result<Option<String>, Failure> {
        let Some(id) = &self.id else { return Ok(None) };
        if self.looked.elapsed() < LOOK {
            return Ok(None);
        }
        self.looked = Instant::now();
        let died = "The weave container has died. Consult the container logs for further details.";
        let Some(service) = self.docker.inspect(id)? else { return Ok(Some(died.to_owned())) };
        if service.state == "running" {
            return Ok(None);
        }
        let last = self.docker.last_log_line(id).unwrap_or_default();
        Ok(Some(if last.is_empty() { died.to_owned() } else { format!("{died} It said: {last}") }))
    }

    fn abandon(&mut self) {
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

/// `weave contained <arguments of weave daemon>`: what runs in the container.
pub(crate) fn contained(args: &[String], env: &dyn Env) -> Result<(), Failure> {
    let path = Path::new("/proc/1/ns/mnt");
    let fatal = |step: &str, e: &dyn std::fmt::Display| {
        let text = format!("cannot {step} the host's mount namespace {}: {e}", path.display());
        Failure::new(1, weave_daemon::log::fatal_line(text))
    };
    let host = std::fs::File::open(path).map_err(|e| fatal("open", &e))?;
    setns(&host, CloneFlags::CLONE_NEWNS).map_err(|e| fatal("enter", &e))?;
    std::env::set_current_dir("/").map_err(|e| fatal("go to the root of", &e))?;
    let mut command = vec!["daemon".to_owned()];
    command.extend(args.iter().cloned());
    crate::run(&command, env)
}

/// The containers of a peer and its helpers that are there, for `stop` and `reset`: of 2.8.1 and before, and ours.
pub(crate) fn containers(
    docker: &Docker,
    parsed: &crate::args::Parsed,
    env: &dyn Env,
) -> Result<Vec<ContainerInfo>, Failure> {
    let name = container_name(options::named("weave", parsed, env), env);
    let mut names = vec![set_aside(&name), name];
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
    fn what_is_in_the_way() {
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
    fn capabilities_are_those_of_the_machine() {
        let all = capabilities();
        assert!(all.len() <= CAPABILITIES.len());
        let mut bits: Vec<u32> = CAPABILITIES.iter().map(|(bit, _)| *bit).collect();
        bits.dedup();
        assert!(bits.is_sorted() && bits.len() == CAPABILITIES.len());
    }
}
