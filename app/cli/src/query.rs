//! Commands that only talk to the daemon.

use std::path::PathBuf;

use weave_api::{Client, ClientError, Endpoint, status_json};

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::{Failure, notice, print};

pub(crate) const NO_DAEMON: &str = "weave is not running. Have you launched it? Try 'weave launch'.";

/// A client of this host's daemon.
pub(crate) fn client(parsed: &Parsed, env: &dyn Env) -> Client {
    let addr = http_addr(parsed, env);
    traced(Client::local(addr.as_deref(), &socket(parsed, env)), env)
}

/// The daemon of this host, reached over a unix socket.
pub(crate) fn unix_client(parsed: &Parsed, env: &dyn Env) -> Client {
    let addr = http_addr(parsed, env).filter(|addr| addr.starts_with('/'));
    let path = addr.map_or_else(|| socket(parsed, env), PathBuf::from);
    traced(Client::new(vec![Endpoint::Unix(path)]), env)
}

fn http_addr(parsed: &Parsed, env: &dyn Env) -> Option<String> {
    parsed.text("http-addr").map(str::to_owned).or_else(|| env.var("WEAVE_HTTP_ADDR"))
}

fn socket(parsed: &Parsed, env: &dyn Env) -> PathBuf {
    options::run_dir(parsed, env).join(weave_daemon::config::CONTROL_SOCKET)
}

fn traced(client: Client, env: &dyn Env) -> Client {
    if env.var("WEAVE_DEBUG").is_some_and(|d| !d.is_empty()) {
        return client.traced(|line| notice(format_args!("+ {line}")));
    }
    client
}

/// The error of a command whose request failed.
pub(crate) fn explain(error: ClientError, parsed: &Parsed, env: &dyn Env) -> Failure {
    match &error {
        ClientError::Connect { endpoint, source }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Failure::new(1, format_args!("{endpoint}: permission denied; weave must be run as 'root'"))
        }
        ClientError::Connect { .. } => {
            let run_dir = options::run_dir(parsed, env);
            if weave_daemon::pid_file::stays_held(&run_dir.join("weave.pid")) {
                // Exit code of curl, which 2.8.1 returned in this case.
                Failure::new(7, format_args!("weave is running but does not answer ({error}); see its log"))
            } else {
                Failure::new(1, NO_DAEMON)
            }
        }
        _ => Failure::new(error.exit_code(), &error),
    }
}

pub(crate) fn connect(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let replace = parsed.flag("replace");
    if parsed.rest.is_empty() && !replace {
        return Err(Failure::new(1, &parsed.usage));
    }
    let mut form: Vec<_> = parsed.rest.iter().map(|peer| ("peer", peer.as_str())).collect();
    if replace {
        form.push(("replace", "true"));
    }
    let answer = client(parsed, env).post("/connect", &form);
    print(&answer.map_err(|e| explain(e, parsed, env))?)
}

pub(crate) fn forget(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let form: Vec<_> = parsed.rest.iter().map(|peer| ("peer", peer.as_str())).collect();
    let answer = client(parsed, env).post("/forget", &form);
    print(&answer.map_err(|e| explain(e, parsed, env))?)
}

pub(crate) fn status(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let invalid = || {
        let args = parsed.rest.join(" ");
        Failure::new(1, format_args!("Invalid 'weave status' sub-command: {args}\n{}", parsed.usage))
    };
    let page = match parsed.rest.as_slice() {
        [] => None,
        [page] => Some(page.as_str()),
        _ => return Err(invalid()),
    };
    if page.is_some_and(|p| !p.bytes().all(|b| b.is_ascii_lowercase())) {
        return Err(invalid());
    }
    let client = client(parsed, env);
    if parsed.flag("json") {
        let report = client.report().map_err(|e| explain(e, parsed, env))?;
        let json = status_json::json(&report, page).ok_or_else(invalid)?;
        print(&(json + "\n"))?;
        // 1 as without --json, where the answer is 503.
        return if report.ready { Ok(()) } else { Err(Failure::new(1, "")) };
    }
    match page {
        None => {
            let text = client.get("/status").map_err(|e| explain(e, parsed, env))?;
            print(&format!("\n{text}\n"))
        }
        Some(page) => match client.get(&format!("/status/{page}")) {
            Err(ClientError::NotFound) => Err(invalid()),
            answer => print(&answer.map_err(|e| explain(e, parsed, env))?),
        },
    }
}

pub(crate) fn report(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let client = client(parsed, env);
    let answer = match parsed.text("f") {
        Some(template) => client.report_format(template),
        None => client.report_json(),
    };
    print(&answer.map_err(|e| explain(e, parsed, env))?)
}

pub(crate) fn version(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let version = match client(parsed, env).report() {
        Ok(report) => report.version,
        Err(_) => weave_daemon::VERSION.to_owned(),
    };
    print(&format!("weave {version}\n"))
}
