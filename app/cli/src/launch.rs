//! `weave launch` and `weave daemon`.
//!
//! ```text
//! weave launch --- validates, writes the password file, starts --> systemd, Docker or a supervisor -> weave daemon
//!      ^                                                                                            |
//!      +----------- STATUS=, WEAVE_ERROR=, READY=1 (sd_notify datagrams, launch.sock) --------------+
//! ```
//!
//! Errors are reported before anything on the host changes where that is possible, and changes are undone if the daemon does not
//! become ready. Nothing that is started keeps a file of the caller open.

use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weave_api::{Client, ClientError, Endpoint};
use weave_daemon::config::{Config, ListenAddr};
use weave_daemon::{log, pid_file};

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::service::files::{Undo, failed, remove};
use crate::service::{self, LaunchRequest, ServiceManager, docker};
use crate::takeover::{Original, Stopped};
use crate::{Failure, cni, container, notice, plugin_options, print, proxy_options, require_root};

/// After this time the progress is printed on a terminal.
const PROGRESS_DELAY: Duration = Duration::from_millis(500);
/// Timeout of the request that finds out whether another daemon listens on the control address.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A daemon that reported an error should have ended after this time.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
/// A daemon that another launch started is ready or has ended after this time, or it hangs.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between checks whether the daemon still runs.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|h| h.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// `weave daemon`: a peer in the foreground. Log lines and errors go to stderr in the form of log lines.
pub(crate) fn daemon(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    if parsed.flag("version") {
        return print(&format!("weave {}\n", weave_daemon::VERSION));
    }
    let fatal = |e: &dyn std::fmt::Display| Failure::new(1, log::fatal_line(e));
    let config = options::config(parsed, env, &hostname()).map_err(|e| fatal(&e))?;
    if parsed.flag("print-peer-name") {
        let name = weave_daemon::find_peer_name(&config).map_err(|e| fatal(&e))?;
        return print(&format!("{name}\n"));
    }
    require_root().map_err(|e| fatal(&e.message))?;
    log::init(config.log_level);
    if let Some(file) = &config.log_file {
        let path = file.path.display();
        log::to_file(file).map_err(|e| fatal(&format_args!("cannot open the log file {path}: {e}")))?;
    }
    log::options_line(&options_without_secrets(parsed));
    parsed.notices().iter().for_each(log::info);
    options::password_notice(parsed, &config, env).iter().for_each(log::info);
    // The daemon has logged the error and reported it to `launch`.
    weave_daemon::run(config).map_err(|_| Failure::new(1, ""))
}

/// Options for the log, without secrets.
fn options_without_secrets(parsed: &Parsed) -> Vec<(String, String)> {
    let mut options: Vec<_> = parsed
        .canonical()
        .into_iter()
        .filter_map(|arg| {
            let (name, value) = arg.trim_start_matches('-').split_once('=')?;
            let secret = matches!(name, "password" | "token");
            Some((name.to_owned(), if secret { "<redacted>".to_owned() } else { value.to_owned() }))
        })
        .collect();
    options.sort();
    options
}

pub(crate) fn run(mut parsed: Parsed, env: &dyn Env) -> Result<(), Failure> {
    if parsed.flag("version") {
        return print(&format!("weave {}\n", weave_daemon::VERSION));
    }
    // Until 0.8 the first argument was the peer's own address in the network.
    if let Some(first) = parsed.rest.first()
        && first.parse::<weave_types::Cidr>().is_ok()
    {
        let cidr = parsed.rest.remove(0);
        notice(format_args!("Warning: {cidr} parameter ignored; 'weave launch' no longer takes a CIDR"));
    }
    let range_given = parsed.text("ipalloc-range").is_some();
    if !range_given {
        parsed.set("ipalloc-range", options::DEFAULT_RANGE);
    }
    let only_peer = options::instance(&parsed, env).is_none();
    let warning = proxy_options::complete(&mut parsed, only_peer, env);
    plugin_options::complete(&mut parsed, only_peer);
    let config = options::config(&parsed, env, &hostname())?;
    warning.iter().for_each(notice);
    parsed.notices().iter().for_each(notice);
    options::password_notice(&parsed, &config, env).iter().for_each(notice);
    if parsed.flag("print-peer-name") {
        return print(&format!("{}\n", weave_daemon::find_peer_name(&config)?));
    }
    service::notice_ignored(env);
    require_root()?;
    refuse_second(&parsed, &config, env)?;
    check_range(&config, range_given)?;
    let original = find_original(&parsed, range_given, &config, env)?;
    let mut undo = Undo::default();
    undo.directory(&config.run_dir, 0o755)?;
    let lock = lock(&config)?;
    // Another launch may have finished before this one got the lock.
    refuse_process(&config)?;
    let restart = !parsed.flag("no-restart");
    let password_file = config.state_dir.join("password");
    let request = LaunchRequest {
        parsed: &parsed,
        config: &config,
        env,
        restart,
        password_file: password_file.to_string_lossy().into_owned(),
    };
    let mut manager = service::choose(&request)?;
    // The daemon uses these arguments rather than stored ones, and reads the password from a file that only root can read.
    undo.directory(&config.state_dir, 0o700)?;
    let password = config.password.as_ref().map(options::password_file);
    undo.replace(&password_file, password.as_deref(), 0o600)?;
    undo.replace(&config.fresh_file(), Some(b""), 0o600)?;
    let progress = ProgressSocket::open(&config)?;
    // As late as possible: containers of this host are disconnected from other hosts until the new daemon is ready.
    let (replaced, inactive) =
        if original.runs() { (Some(original.stop()?), None) } else { (None, Some(original)) };
    let started = manager
        .start()
        .and_then(|()| progress.wait(&mut *manager, &config).inspect_err(|_| manager.roll_back()));
    let name = match started {
        Ok(name) => name,
        Err(e) => {
            replaced.into_iter().for_each(Stopped::undo);
            return Err(e);
        }
    };
    inactive.iter().for_each(Original::disable_restart);
    // The daemon has usually removed it. While it exists, the daemon is not started again after a crash.
    remove(&config.fresh_file()).unwrap_or_else(|e| notice(format_args!("Warning: {}", e.message)));
    manager.commit();
    undo.keep();
    let result = manager.id().map_or(name, str::to_owned);
    let remark = manager.note();
    drop((progress, lock));
    print(&format!("{result}\n"))?;
    remark.iter().for_each(notice);
    docker_problem(&parsed, &config).iter().for_each(notice);
    cni::install::install_if_possible(&parsed, env).iter().for_each(notice);
    Ok(())
}

/// A notice if Docker does not answer where it is expected: it was named, or has a socket.
fn docker_problem(parsed: &Parsed, config: &Config) -> Option<String> {
    let docker = config.legacy.docker.clone().filter(|_| !config.proxy.endpoints.is_empty())?;
    let named = parsed.text("docker-api").is_some_and(|host| !host.is_empty());
    if !named && !docker.socket().is_some_and(Path::exists) {
        return None;
    }
    let problem = docker.with_timeout(PROBE_TIMEOUT).ping().err()?;
    Some(format!(
        "Notice: the Docker API proxy and the containers of Docker wait until it answers: {problem}"
    ))
}

/// Two launches at the same time would overwrite each other's files.
fn lock(config: &Config) -> Result<pid_file::PidFile, Failure> {
    pid_file::PidFile::take(&config.run_dir.join("launch.pid")).map_err(|e| match e {
        pid_file::PidFileError::Held { .. } => {
            Failure::new(3, "another 'weave launch' is running; wait until it ends")
        }
        e => Failure::new(1, e),
    })
}

/// The host cannot reach containers with addresses that it routes elsewhere (docs/spec/cli.md 4.1).
fn check_range(config: &Config, given: bool) -> Result<(), Failure> {
    let Some(allocation) = &config.allocation else { return Ok(()) };
    let Some(overlap) = container::overlaps(&[allocation.range.cidr()], &config.bridge)?.pop() else {
        return Ok(());
    };
    notice(overlap);
    if given {
        notice("WARNING: Specified --ipalloc-range overlaps with existing route on host.");
        notice("Unless this is deliberate, you should pick another range and set it on all hosts.");
        return Ok(());
    }
    // A peer that has run keeps its addresses, whatever routes have appeared since.
    if config.state_dir.join(weave_daemon::ALLOCATION_FILE).exists() {
        notice(
            "WARNING: containers may not reach hosts there; to use another range, run 'weave reset' and launch with --ipalloc-range.",
        );
        return Ok(());
    }
    let range = options::DEFAULT_RANGE;
    Err(Failure::new(
        1,
        format_args!(
            "ERROR: Default --ipalloc-range {range} overlaps with existing route on host.\n\
             You should pick another range and set it on all hosts."
        ),
    ))
}

/// Looks for 2.8.1 on this host. It is an error if it runs and `--take-over` is not given.
fn find_original(
    parsed: &Parsed,
    range_given: bool,
    config: &Config,
    env: &dyn Env,
) -> Result<Original, Failure> {
    let original = Original::find(parsed, env)?;
    if original.runs() && !parsed.flag("take-over") {
        return Err(original.refusal());
    }
    // A database that cannot be imported is reported before the running daemon is stopped.
    weave_daemon::legacy_database::check(config)?;
    if original.runs() {
        original.compare_options(parsed, range_given, config)?;
        return Ok(original);
    }
    // A daemon that was not found otherwise, for example in another container.
    let Some(ListenAddr::Tcp { host, port }) = &config.http_addr else { return Ok(original) };
    let host = if host.is_empty() || host == "0.0.0.0" { "127.0.0.1" } else { host };
    let client =
        Client::new(vec![Endpoint::Tcp(ListenAddr::Tcp { host: host.into(), port: *port }.to_string())]);
    match client.with_timeout(PROBE_TIMEOUT).get("/status") {
        Ok(_) | Err(ClientError::Refused { status: 503, .. }) => {
            // Another launch may have started it since the first check.
            refuse_process(config)?;
            Err(Failure::new(1, "Weave Net is already running"))
        }
        _ => Ok(original),
    }
}

/// Refuses a second daemon, which would take over the first one's devices. A process that was killed just now is waited for; so is a
/// daemon whose launch was killed, until it is ready or has ended.
fn refuse_process(config: &Config) -> Result<(), Failure> {
    let held = |file: &str| pid_file::holder(&config.run_dir.join(file)).is_some();
    let client = Client::new(vec![Endpoint::Unix(config.socket())]).with_timeout(pid_file::EXIT_TIMEOUT);
    let begin = Instant::now();
    while held("weave.pid") || held("supervisor.pid") {
        let starting = config.fresh_file().exists();
        let limit = if starting { START_TIMEOUT } else { pid_file::EXIT_TIMEOUT };
        if begin.elapsed() >= limit || (!starting && client.get("/report").is_ok()) {
            return Err(Failure::new(3, "weave is already running; you can stop it with 'weave stop'."));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Removes the files of a launch that was killed after it had started the daemon.
fn remove_stale_launch(config: &Config) {
    if let Ok(_lock) = lock(config) {
        let _ = fs::remove_file(config.launch_socket());
    }
}

/// Refuses a second daemon, however the first one was started.
fn refuse_second(parsed: &Parsed, config: &Config, env: &dyn Env) -> Result<(), Failure> {
    refuse_process(config).inspect_err(|_| remove_stale_launch(config))?;
    // Docker may be about to start a container of this version again.
    if let Some(docker) = docker::local(env) {
        let name = docker::container_name(options::named("weave", parsed, env), env);
        if let Some(there) = docker.inspect(&name)?
            && docker::is_peer(&there)
            && !there.is_legacy_daemon()
            && let Some(refusal) = docker::refusal(&name, &there)
        {
            return Err(refusal);
        }
    }
    Ok(())
}

/// The socket on which the daemon reports its progress.
struct ProgressSocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Drop for ProgressSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl ProgressSocket {
    fn open(config: &Config) -> Result<ProgressSocket, Failure> {
        let path = config.launch_socket();
        // It remains of a launch that was killed; this one holds the lock.
        let _ = fs::remove_file(&path);
        let socket = weave_host::fault_injection::io_fail_point(&format_args!("creating {}", path.display()))
            .and_then(|()| UnixDatagram::bind(&path))
            .map_err(|e| failed("create", &path, &e))?;
        let progress = ProgressSocket { socket, path };
        fs::set_permissions(&progress.path, fs::Permissions::from_mode(0o600))?;
        progress.socket.set_read_timeout(Some(POLL_INTERVAL))?;
        Ok(progress)
    }

    /// Waits until the daemon is ready and returns its peer name. On a terminal it prints the progress.
    fn wait(&self, manager: &mut dyn ServiceManager, config: &Config) -> Result<String, Failure> {
        let begin = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        let mut printed = String::new();
        let mut waiting_for = "the daemon to start".to_owned();
        let mut error: Option<(String, Instant)> = None;
        let mut name = None;
        let mut buffer = [0; 4096];
        loop {
            // Checked before the socket is read, so that the last messages of a daemon that has ended are read.
            let ended = manager.exit_reason()?;
            while let Ok(n) = self.socket.recv(&mut buffer) {
                for line in String::from_utf8_lossy(&buffer[..n]).lines() {
                    match line.split_once('=') {
                        Some(("READY", "1")) => return Ok(name.unwrap_or_else(|| config.nickname.clone())),
                        Some(("WEAVE_NAME", value)) => name = Some(value.to_owned()),
                        Some(("WEAVE_ERROR", value)) => error = Some((value.to_owned(), Instant::now())),
                        Some(("WEAVE_WARNING", value)) => notice(format_args!("Warning: {value}")),
                        Some(("STATUS", value)) => waiting_for = value.to_owned(),
                        _ => {}
                    }
                }
            }
            match (&error, ended) {
                (Some((error, _)), Some(_)) => return Err(Failure::new(1, error)),
                // It ends after an error; the service manager may notice late, or start it again.
                (Some((error, at)), None) if at.elapsed() > EXIT_TIMEOUT => {
                    return Err(Failure::new(1, error));
                }
                (None, Some(ended)) => return Err(Failure::new(1, ended)),
                _ => {}
            }
            if terminal && begin.elapsed() > PROGRESS_DELAY && waiting_for != printed {
                notice(format_args!("waiting for {waiting_for} ..."));
                printed.clone_from(&waiting_for);
            }
        }
    }
}
