//! `weave launch` and `weave daemon`.
//!
//! ```text
//! weave launch --- validates, writes the password file, tells ---> systemd, Docker or a supervisor -> weave daemon
//!      ^                                                                                            |
//!      +----------- STATUS=, WEAVE_ERROR=, READY=1 (sd_notify datagrams, launch.sock) --------------+
//! ```
//!
//! Everything that can be known to be wrong is refused before anything on the host changes, and what was changed is taken
//! back if the daemon does not become ready. Nothing that is started keeps a file of the caller open.

use std::fs;
use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use weave_api::{Client, ClientError, Endpoint};
use weave_daemon::config::{Config, ListenAddr};
use weave_daemon::{log, pid_file};

use crate::args::Parsed;
use crate::options::{self, Env};
use crate::service::files::{Undo, failed, remove};
use crate::service::{self, Job, Keeper, docker};
use crate::takeover::{Original, Stopped};
use crate::{Failure, container, notice, print, require_root};

/// After this long a person is told what is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for a word of somebody who listens on the control address.
const PROBE: Duration = Duration::from_secs(2);
/// So long after its last words a daemon should have ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A daemon that is neither ready nor gone by then hangs.
const BIRTH: Duration = Duration::from_secs(10);
/// How often it is looked whether the daemon still lives.
const LOOK: Duration = Duration::from_millis(50);

/// Host name for the nickname.
fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|h| h.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// `weave daemon`: a peer in the foreground. Log lines and errors go to stderr in the daemon's form.
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
    log::options_line(&shown(parsed));
    parsed.notices().iter().for_each(log::info);
    // The reason has been logged and told to whoever waits for readiness.
    weave_daemon::run(config).map_err(|_| Failure::new(1, ""))
}

/// Options for the log, secrets left out.
fn shown(parsed: &Parsed) -> Vec<(String, String)> {
    let mut shown: Vec<_> = parsed
        .canonical()
        .into_iter()
        .filter_map(|arg| {
            let (name, value) = arg.trim_start_matches('-').split_once('=')?;
            let secret = matches!(name, "password" | "token");
            Some((name.to_owned(), if secret { "<redacted>".to_owned() } else { value.to_owned() }))
        })
        .collect();
    shown.sort();
    shown
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
    let config = options::config(&parsed, env, &hostname())?;
    parsed.notices().iter().for_each(notice);
    if parsed.flag("print-peer-name") {
        return print(&format!("{}\n", weave_daemon::find_peer_name(&config)?));
    }
    service::notice_ignored(env);
    require_root()?;
    refuse_second(&parsed, &config, env)?;
    check_range(&config, range_given)?;
    let original = find_original(&parsed, &config, env)?;
    let mut undo = Undo::default();
    undo.directory(&config.run_dir, 0o755)?;
    let lock = lock(&config)?;
    // Another launch may have ended meanwhile.
    refuse_process(&config)?;
    let restart = !parsed.flag("no-restart");
    let password_file = config.state_dir.join("password");
    let job = Job {
        parsed: &parsed,
        config: &config,
        env,
        restart,
        password_file: password_file.to_string_lossy().into_owned(),
    };
    let mut keeper = service::choose(&job)?;
    // The daemon takes what it is given rather than what is stored, and the password from where only root sees it.
    undo.directory(&config.state_dir, 0o700)?;
    let password = config.password.as_ref().map(|p| p.reveal().as_bytes());
    undo.replace(&password_file, password, 0o600)?;
    undo.replace(&config.fresh_file(), Some(b""), 0o600)?;
    let ear = Ear::open(&config)?;
    // As late as possible: until our own daemon works, containers here are cut off from other hosts.
    let (replaced, resting) =
        if original.runs() { (Some(original.stop()?), None) } else { (None, Some(original)) };
    let started =
        keeper.start().and_then(|()| ear.wait(&mut *keeper, &config).inspect_err(|_| keeper.abandon()));
    let name = match started {
        Ok(name) => name,
        Err(e) => {
            replaced.into_iter().for_each(Stopped::undo);
            return Err(e);
        }
    };
    resting.iter().for_each(Original::retire);
    // Usually the daemon has done so; a crash would not be followed by a new start while it is there.
    remove(&config.fresh_file()).unwrap_or_else(|e| notice(format_args!("Warning: {}", e.message)));
    keeper.done();
    undo.keep();
    let result = keeper.id().map_or(name, str::to_owned);
    let remark = keeper.remark();
    drop((ear, lock));
    print(&format!("{result}\n"))?;
    if let Some(remark) = remark {
        notice(remark);
    }
    Ok(())
}

/// Two launches at a time would write each other's files.
fn lock(config: &Config) -> Result<pid_file::PidFile, Failure> {
    pid_file::PidFile::take(&config.run_dir.join("launch.pid")).map_err(|e| match e {
        pid_file::PidFileError::Held { .. } => Failure::new(3, "another 'weave launch' is at work"),
        e => Failure::new(1, e),
    })
}

/// Containers with addresses that the host routes elsewhere would not be reached from it (docs/spec/cli.md 4.1).
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
    let range = options::DEFAULT_RANGE;
    Err(Failure::new(
        1,
        format_args!(
            "ERROR: Default --ipalloc-range {range} overlaps with existing route on host.\n\
             You should pick another range and set it on all hosts."
        ),
    ))
}

/// 2.8.1 on this host. It is an error if it runs and is not to be replaced.
fn find_original(parsed: &Parsed, config: &Config, env: &dyn Env) -> Result<Original, Failure> {
    let original = Original::find(parsed, env)?;
    if original.runs() && !parsed.flag("take-over") {
        return Err(original.refusal());
    }
    if original.runs() {
        // What can be known to fail is not tried on a host that works.
        weave_daemon::legacy_database::find(config)?;
        return Ok(original);
    }
    // Somebody else's, in a container for instance.
    let Some(ListenAddr::Tcp { host, port }) = &config.http_addr else { return Ok(original) };
    let host = if host.is_empty() || host == "0.0.0.0" { "127.0.0.1" } else { host };
    let client =
        Client::new(vec![Endpoint::Tcp(ListenAddr::Tcp { host: host.into(), port: *port }.to_string())]);
    match client.impatient(PROBE).get("/status") {
        Ok(_) | Err(ClientError::Refused { status: 503, .. }) => {
            Err(Failure::new(1, "Weave Net is already running"))
        }
        _ => Ok(original),
    }
}

/// A second daemon would take the first one's devices. One that was started by a launch that did not live to see it become
/// ready does so, or ends together with whoever keeps it: which, is waited for.
fn refuse_process(config: &Config) -> Result<(), Failure> {
    let held = |file: &str| pid_file::holder(&config.run_dir.join(file)).is_some();
    let begin = Instant::now();
    while held("weave.pid") || held("supervisor.pid") {
        if config.fresh_file().exists() && begin.elapsed() < BIRTH {
            std::thread::sleep(LOOK);
            continue;
        }
        return Err(Failure::new(3, "weave is already running; you can stop it with 'weave stop'."));
    }
    Ok(())
}

/// The same, whoever keeps the first one.
fn refuse_second(parsed: &Parsed, config: &Config, env: &dyn Env) -> Result<(), Failure> {
    refuse_process(config)?;
    // One of ours that Docker is about to start again.
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

/// Where the daemon tells how far it is.
struct Ear {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Drop for Ear {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Ear {
    fn open(config: &Config) -> Result<Ear, Failure> {
        let path = config.launch_socket();
        // Of one that was killed; whoever works now holds the lock.
        let _ = fs::remove_file(&path);
        let socket = weave_host::fault_injection::io_fail_point(&format_args!("creating {}", path.display()))
            .and_then(|()| UnixDatagram::bind(&path))
            .map_err(|e| failed("create", &path, &e))?;
        let ear = Ear { socket, path };
        fs::set_permissions(&ear.path, fs::Permissions::from_mode(0o600))?;
        ear.socket.set_read_timeout(Some(LOOK))?;
        Ok(ear)
    }

    /// Until the daemon is ready; its peer name. On a terminal a person sees what is waited for.
    fn wait(&self, keeper: &mut dyn Keeper, config: &Config) -> Result<String, Failure> {
        let begin = Instant::now();
        let terminal = std::io::stderr().is_terminal();
        let mut told = String::new();
        let mut doing = "the daemon to start".to_owned();
        let mut error: Option<(String, Instant)> = None;
        let mut name = None;
        let mut buffer = [0; 4096];
        loop {
            // Looked at before the socket, so that the last words of one that has ended are read.
            let ended = keeper.ended()?;
            while let Ok(n) = self.socket.recv(&mut buffer) {
                for line in String::from_utf8_lossy(&buffer[..n]).lines() {
                    match line.split_once('=') {
                        Some(("READY", "1")) => return Ok(name.unwrap_or_else(|| config.nickname.clone())),
                        Some(("WEAVE_NAME", value)) => name = Some(value.to_owned()),
                        Some(("WEAVE_ERROR", value)) => error = Some((value.to_owned(), Instant::now())),
                        Some(("STATUS", value)) => doing = value.to_owned(),
                        _ => {}
                    }
                }
            }
            match (&error, ended) {
                (Some((error, _)), Some(_)) => return Err(Failure::new(1, error)),
                // It ends after these words; whoever keeps it may be slow to notice, or start it again.
                (Some((error, at)), None) if at.elapsed() > LAST_WORDS => {
                    return Err(Failure::new(1, error));
                }
                (None, Some(ended)) => return Err(Failure::new(1, ended)),
                _ => {}
            }
            if terminal && begin.elapsed() > PATIENCE && doing != told {
                notice(format_args!("waiting for {doing} ..."));
                told.clone_from(&doing);
            }
        }
    }
}
