//! The weave bridge seen by scripts: `bridge-type`, `attach-bridge`, and `create-bridge` of 1.x (docs/spec/cli.md 2.2, 3.1).

use weave_api::host_requests::AttachBridgeRequest;
use weave_host::{BridgeConfig, Mtu};
use weave_types::MacAddr;

use crate::args::Parsed;
use crate::docker_bridge::DOCKER_BRIDGE;
use crate::env::Env;
use crate::options;
use crate::{Failure, host_client, notice, print, query, require_root};

/// Prints `bridge`, `bridged_fastdp` or `fastdp`; the last two are 2.8.1's.
pub(crate) fn kind(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    match weave_host::bridge_kind(&options::devices(parsed, env))? {
        Some(kind) => print(&format!("{}\n", kind.name())),
        None => Err(Failure::new(1, "there is no weave bridge; did you launch weave?")),
    }
}

/// Joins Docker's bridge, or another, to the weave bridge.
pub(crate) fn join(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let other = match parsed.rest.as_slice() {
        [other, ..] => other.clone(),
        [] => env.var("DOCKER_BRIDGE").filter(|b| !b.is_empty()).unwrap_or_else(|| DOCKER_BRIDGE.to_owned()),
    };
    require_root()?;
    let bridge = options::bridge(parsed, env);
    let client = query::client(parsed, env);
    let request = AttachBridgeRequest { bridge: bridge.clone(), other: other.clone() };
    let answer = host_client::post(&client, "/attach-bridge", request, None, "the bridge");
    if host_client::if_running(answer)?.is_none() {
        host_client::without_daemon(parsed, env)?.join_bridges(&bridge, &other)?;
    }
    Ok(())
}

/// 1.x made its bridge by hand before the daemon ran. `launch` does it now; a plain one is made where it was asked for.
pub(crate) fn create(rest: &[String], env: &dyn Env) -> Result<(), Failure> {
    if rest.iter().any(|a| a != "--force") {
        return Err(Failure::new(1, "usage: weave create-bridge [--force]"));
    }
    if env.var("WEAVE_NO_FASTDP").is_none_or(|v| v.is_empty()) {
        let why = "'weave launch' makes the bridge; only with WEAVE_NO_FASTDP set can it be made before";
        return Err(Failure::new(1, why));
    }
    require_root()?;
    let config = options::config(&Parsed::default(), env, "")?;
    let name = weave_daemon::find_peer_name(&config)?;
    let mtu = config.mtu.map_or(Mtu::Default(config.new_mtu), Mtu::Exactly);
    let wanted = BridgeConfig { name: config.bridge, mac: MacAddr(name.to_bytes()), mtu };
    let bridge = weave_host::ensure_bridge(&wanted)?;
    bridge.warnings.iter().for_each(|w| notice(format_args!("Warning: {w}")));
    Ok(())
}
