//! `weave stop` and `weave reset` (docs/spec/cli.md 4.5, 4.6).

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weave_daemon::config::{
    PLUGIN_DIR, PLUGIN_MESH_SOCKET, PLUGIN_NETWORK, PLUGIN_NETWORK_LABEL, PLUGIN_SOCKET,
};
use weave_daemon::{legacy_database, pid_file};
use weave_host::fault_injection;
use weave_host::files::temporary_path;
use weave_runtime::{Docker, Network};

use crate::args::Parsed;
use crate::cni::install;
use crate::env::Env;
use crate::options;
use crate::service::files::{remove, remove_if_writable};
use crate::service::{docker, systemd};
use crate::{Failure, host_rules, notice, print, query, require_root, takeover};

/// A daemon that has not ended by then is killed, as `docker stop` does it.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay after the daemon has given its addresses away, so that its last gossip reaches other peers; 2.8.1 has the same.
const GOSSIP_FLUSH_DELAY: Duration = Duration::from_millis(500);
/// Interval between checks whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Files in the run directory that exist only while the daemon runs.
const RUN_FILES: [&str; 4] =
    ["fresh", "launch.sock", weave_daemon::config::CONTROL_SOCKET, weave_daemon::config::PROXY_SOCKET];
/// Pid files there; a process removes its own unless it is killed.
const PID_FILES: [&str; 3] = ["supervisor.pid", "weave.pid", "launch.pid"];
/// A peer of this host, seen without its daemon.
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

    /// Pids of supervisor and daemon, in the order in which they have to end.
    fn processes(&self) -> Vec<i32> {
        PID_FILES[..2].iter().filter_map(|f| pid_file::holder(&self.run_dir.join(f))).collect()
    }

    /// Waits for another `launch` or `stop`: a launch would lose its socket, or start what has just been stopped.
    fn lock(&self) -> Result<Option<pid_file::PidFile>, Failure> {
        let path = self.run_dir.join("launch.pid");
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            match pid_file::PidFile::take(&path) {
                Ok(lock) => return Ok(Some(lock)),
                Err(pid_file::PidFileError::Held { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(POLL_INTERVAL)
                }
                Err(pid_file::PidFileError::Held { pid, .. }) => {
                    return Err(Failure::new(
                        1,
                        format_args!(
                            "another 'weave launch' or 'weave stop' (pid {pid}) is running; end it first"
                        ),
                    ));
                }
                // Without a writable directory no launch can run either.
                Err(pid_file::PidFileError::Io { .. }) => return Ok(None),
            }
        }
    }

    /// Stops the daemon and what would start it again; returns `false` if there was neither. Continues after failures and returns all
    /// of them.
    fn stop(&self) -> Result<bool, Failure> {
        let mut failures = Vec::new();
        match self.networks() {
            Ok(networks) => failures
                .extend(networks.iter().filter_map(|n| self.remove_network(n).err().map(|e| e.message))),
            Err(e) => failures.push(e.message),
        }
        let mut found = !self.processes().is_empty();
        let mut kept = false;
        match systemd::stop(&self.unit, &self.processes()) {
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
        // A process that still runs needs what follows.
        self.end_processes().map_err(|e| {
            failures.push(e.message);
            Failure::new(1, failures.join("\n"))
        })?;
        if options::instance(self.parsed, self.env).is_none() {
            weave_daemon::remove_dead_plugin_sockets();
        }
        self.forget_connections();
        failures.extend(self.revert_host_resolver());
        // A unit or a container needs the password when it is started again.
        if !kept && found && systemd::ours(&self.unit).is_none() {
            // The peer has been stopped, so this is no failure.
            let password = remove(&self.state_dir.join("password"));
            password.unwrap_or_else(|e| notice(format_args!("Warning: {}", e.message)));
        }
        for name in RUN_FILES {
            failures.extend(remove(&self.run_dir.join(name)).err().map(|f| f.message));
        }
        if failures.is_empty() { Ok(found) } else { Err(Failure::new(1, failures.join("\n"))) }
    }

    /// The Docker networks that the plugin has made, or that of 2.8.1; not others of the same name.
    fn networks(&self) -> Result<Vec<Network>, Failure> {
        let Some(docker) =
            self.docker.as_ref().filter(|_| options::instance(self.parsed, self.env).is_none())
        else {
            return Ok(Vec::new());
        };
        let mut found: Vec<Network> =
            docker.network(PLUGIN_NETWORK).map_err(|e| Failure::new(1, e))?.into_iter().collect();
        // Of other names, if Docker tells.
        for other in docker.networks().unwrap_or_default() {
            let ours = other.labels.contains_key(PLUGIN_NETWORK_LABEL);
            if ours && other.name != PLUGIN_NETWORK {
                found.extend(docker.network(&other.id).map_err(|e| Failure::new(1, e))?);
            }
        }
        found.retain(|network| network.driver.starts_with("weave"));
        Ok(found)
    }

    /// Removes the network unless containers are in it.
    fn remove_network(&self, network: &Network) -> Result<(), Failure> {
        let Some(docker) = &self.docker else { return Ok(()) };
        let name = if network.name.is_empty() { PLUGIN_NETWORK } else { &network.name };
        if network.containers.is_empty() {
            return docker.remove_network(&network.id).map_err(|e| {
                Failure::new(
                    1,
                    format_args!("{e}; nothing else depends on it, 'docker network rm {name}' removes it"),
                )
            });
        }
        let short = network.containers.iter().map(|id| id.chars().take(12).collect::<String>() + "\n");
        notice(format_args!(
            "WARNING: the following containers are still attached to network \"{name}\":\n{}\
             They stay connected with each other on this host. Until 'weave launch' Docker waits long\n\
             for this network when it starts or stops one of them.",
            short.collect::<String>()
        ));
        Ok(())
    }

    /// Takes back what a daemon with `--host-dns` that was killed has set.
    fn revert_host_resolver(&self) -> Option<String> {
        let file = self.run_dir.join(weave_daemon::config::HOST_DNS_FILE);
        let bridge = std::fs::read_to_string(&file).ok()?;
        let reverted = weave_host::host_resolver::revert(bridge.trim()).map_err(|e| e.to_string());
        reverted.and_then(|()| remove(&file).map_err(|e| e.message)).err()
    }

    /// Deletes the connection tracking entries of the peer's datagrams, which would otherwise apply to the next peer until they time out.
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
        let deadline = Instant::now() + STOP_TIMEOUT;
        // The supervisor is first in the list and ends the daemon.
        let mut signalled: Vec<i32> = Vec::new();
        while let Some(&pid) = self.processes().first() {
            let late = Instant::now() >= deadline;
            if late || !signalled.contains(&pid) {
                let signal = if late { Signal::SIGKILL } else { Signal::SIGTERM };
                let allowed = fault_injection::fail_point(&format_args!("signalling process {pid}"));
                match allowed.and_then(|()| kill(Pid::from_raw(pid), signal)) {
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => signalled.push(pid),
                    Err(e) => {
                        return Err(Failure::new(1, format_args!("cannot stop weave (pid {pid}): {e}")));
                    }
                }
                if Instant::now() >= deadline + STOP_TIMEOUT {
                    return Err(Failure::new(1, format_args!("weave (pid {pid}) does not end")));
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

pub(crate) fn stop(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    require_root()?;
    let peer = Peer::new(parsed, env);
    let _lock = peer.lock()?;
    let stopped = peer.stop();
    if stopped.as_ref().is_ok_and(|found| !found) {
        notice("Weave is not running (ignore on Kubernetes).");
    }
    if !parsed.flag("hand-back") || !peer.processes().is_empty() {
        return stopped.map(drop);
    }
    // Everything is tried; failures are reported at the end.
    let mut failures: Vec<String> = stopped.err().map(|f| f.message).into_iter().collect();
    // This version must not start at the next boot.
    failures.extend(systemd::remove(&peer.unit).into_iter().map(|f| f.message));
    failures.extend(docker::hand_back(parsed, env));
    failures.extend(takeover::hand_back(parsed, env));
    if failures.is_empty() {
        return Ok(());
    }
    failures.push(
        "the rest of the hand-back is done; repeat 'weave stop --hand-back' for what failed".to_owned(),
    );
    Err(Failure::new(1, failures.join("\n")))
}

/// One object that `reset` removes.
enum Object {
    Process(i32),
    Unit(PathBuf),
    /// A container with its anonymous volumes.
    Container(String),
    Image(String),
    /// A Docker network.
    Network(String),
    File(PathBuf),
    /// Directory of the programs that containers of the proxy wait with.
    WaitPrograms(PathBuf),
    /// Removed only if it is empty then.
    Directory(PathBuf),
    Device(String),
    /// Firewall rules and chains, and configuration files for other programs.
    Host(String),
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Object::Process(pid) => write!(f, "process {pid}"),
            Object::Unit(path) => write!(f, "unit {}", path.display()),
            Object::Container(name) => write!(f, "container {name} and its volumes"),
            Object::Image(name) => write!(f, "image {name}"),
            Object::Network(name) => write!(f, "network {name} of Docker"),
            Object::File(path) => write!(f, "file {}", path.display()),
            Object::WaitPrograms(path) => write!(f, "directory {} with all that is in it", path.display()),
            Object::Directory(path) => write!(f, "directory {}, if nothing else is in it", path.display()),
            Object::Device(name) => write!(f, "device {name}"),
            Object::Host(what) => f.write_str(what),
        }
    }
}

impl Peer<'_> {
    /// All existing objects in the order of their removal, and what could not be examined.
    fn objects(&self) -> (Vec<Object>, Vec<String>) {
        let mut errors = Vec::new();
        let mut objects: Vec<Object> = self.processes().into_iter().map(Object::Process).collect();
        objects.extend(systemd::ours(&self.unit).map(Object::Unit));
        match self.networks() {
            Ok(networks) => {
                let unused = networks.into_iter().filter(|n| n.containers.is_empty());
                objects.extend(unused.map(|n| Object::Network(n.name)));
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
            // An image that another peer's container uses stays.
            let others = docker.containers_labelled(docker::LABEL).unwrap_or_default();
            let shared = others.iter().any(|o| !names.contains(o));
            objects.extend(names.into_iter().map(Object::Container));
            if !shared {
                match docker.images_labelled(docker::LABEL) {
                    Ok(images) => objects.extend(images.into_iter().map(Object::Image)),
                    Err(e) => errors.push(e.to_string()),
                }
            }
        }
        let state_file = |name: &&str| self.state_dir.join(name);
        // A database of 2.8.1 that stayed would be imported again. A damaged state file must not prevent its removal.
        let taken_over = weave_daemon::PeerState::read_original(&self.state_dir).unwrap_or_default().path;
        let mut databases: Vec<PathBuf> = legacy_database::FILE_NAMES.iter().map(state_file).collect();
        if let Some(path) = taken_over.filter(|path| !databases.contains(path)) {
            databases.push(path);
        }
        let moved = databases.iter().map(|path| legacy_database::moved_path(path));
        let written = weave_daemon::PEER_FILES.iter().chain(&["password"]).map(state_file);
        let files = written.flat_map(|path| [temporary_path(&path), path]);
        let files = files.chain(databases.iter().cloned()).chain(moved);
        // The description of the firewall rules is removed after the rules.
        let host = [&weave_daemon::HOST_FILE].into_iter().map(state_file);
        let host = host.flat_map(|path| [temporary_path(&path), path]);
        // This process removes its own lock file.
        let files = files.chain(RUN_FILES.iter().chain(&PID_FILES[..2]).map(|f| self.run_dir.join(f)));
        let files = files.chain(weave_runtime::pending_files(&self.run_dir).unwrap_or_default());
        let (cni_files, cni_directories) = self.cni();
        let files = files.chain(self.plugin_sockets()).chain(cni_files);
        objects.extend(files.chain(host).filter(|f| f.symlink_metadata().is_ok()).map(Object::File));
        let wait = self.state_dir.join(weave_daemon::config::WAIT_DIR);
        objects.extend(wait.is_dir().then_some(Object::WaitPrograms(wait)));
        let dirs =
            [self.state_dir.clone(), self.run_dir.clone()].into_iter().chain(self.plugin_directories());
        let dirs = dirs.chain(cni_directories);
        objects.extend(dirs.filter(|d| d.is_dir()).map(Object::Directory));
        match weave_host::owned_devices(&options::devices(self.parsed, self.env)) {
            Ok(names) => objects.extend(names.into_iter().map(Object::Device)),
            Err(e) => errors.push(e.to_string()),
        }
        let uplink = options::devices(self.parsed, self.env).device;
        match weave_daemon::kernel_path_devices(&uplink, options::instance(self.parsed, self.env).as_deref())
        {
            Ok(names) => objects.extend(names.into_iter().map(Object::Device)),
            Err(e) => errors.push(e),
        }
        let (host, failed) = host_rules::present(self.parsed, self.env);
        objects.extend(host.into_iter().map(Object::Host));
        errors.extend(failed);
        (objects, errors)
    }

    /// The sockets of the Docker network plugin that end with the daemon, or belong to one that was killed.
    fn plugin_sockets(&self) -> Vec<PathBuf> {
        let runs = !self.processes().is_empty();
        let dead = |path: &PathBuf| {
            let error = UnixStream::connect(path).err();
            error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        let directory = self.plugin_directories().into_iter().next();
        let sockets = directory
            .into_iter()
            .flat_map(|dir| [PLUGIN_SOCKET, PLUGIN_MESH_SOCKET].map(|name| dir.join(name)));
        sockets.filter(|path| runs || dead(path)).collect()
    }

    /// The directories that the daemon makes for the plugin; only the one peer of a host has one.
    fn plugin_directories(&self) -> Vec<PathBuf> {
        let count = if options::instance(self.parsed, self.env).is_none() { 2 } else { 0 };
        Path::new(PLUGIN_DIR).ancestors().take(count).map(Path::to_owned).collect()
    }

    /// Files of the CNI plugins, and their directories; only the one peer of a host has some.
    fn cni(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        if options::instance(self.parsed, self.env).is_some() {
            return (Vec::new(), Vec::new());
        }
        let (files, directories) = install::installed(self.env);
        let directories = if files.is_empty() { Vec::new() } else { directories.to_vec() };
        (files, directories)
    }

    /// Removes everything; continues after failures and returns them.
    fn remove(&self, objects: Vec<Object>) -> Vec<String> {
        let rules = host_rules::remembered(self.parsed, self.env);
        let mut failures = Vec::new();
        let mut add = |result: Result<(), String>| failures.extend(result.err());
        let with_docker = |remove: &dyn Fn(&Docker) -> Result<(), weave_runtime::Error>| {
            self.docker.as_ref().map_or(Ok(()), remove).map_err(|e| e.to_string())
        };
        for object in objects {
            match object {
                Object::Unit(_) => systemd::remove(&self.unit).into_iter().for_each(|e| add(Err(e.message))),
                Object::Container(name) => add(with_docker(&|docker| docker.remove(&name))),
                Object::Image(name) => add(with_docker(&|docker| docker.remove_image(&name))),
                Object::File(path) => {
                    let own = path.starts_with(&self.state_dir) || path.starts_with(&self.run_dir);
                    let removed = if own { remove(&path) } else { remove_if_writable(&path) };
                    add(removed.map_err(|f| f.message));
                }
                Object::WaitPrograms(path) => add(std::fs::remove_dir_all(&path)
                    .map_err(|e| format!("cannot remove {}: {e}", path.display()))),
                // Processes have ended already, and the others are removed below.
                Object::Process(_)
                | Object::Network(_)
                | Object::Directory(_)
                | Object::Device(_)
                | Object::Host(_) => {}
            }
        }
        let names = options::devices(self.parsed, self.env);
        add(weave_daemon::remove_kernel_path(
            &names.device,
            options::instance(self.parsed, self.env).as_deref(),
        ));
        let (_removed, errors) = weave_host::remove_all(&names);
        errors.into_iter().for_each(|e| add(Err(e.to_string())));
        host_rules::remove(rules, &names).into_iter().for_each(|e| add(Err(e)));
        failures
    }
}

pub(crate) fn reset(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let peer = Peer::new(parsed, env);
    if parsed.flag("dry-run") {
        let (objects, errors) = peer.objects();
        print(&objects.iter().map(|t| format!("{t}\n")).collect::<String>())?;
        return if errors.is_empty() { Ok(()) } else { Err(Failure::new(1, errors.join("\n"))) };
    }
    require_root()?;
    let lock = peer.lock()?;
    let force = parsed.flag("force");
    let pid_path = peer.run_dir.join("weave.pid");
    if pid_file::holder(&pid_path).is_some() {
        // The addresses are given to other peers; without allocation the daemon answers 404.
        let handed_over =
            query::client(parsed, env).request("DELETE", "/peer?explain=true&force=true", &[], &[]);
        if let Ok(answer) = &handed_over {
            // The answer says so if no other peer could take them.
            answer.body.lines().for_each(notice);
            std::thread::sleep(GOSSIP_FLUSH_DELAY);
        }
        if let Err(e) = handed_over
            && !force
            && pid_file::stays_held(&pid_path)
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
    // Everything is tried; failures are reported at the end.
    let stopped = peer.stop();
    if !peer.processes().is_empty() {
        // Without its files the process could not be found again.
        return stopped.map(drop);
    }
    let mut failures: Vec<String> = stopped.err().map(|f| f.message).into_iter().collect();
    let (objects, errors) = peer.objects();
    let (_, cni_directories) = peer.cni();
    failures.extend(errors);
    failures.extend(peer.remove(objects));
    drop(lock);
    for dir in [&peer.state_dir, &peer.run_dir] {
        remove_empty(dir);
    }
    peer.plugin_directories().iter().chain(&cni_directories).for_each(|dir| remove_empty(dir));
    if systemd::starts_other(&peer.unit) {
        let unit = &peer.unit;
        notice(format_args!(
            "Notice: systemd starts {unit} at the next boot; 'systemctl disable {unit}' prevents it"
        ));
    }
    if failures.is_empty() { Ok(()) } else { Err(Failure::new(1, failures.join("\n"))) }
}

impl Peer<'_> {
    /// Whether a container of the peer exists but does not run; a running one could give its addresses away (docs/spec/cli.md 4.6).
    fn stopped_container(&self) -> Result<bool, Failure> {
        let Some(docker) = &self.docker else { return Ok(false) };
        let name = docker::container_name(options::named("weave", self.parsed, self.env), self.env);
        Ok(docker.inspect(&name)?.is_some_and(|s| docker::is_peer(&s) && s.state != "running"))
    }
}

/// Removes a directory unless other files are in it.
fn remove_empty(dir: &Path) {
    let _ = std::fs::remove_dir(dir);
}
