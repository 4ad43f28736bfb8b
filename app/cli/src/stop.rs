//! `weave stop` and `weave reset` (docs/spec/cli.md 4.5, 4.6).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weave_daemon::{legacy_database, pid_file};
use weave_host::fault_injection;
use weave_host::files::temporary_path;
use weave_runtime::{Docker, Network};

use crate::args::Parsed;
use crate::options::{self, Env};
use crate::service::files::remove;
use crate::service::{docker, systemd};
use crate::{Failure, host_rules, notice, print, query, require_root, takeover};

/// How long the daemon gets to end in order, as `docker stop` gives it.
const GRACE: Duration = Duration::from_secs(10);
/// What 2.8.1 gives its messages to reach others.
const GOODBYE: Duration = Duration::from_millis(500);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Name of the network that the plugin of 2.8.1 makes.
const NETWORK: &str = "weave";

/// Files in the run directory that end with the daemon.
const RUN_FILES: [&str; 3] = ["fresh", "launch.sock", "weave.sock"];
/// Pid files there; each is removed by its process, if that gets to it.
const PID_FILES: [&str; 3] = ["supervisor.pid", "weave.pid", "launch.pid"];
/// A peer of this machine, as far as it can be known from outside.
struct Peer<'a> {
    parsed: &'a Parsed,
    env: &'a dyn Env,
    run_dir: PathBuf,
    state_dir: PathBuf,
    unit: String,
    docker: Option<Docker>,
}

impl<'a> Peer<'a> {
    fn new(parsed: &'a Parsed, env: &'a dyn Env) -> Peer<'a> {
        Peer {
            parsed,
            env,
            run_dir: options::run_dir(parsed, env),
            state_dir: options::state_dir(parsed, env),
            unit: systemd::unit_name(&options::named("weave", parsed, env)),
            docker: docker::local(env),
        }
    }

    /// Pids of supervisor and daemon, that which has to end first in front.
    fn processes(&self) -> Vec<i32> {
        PID_FILES[..2].iter().filter_map(|f| pid_file::holder(&self.run_dir.join(f))).collect()
    }

    /// A launch at work would lose its socket, or start what has just been stopped.
    fn lock(&self) -> Result<Option<pid_file::PidFile>, Failure> {
        let path = self.run_dir.join("launch.pid");
        let deadline = Instant::now() + GRACE;
        loop {
            match pid_file::PidFile::take(&path) {
                Ok(lock) => return Ok(Some(lock)),
                Err(pid_file::PidFileError::Held { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK)
                }
                Err(pid_file::PidFileError::Held { pid, .. }) => {
                    return Err(Failure::new(
                        1,
                        format_args!(
                            "another 'weave launch' or 'weave stop' (pid {pid}) is at work; end it first"
                        ),
                    ));
                }
                // No directory, or one that cannot be written: nobody launches there either.
                Err(pid_file::PidFileError::Io { .. }) => return Ok(None),
            }
        }
    }

    /// Ends the daemon and whoever would start it again; `false` if there was neither. What was tried and failed is told
    /// after everything else has been done.
    fn stop(&self) -> Result<bool, Failure> {
        let mut failures = Vec::new();
        if let Some(network) = self.network().unwrap_or_else(|e| {
            failures.push(e.message);
            None
        }) {
            failures.extend(self.remove_network(&network).err().map(|e| e.message));
        }
        let mut found = !self.processes().is_empty();
        let mut kept = false;
        match systemd::stop(&self.unit) {
            Ok(running) => {
                found |= running;
                kept |= running;
            }
            Err(e) => failures.push(e.message),
        }
        if let Some(docker) = &self.docker {
            match docker::containers(docker, self.parsed, self.env) {
                Ok(services) => {
                    for service in
                        services.iter().filter(|s| !matches!(s.state.as_str(), "exited" | "dead" | "created"))
                    {
                        found = true;
                        kept = true;
                        failures.extend(docker.stop(&service.id, 10).err().map(|e| e.to_string()));
                    }
                }
                Err(e) => failures.push(e.message),
            }
        }
        // What it needs stays with one that runs.
        self.end_processes().map_err(|e| {
            failures.push(e.message);
            Failure::new(1, failures.join("\n"))
        })?;
        self.forget_connections();
        // A unit or a container needs the password when it is started again.
        if !kept && found && systemd::ours(&self.unit).is_none() {
            // The peer has ended all the same.
            let password = remove(&self.state_dir.join("password"));
            password.unwrap_or_else(|e| notice(format_args!("Warning: {}", e.message)));
        }
        for name in RUN_FILES {
            failures.extend(remove(&self.run_dir.join(name)).err().map(|f| f.message));
        }
        if failures.is_empty() { Ok(found) } else { Err(Failure::new(1, failures.join("\n"))) }
    }

    /// The network that the plugin of 2.8.1 made for Docker; none of somebody else's that is called so.
    fn network(&self) -> Result<Option<Network>, Failure> {
        let Some(docker) =
            self.docker.as_ref().filter(|_| options::instance(self.parsed, self.env).is_none())
        else {
            return Ok(None);
        };
        let found = docker.network(NETWORK).map_err(|e| Failure::new(1, e))?;
        Ok(found.filter(|n| n.driver.starts_with("weave")))
    }

    /// Containers that are in it keep it.
    fn remove_network(&self, network: &Network) -> Result<(), Failure> {
        let Some(docker) = &self.docker else { return Ok(()) };
        if network.containers.is_empty() {
            return docker.remove_network(&network.id).map_err(|e| Failure::new(1, e));
        }
        let short = network.containers.iter().map(|id| id.chars().take(12).collect());
        notice(format_args!(
            "WARNING: Docker's network '{NETWORK}' stays, because containers are in it: {}",
            short.collect::<Vec<String>>().join(" ")
        ));
        Ok(())
    }

    /// What the packet filter decided for the peer's datagrams is of no use to the next one. Without it they time out.
    fn forget_connections(&self) {
        let mut ports: Vec<u16> =
            host_rules::remembered(self.parsed, self.env).iter().map(|setup| setup.port).collect();
        ports.dedup();
        for port in ports {
            if let Err(e) = weave_host::flush_udp_connections(port) {
                notice(format_args!("Warning: {e}"));
            }
        }
    }

    fn end_processes(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + GRACE;
        // The supervisor is first in the list and takes the daemon with it.
        let mut told: Vec<i32> = Vec::new();
        while let Some(&pid) = self.processes().first() {
            let late = Instant::now() >= deadline;
            if late || !told.contains(&pid) {
                let signal = if late { Signal::SIGKILL } else { Signal::SIGTERM };
                let told_to = fault_injection::fail_point(&format_args!("signalling process {pid}"));
                match told_to.and_then(|()| kill(Pid::from_raw(pid), signal)) {
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => told.push(pid),
                    Err(e) => {
                        return Err(Failure::new(1, format_args!("cannot stop weave (pid {pid}): {e}")));
                    }
                }
                if Instant::now() >= deadline + GRACE {
                    return Err(Failure::new(1, format_args!("weave (pid {pid}) does not end")));
                }
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

pub(crate) fn stop(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    require_root()?;
    let peer = Peer::new(parsed, env);
    let _lock = peer.lock()?;
    if !peer.stop()? {
        notice("Weave is not running (ignore on Kubernetes).");
    }
    if !parsed.flag("hand-back") {
        return Ok(());
    }
    // Nobody starts ours at the next boot.
    let failures = systemd::remove(&peer.unit);
    failures.into_iter().next().map_or(Ok(()), Err)?;
    docker::hand_back(parsed, env)?;
    takeover::hand_back(parsed, env)
}

/// One thing that `reset` removes.
enum Thing {
    Process(i32),
    Unit(PathBuf),
    /// A container with its anonymous volumes.
    Container(String),
    Image(String),
    /// Of Docker's.
    Network,
    File(PathBuf),
    /// Only if it is empty then.
    Directory(PathBuf),
    Device(String),
    /// Rules and chains, and files for other programs.
    Host(String),
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Thing::Process(pid) => write!(f, "process {pid}"),
            Thing::Unit(path) => write!(f, "unit {}", path.display()),
            Thing::Container(name) => write!(f, "container {name} and its volumes"),
            Thing::Image(name) => write!(f, "image {name}"),
            Thing::Network => write!(f, "network {NETWORK} of Docker"),
            Thing::File(path) => write!(f, "file {}", path.display()),
            Thing::Directory(path) => write!(f, "directory {}, if nothing else is in it", path.display()),
            Thing::Device(name) => write!(f, "device {name}"),
            Thing::Host(what) => f.write_str(what),
        }
    }
}

impl Peer<'_> {
    /// Everything there is, in the order in which it goes, and what could not be looked at.
    fn things(&self) -> (Vec<Thing>, Vec<String>) {
        let mut errors = Vec::new();
        let mut things: Vec<Thing> = self.processes().into_iter().map(Thing::Process).collect();
        things.extend(systemd::ours(&self.unit).map(Thing::Unit));
        match self.network() {
            Ok(network) => {
                let unused = network.filter(|n| n.containers.is_empty());
                things.extend(unused.map(|_| Thing::Network));
            }
            Err(e) => errors.push(e.message),
        }
        if let Some(docker) = &self.docker {
            let only = options::instance(self.parsed, self.env).is_none();
            let peers = docker::containers(docker, self.parsed, self.env);
            let mut names: Vec<String> = match peers {
                Ok(services) => services.into_iter().map(|s| s.name).collect(),
                Err(e) => {
                    errors.push(e.message);
                    Vec::new()
                }
            };
            if only {
                match docker.containers_labelled(docker::VOLUMES) {
                    Ok(volumes) => names.extend(volumes),
                    Err(e) => errors.push(e.to_string()),
                }
            }
            names.dedup();
            // An image that another peer's container is made of stays.
            let others = docker.containers_labelled(docker::LABEL).unwrap_or_default();
            let shared = others.iter().any(|o| !names.contains(o));
            things.extend(names.into_iter().map(Thing::Container));
            if !shared {
                match docker.images_labelled(docker::LABEL) {
                    Ok(images) => things.extend(images.into_iter().map(Thing::Image)),
                    Err(e) => errors.push(e.to_string()),
                }
            }
        }
        let state_file = |name: &&str| self.state_dir.join(name);
        // A database of 2.8.1 that stayed would be taken over again. A damaged file of ours does not prevent its removal.
        let taken_over = weave_daemon::PeerState::read_original(&self.state_dir).unwrap_or_default().path;
        let mut databases: Vec<PathBuf> = legacy_database::FILE_NAMES.iter().map(state_file).collect();
        if let Some(path) = taken_over.filter(|path| !databases.contains(path)) {
            databases.push(path);
        }
        let retired = databases.iter().map(|path| legacy_database::retired_path(path));
        let written = weave_daemon::PEER_FILES.iter().chain(&["password"]).map(state_file);
        let files = written.flat_map(|path| [temporary_path(&path), path]);
        let files = files.chain(databases.iter().cloned()).chain(retired);
        // What describes the host's firewall goes when the rules are gone.
        let host = [&weave_daemon::HOST_FILE].into_iter().map(state_file);
        let host = host.flat_map(|path| [temporary_path(&path), path]);
        // The lock that is held here goes with this process.
        let files = files.chain(RUN_FILES.iter().chain(&PID_FILES[..2]).map(|f| self.run_dir.join(f)));
        things.extend(files.chain(host).filter(|f| f.symlink_metadata().is_ok()).map(Thing::File));
        let dirs = [&self.state_dir, &self.run_dir];
        things.extend(dirs.into_iter().filter(|d| d.is_dir()).map(|d| Thing::Directory(d.clone())));
        match weave_host::owned_devices(&options::devices(self.parsed, self.env)) {
            Ok(names) => things.extend(names.into_iter().map(Thing::Device)),
            Err(e) => errors.push(e.to_string()),
        }
        let (host, failed) = host_rules::present(self.parsed, self.env);
        things.extend(host.into_iter().map(Thing::Host));
        errors.extend(failed);
        (things, errors)
    }

    /// Removes everything, and goes on where something fails.
    fn remove(&self, things: Vec<Thing>) -> Vec<String> {
        let rules = host_rules::remembered(self.parsed, self.env);
        let mut failures = Vec::new();
        let mut add = |result: Result<(), String>| failures.extend(result.err());
        for thing in things {
            match thing {
                Thing::Unit(_) => systemd::remove(&self.unit).into_iter().for_each(|e| add(Err(e.message))),
                Thing::Container(name) => {
                    add(self.docker.as_ref().map_or(Ok(()), |d| d.remove(&name)).map_err(|e| e.to_string()));
                }
                Thing::Image(name) => {
                    add(self
                        .docker
                        .as_ref()
                        .map_or(Ok(()), |d| d.remove_image(&name))
                        .map_err(|e| e.to_string()));
                }
                Thing::File(path) => add(remove(&path).map_err(|f| f.message)),
                // Those were ended before; the others follow in one go.
                Thing::Process(_)
                | Thing::Network
                | Thing::Directory(_)
                | Thing::Device(_)
                | Thing::Host(_) => {}
            }
        }
        let names = options::devices(self.parsed, self.env);
        let (_removed, errors) = weave_host::remove_all(&names);
        errors.into_iter().for_each(|e| add(Err(e.to_string())));
        host_rules::remove(rules, &names).into_iter().for_each(|e| add(Err(e)));
        failures
    }
}

pub(crate) fn reset(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let peer = Peer::new(parsed, env);
    if parsed.flag("dry-run") {
        let (things, errors) = peer.things();
        print(&things.iter().map(|t| format!("{t}\n")).collect::<String>())?;
        return if errors.is_empty() { Ok(()) } else { Err(Failure::new(1, errors.join("\n"))) };
    }
    require_root()?;
    let lock = peer.lock()?;
    let force = parsed.flag("force");
    if pid_file::holder(&peer.run_dir.join("weave.pid")).is_some() {
        // Address space goes to the others; a daemon that allocates none answers 404.
        let handed_over = query::client(parsed, env).request("DELETE", "/peer?explain=true", &[], &[]);
        if let Ok(answer) = &handed_over {
            // Nobody may have been there to take it.
            answer.body.lines().for_each(notice);
            // What was said has to go out before the connections end.
            std::thread::sleep(GOODBYE);
        }
        if let Err(e) = handed_over
            && !force
        {
            return Err(Failure::new(
                1,
                format_args!(
                    "weave does not answer ({e}); unable to remove it from the cluster. \
                     Stop it with 'weave stop' and launch it again, or use --force to override."
                ),
            ));
        }
    } else if !force && peer.stopped_container()? {
        return Err(Failure::new(
            1,
            "ERROR: weave is not running; unable to remove from cluster.\n\
             Re-launch weave before reset or use --force to override.",
        ));
    }
    // Everything is tried; what failed is told at the end.
    let stopped = peer.stop();
    if !peer.processes().is_empty() {
        // Without its files nobody would find it again.
        return stopped.map(drop);
    }
    let mut failures: Vec<String> = stopped.err().map(|f| f.message).into_iter().collect();
    let (things, errors) = peer.things();
    failures.extend(errors);
    failures.extend(peer.remove(things));
    drop(lock);
    for dir in [&peer.state_dir, &peer.run_dir] {
        remove_empty(dir);
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(1, failures.join("\n"))) }
}

impl Peer<'_> {
    /// A peer that could hand over its addresses if it were running (docs/spec/cli.md 4.6).
    fn stopped_container(&self) -> Result<bool, Failure> {
        let Some(docker) = &self.docker else { return Ok(false) };
        let name = docker::container_name(options::named("weave", self.parsed, self.env), self.env);
        Ok(docker.inspect(&name)?.is_some_and(|s| docker::is_peer(&s) && s.state != "running"))
    }
}

/// Whatever else lives there is somebody's.
fn remove_empty(dir: &Path) {
    let _ = std::fs::remove_dir(dir);
}
