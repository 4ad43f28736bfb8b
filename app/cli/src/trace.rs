//! `weave trace`: where the frames from one container to another go, and where they are lost.

use std::net::{IpAddr, Ipv4Addr};

use weave_api::trace::{TraceReport, TraceRequest};
use weave_host::{ContainerInterface, NetNs};

use crate::args::Parsed;
use crate::env::Env;
use crate::waiting::{self, Waiter};
use crate::{Failure, host_client, options, print, ps, query, require_root, target};

/// The code of a trace that could not be made.
const FAILED: u8 = 2;

pub(crate) fn run(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let report = trace(parsed, env).map_err(|failure| Failure { code: FAILED, ..failure })?;
    if parsed.flag("json") {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        print(&report.text())?;
    }
    if report.delivered { Ok(()) } else { Err(Failure::new(1, "")) }
}

fn trace(parsed: &Parsed, env: &dyn Env) -> Result<TraceReport, Failure> {
    let [from, to] = parsed.rest.as_slice() else { return Err(Failure::new(FAILED, &parsed.usage)) };
    require_root()?;
    let ns = sender(from, parsed, env)?;
    let request = TraceRequest { from: from.clone(), to: receiver(to, parsed, env)?, to_name: to.clone() };
    let client = query::unix_client(parsed, env);
    let send = move |client: &weave_api::Client| {
        client.post_json("/trace", &request, ns.as_ref().map(std::os::fd::AsFd::as_fd))
    };
    let waiter = Waiter::new(&client, "the answers of the peers on the way");
    match waiting::call(&waiter, "POST /trace", send) {
        Ok(json) => Ok(serde_json::from_str(&json)?),
        Err(waiting::Problem::Client(error @ weave_api::ClientError::Connect { .. })) => {
            Err(query::explain(error, parsed, env))
        }
        Err(problem) => Err(host_client::failure(problem)),
    }
}

/// The namespace from which the probes are sent; `None` for the host itself.
fn sender(from: &str, parsed: &Parsed, env: &dyn Env) -> Result<Option<NetNs>, Failure> {
    if from == ps::EXPOSE {
        return Ok(None);
    }
    let address = match from.parse() {
        Ok(address) => address,
        Err(_) => match named(from, parsed, env) {
            Some(address) => address,
            None => return Ok(Some(target::find(from, env)?.ns)),
        },
    };
    let mut ports = ps::scan(&options::bridge(parsed, env))?;
    let has = |interface: &ContainerInterface| {
        interface.addresses.iter().any(|cidr| cidr.addr() == IpAddr::V4(address))
    };
    if has(&ports.bridge()?) {
        return Ok(None);
    }
    let mut all = ps::find_all(&ps::docker(env)).into_iter();
    let found = all.find(|found| ports.in_namespace(&found.ns).unwrap_or_default().iter().any(has));
    found.map(|found| Some(found.ns)).ok_or_else(|| {
        Failure::new(
            FAILED,
            format_args!("no container of this host has the address {address}; run the trace on its host"),
        )
    })
}

/// The address to which the probes are sent.
fn receiver(to: &str, parsed: &Parsed, env: &dyn Env) -> Result<Ipv4Addr, Failure> {
    if let Some(address) = to.parse().ok().or_else(|| named(to, parsed, env)) {
        return Ok(address);
    }
    let found = target::find(to, env).map_err(|failure| {
        let text = failure.message.trim_end();
        Failure::new(
            FAILED,
            format_args!(
                "'{to}' is no address, no name in the network, and no container of this host ({text})"
            ),
        )
    })?;
    let mut ports = ps::scan(&options::bridge(parsed, env))?;
    let interfaces = ports.in_namespace(&found.ns)?;
    let mut addresses = interfaces.iter().flat_map(|interface| &interface.addresses);
    let address = addresses.find_map(|cidr| match cidr.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    address.ok_or_else(|| Failure::new(FAILED, format_args!("{to} has no address in the network")))
}

/// The first address of a name in the network.
fn named(name: &str, parsed: &Parsed, env: &dyn Env) -> Option<Ipv4Addr> {
    if !name.contains('.') {
        return None;
    }
    let names = query::client(parsed, env).report().ok()?.dns?.entries;
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    let entry = names.iter().find(|entry| entry.tombstone == 0 && plain(&entry.hostname) == plain(name));
    entry?.address.parse().ok()
}
