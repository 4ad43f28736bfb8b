//! Commands that change the host let the daemon do it ([`weave_api::host_requests`]). While no daemon runs, those that do not need one
//! change the host in this process.

use std::os::fd::AsFd;
use std::time::Duration;

use serde::Serialize;
use weave_api::host_requests::{AttachRequest, DetachRequest, HostResponse};
use weave_api::{Client, ClientError};
use weave_host::{NetNs, Netlink};
use weave_runtime::{AddressRequest, Attachment, ContainerNetwork, NoAllocator, Outcome};

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::waiting::{self, Problem, Waiter};
use crate::{Failure, addresses, hosts_file, notice, query};

/// Longest wait for another command that changes the host.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends a request to the daemon. `what` is waited for.
pub(crate) fn post<T: Serialize + Send + 'static>(
    client: &Client,
    path: &'static str,
    request: T,
    ns: Option<&NetNs>,
    what: &str,
) -> Result<HostResponse, Problem> {
    let ns = ns.map(NetNs::try_clone).transpose().map_err(|e| Problem::Interrupted(e.into()))?;
    let send = move |client: &Client| client.post_json(path, &request, ns.as_ref().map(AsFd::as_fd));
    let json = waiting::call(&Waiter::new(client, what), &format!("POST {path}"), send)?;
    serde_json::from_str(&json).map_err(|e| Problem::Client(e.into()))
}

/// `None` if no daemon runs.
pub(crate) fn if_running(answer: Result<HostResponse, Problem>) -> Result<Option<HostResponse>, Failure> {
    match answer {
        Err(Problem::Client(ClientError::Connect { .. })) => Ok(None),
        answer => answer.map(Some).map_err(failure),
    }
}

/// What it means that the daemon did not carry out a request.
pub(crate) fn failure(problem: Problem) -> Failure {
    match problem {
        Problem::Client(ClientError::NotFound) => {
            Failure::new(1, "the daemon is of an older version; stop it and launch it again")
        }
        Problem::Client(ClientError::Transport { .. }) => Failure::new(
            1,
            "weave ended before it had carried out the request; its next start completes or undoes it",
        ),
        Problem::Client(error) => Failure::new(1, error),
        Problem::Interrupted(failure) => failure,
    }
}

/// Attaches a container; the addresses that it got.
pub(crate) fn attach(
    request: AttachRequest,
    ns: NetNs,
    addresses: &[AddressRequest],
    parsed: &Parsed,
    env: &dyn Env,
) -> Result<Vec<String>, Failure> {
    let client = query::unix_client(parsed, env);
    let answer = post(&client, "/attach", request.clone(), Some(&ns), &addresses::describe(addresses));
    if let Some(response) = if_running(answer)? {
        warn(&response.warnings);
        return Ok(response.addresses);
    }
    // Both are checked before the run directory is created, so that an attach that cannot succeed changes nothing on the host.
    if addresses.is_empty() || addresses.iter().any(|a| matches!(a, AddressRequest::Net(_))) {
        return Err(Failure::new(1, query::NO_DAEMON));
    }
    let AttachRequest { container, naming, bridge, multicast_route, hairpin, hosts_file, .. } = request;
    if Netlink::open()?.link(&bridge)?.is_none() {
        return Err(weave_host::Error::no_bridge(&bridge).into());
    }
    let hosts_file = hosts_file.map(hosts_file::local);
    let addresses = addresses.to_vec();
    let attachment =
        Attachment { container, ns, naming, bridge, addresses, multicast_route, hairpin, hosts_file };
    Ok(done(without_daemon(parsed, env)?.attach(&NoAllocator { reason: query::NO_DAEMON }, &attachment)?))
}

/// Detaches a container; the addresses that it had.
pub(crate) fn detach(
    request: DetachRequest,
    ns: &NetNs,
    addresses: &[AddressRequest],
    parsed: &Parsed,
    env: &dyn Env,
) -> Result<Vec<String>, Failure> {
    let client = query::unix_client(parsed, env);
    let answer = post(&client, "/detach", request.clone(), Some(ns), &addresses::describe(addresses));
    if let Some(response) = if_running(answer)? {
        warn(&response.warnings);
        return Ok(response.addresses);
    }
    Ok(done(without_daemon(parsed, env)?.detach(
        &NoAllocator { reason: query::NO_DAEMON },
        &request.container,
        ns,
        addresses,
    )?))
}

/// Releases the addresses of a container that cannot be found any more.
pub(crate) fn release(
    request: DetachRequest,
    addresses: &[AddressRequest],
    parsed: &Parsed,
    env: &dyn Env,
) -> Result<Vec<String>, Failure> {
    let client = query::unix_client(parsed, env);
    let response =
        post(&client, "/detach", request, None, &addresses::describe(addresses)).map_err(failure)?;
    Ok(response.addresses)
}

fn done(outcome: Outcome) -> Vec<String> {
    warn(&outcome.warnings);
    outcome.addresses.iter().map(ToString::to_string).collect()
}

/// The right to change the host in this process. What a process that was killed has left half-done is completed first.
pub(crate) fn without_daemon(parsed: &Parsed, env: &dyn Env) -> Result<ContainerNetwork, Failure> {
    let run_dir = options::run_dir(parsed, env);
    std::fs::create_dir_all(&run_dir)
        .map_err(|e| Failure::new(1, format_args!("cannot create {}: {e}", run_dir.display())))?;
    let network = ContainerNetwork::open(&run_dir, LOCK_TIMEOUT)?;
    for recovered in network.recover()? {
        recovered.defer()?;
    }
    Ok(network)
}

pub(crate) fn warn(warnings: &[String]) {
    warnings.iter().for_each(|w| notice(format_args!("Warning: {w}")));
}
