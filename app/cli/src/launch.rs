//! `weave launch` and `weave daemon`.
//!
//! ```text
//! weave launch --- validates, writes the password file, starts ---> weave supervise -> weave daemon
//!      ^                                                                                 |
//!      +------------------- STATUS=, WEAVE_ERROR=, READY=1 (sd_notify datagrams) --------+
//! ```
//!
//! Everything that can be known to be wrong is refused before anything on the host changes. The processes started have a
//! session of their own and write to the log file, so that nothing of the caller stays open.

use std::fs::{self, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use weave_api::{Client, ClientError, Endpoint};
use weave_daemon::config::{Config, ListenAddr};
use weave_daemon::{lock, log};

use crate::args::Parsed;
use crate::options::{self, Env};
use crate::{Failure, notice, print, require_root};

/// After this long a person is told what is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for a word of somebody who listens on the control address.
const PROBE: Duration = Duration::from_secs(2);
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
        let name = weave_daemon::identity::peer_name(&config).map_err(|e| fatal(&e))?;
        return print(&format!("{name}\n"));
    }
    require_root().map_err(|e| fatal(&e.message))?;
    log::init(config.log_level);
    log::options_line(&shown(parsed));
    parsed.notices(options::DAEMON_TABLE).iter().for_each(log::info);
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
    let config = options::config(&parsed, env, &hostname())?;
    if parsed.flag("print-peer-name") {
        return print(&format!("{}\n", weave_daemon::identity::peer_name(&config)?));
    }
    parsed.notices(options::LAUNCH_TABLE).iter().for_each(notice);
    require_root()?;
    refuse_second(&config)?;
    let created = !config.run_dir.exists();
    let result = locked(&parsed, &config);
    if created && result.is_err() {
        // Only an empty one goes.
        let _ = fs::remove_dir(&config.run_dir);
    }
    print(&format!("{}\n", result?))?;
    if !parsed.flag("no-restart") && std::io::stderr().is_terminal() {
        notice(
            "A crashed daemon is started again; to come back after a reboot it needs a service manager that runs 'weave daemon'.",
        );
    }
    Ok(())
}

/// Starts the daemon and waits for it; its peer name. Two at a time would write each other's files.
fn locked(parsed: &Parsed, config: &Config) -> Result<String, Failure> {
    let run_dir = &config.run_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(run_dir)
        .map_err(|e| Failure::new(1, format_args!("cannot create {}: {e}", run_dir.display())))?;
    let _lock = lock::PidFile::take(&run_dir.join("launch.pid")).map_err(|e| match e {
        lock::LockError::Held { .. } => Failure::new(3, "another 'weave launch' is at work"),
        e => Failure::new(1, e),
    })?;
    let supervise = !parsed.flag("no-restart");
    let log_file = PathBuf::from(parsed.text("log-file").unwrap_or("/var/log/weave.log"));
    let started = start(config, parsed, &log_file, supervise);
    let result = started.and_then(|started| wait(started, config, &log_file));
    if result.is_err() {
        let _ = fs::remove_file(run_dir.join("password"));
    }
    result
}

/// A second daemon would take the first one's devices.
fn refuse_second(config: &Config) -> Result<(), Failure> {
    let held = |file: &str| lock::holder(&config.run_dir.join(file)).is_some();
    if held("weave.pid") || held("supervisor.pid") {
        return Err(Failure::new(3, "weave is already running; you can stop it with 'weave stop'."));
    }
    // Somebody else's, in a container for instance.
    let Some(ListenAddr::Tcp { host, port }) = &config.http_addr else { return Ok(()) };
    let host = if host.is_empty() || host == "0.0.0.0" { "127.0.0.1" } else { host };
    let client =
        Client::new(vec![Endpoint::Tcp(ListenAddr::Tcp { host: host.into(), port: *port }.to_string())]);
    match client.impatient(PROBE).get("/status") {
        Ok(_) | Err(ClientError::Refused { status: 503, .. }) => {
            Err(Failure::new(1, "Weave Net is already running"))
        }
        _ => Ok(()),
    }
}

struct Started {
    child: Child,
    socket: UnixDatagram,
    socket_path: PathBuf,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket_path);
    }
}

fn start(config: &Config, parsed: &Parsed, log_file: &Path, supervise: bool) -> Result<Started, Failure> {
    let mut parsed = parsed.clone();
    let step = |what: &str, path: &Path, e: std::io::Error| {
        Failure::new(1, format_args!("cannot {what} {}: {e}", path.display()))
    };
    let run_dir = &config.run_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(run_dir)
        .map_err(|e| step("create", run_dir, e))?;
    let sentinel = run_dir.join("restart.sentinel");
    match fs::remove_file(&sentinel) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(step("remove", &sentinel, e)),
        _ => {}
    }
    let log = OpenOptions::new().create(true).append(true).mode(0o640).open(log_file);
    let log = log.map_err(|e| step("open the log file", log_file, e))?;

    let socket_path = run_dir.join(format!("launch-{}.sock", std::process::id()));
    let _ = fs::remove_file(&socket_path);
    let socket = UnixDatagram::bind(&socket_path).map_err(|e| step("create", &socket_path, e))?;
    let _ = fs::set_permissions(&socket_path, fs::Permissions::from_mode(0o600));
    socket.set_read_timeout(Some(LOOK))?;

    // The password is in no argument and no environment of what runs on: both are shown by ps.
    parsed.remove("password");
    parsed.remove("password-file");
    let password_file = run_dir.join("password");
    let _ = fs::remove_file(&password_file);
    if let Some(password) = &config.password {
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&password_file);
        file.and_then(|mut f| f.write_all(password.reveal().as_bytes()))
            .map_err(|e| step("write", &password_file, e))?;
        parsed.set("password-file", password_file.to_string_lossy());
    }
    parsed.remove("no-restart");
    parsed.remove("log-file");
    parsed.remove("run-dir");
    parsed.set("run-dir", run_dir.to_string_lossy());

    let exe = std::env::current_exe()?;
    let second = log.try_clone()?;
    let child = Command::new(exe)
        .arg("supervise")
        .args(if supervise { &["--restart"][..] } else { &[] })
        .arg(run_dir)
        .args(parsed.canonical())
        .arg("--")
        .args(&parsed.rest)
        .env_remove("WEAVE_PASSWORD")
        .env("NOTIFY_SOCKET", &socket_path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(second))
        .spawn()
        .map_err(|e| Failure::new(1, format_args!("cannot start the daemon: {e}")))?;
    Ok(Started { child, socket, socket_path })
}

/// Until the daemon is ready; its peer name. On a terminal a person sees what is waited for.
fn wait(mut started: Started, config: &Config, log_file: &Path) -> Result<String, Failure> {
    let begin = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut told = String::new();
    let mut doing = "the daemon to start".to_owned();
    let mut error = None;
    let mut name = None;
    let mut buffer = [0; 4096];
    loop {
        // Looked at before the socket, so that the last words of one that has ended are read.
        let ended = started.child.try_wait()?;
        while let Ok(n) = started.socket.recv(&mut buffer) {
            for line in String::from_utf8_lossy(&buffer[..n]).lines() {
                match line.split_once('=') {
                    Some(("READY", "1")) => return Ok(name.unwrap_or_else(|| config.nickname.clone())),
                    Some(("WEAVE_NAME", value)) => name = Some(value.to_owned()),
                    Some(("WEAVE_ERROR", value)) => error = Some(value.to_owned()),
                    Some(("STATUS", value)) => doing = value.to_owned(),
                    _ => {}
                }
            }
        }
        if let Some(status) = ended {
            let log = log_file.display();
            return Err(match error {
                Some(error) => Failure::new(1, error),
                None => Failure::new(
                    1,
                    format_args!("the daemon ended before it was ready ({status}); see {log}"),
                ),
            });
        }
        if terminal && begin.elapsed() > PATIENCE && doing != told {
            notice(format_args!("waiting for {doing} ..."));
            told.clone_from(&doing);
        }
    }
}
