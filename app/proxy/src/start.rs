//! `POST /containers/<container>/start` and `/restart`.

use crate::json::Object;
use crate::{Error, Policy};

/// Old versions of the API have a host configuration in the body, which would replace that of the creation. Returns the body to
/// forward instead; `None`: the body passes as it is. `hostname` is the container's.
///
/// # Errors
/// The body is not what Docker's API says.
pub fn rewrite(policy: &Policy, body: &[u8], hostname: &str) -> Result<Option<Vec<u8>>, Error> {
    let mut whole = Object::parse(body)?;
    let nested = whole.has("HostConfig");
    let mut host_config = if nested { whole.object("HostConfig")? } else { whole.clone() };
    if host_config.is_empty() && !nested {
        return Ok(None);
    }
    let mode = host_config.string("NetworkMode")?;
    let waits = mode != "host" && !mode.starts_with("container:");
    policy.bind(&mut host_config, waits)?;
    if waits {
        policy.set_dns(&mut host_config, hostname)?;
    }
    if nested {
        whole.set_object("HostConfig", &host_config);
    } else {
        whole = host_config;
    }
    Ok(Some(whole.to_bytes()))
}
