//! `weave env` and `weave config`: how clients of Docker find the proxy (docs/spec/cli.md 2.2).

use weave_api::ClientError;

use crate::args::Parsed;
use crate::env::Env;
use crate::{Failure, print, query};

const OFF: &str = "the Docker API proxy is off (see 'weave help launch', --proxy)";

/// `export DOCKER_HOST=...`, for `eval $(weave env)`.
pub(crate) fn env(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    if parsed.flag("restore") {
        return match env.var("ORIG_DOCKER_HOST") {
            Some(original) => print(&format!("DOCKER_HOST={original}\n")),
            None => Err(Failure::new(1, "Nothing to restore: ORIG_DOCKER_HOST is not set.")),
        };
    }
    // As in 2.8.1 it is no error, but stderr says why nothing is printed.
    let address = address(parsed, env).map_err(|failure| Failure::new(0, failure.message))?;
    let before = env.var("DOCKER_HOST").unwrap_or_default();
    if before == address {
        return print(&format!("export DOCKER_HOST={address}\n"));
    }
    print(&format!("export DOCKER_HOST={address} ORIG_DOCKER_HOST={before}\n"))
}

/// `-H=...`, for `docker $(weave config) run`.
pub(crate) fn config(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    print(&format!("-H={}\n", address(parsed, env)?))
}

/// The first address of the proxy, as this client reaches it.
fn address(parsed: &Parsed, env: &dyn Env) -> Result<String, Failure> {
    let list = query::client(parsed, env).get("/proxyaddrs").map_err(|e| match e {
        ClientError::NotFound => Failure::new(1, OFF),
        e => query::explain(e, parsed, env),
    })?;
    let first = list.lines().next().ok_or_else(|| Failure::new(1, OFF))?;
    Ok(reachable(first, env))
}

/// An address of all interfaces is replaced by that of Docker's host.
fn reachable(address: &str, env: &dyn Env) -> String {
    let given = env.var("PROXY_HOST").filter(|host| !host.is_empty());
    let of_docker = || {
        let host = env.var("DOCKER_HOST")?;
        let (host, _) = host.strip_prefix("tcp://")?.rsplit_once(':')?;
        Some(host.to_owned()).filter(|host| !host.is_empty())
    };
    let host = given.or_else(of_docker).unwrap_or_else(|| "127.0.0.1".to_owned());
    address.replacen("tcp://0.0.0.0:", &format!("tcp://{host}:"), 1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn addresses_of_clients() {
        let all = "tcp://0.0.0.0:12375";
        for (address, variables, shown) in [
            (all, &[][..], "tcp://127.0.0.1:12375"),
            (all, &[("DOCKER_HOST", "unix:///x")], "tcp://127.0.0.1:12375"),
            (all, &[("DOCKER_HOST", "tcp://10.0.0.1:2375")], "tcp://10.0.0.1:12375"),
            (all, &[("DOCKER_HOST", "tcp://10.0.0.1:2375"), ("PROXY_HOST", "h1")], "tcp://h1:12375"),
            ("unix:///var/run/weave/weave.sock", &[("PROXY_HOST", "h1")], "unix:///var/run/weave/weave.sock"),
        ] {
            let variables: BTreeMap<_, _> = variables.iter().copied().collect();
            assert_eq!(reachable(address, &variables), shown);
        }
    }
}
