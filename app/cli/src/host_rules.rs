//! What `weave reset` takes away besides devices and state: firewall rules, and files that keep other programs off our devices.

use std::net::Ipv4Addr;
use std::path::Path;

use weave_daemon::HostState;
use weave_host::firewall::{DockerBridge, FirewallConfig, FirewallManager};
use weave_host::{DeviceNames, unmanaged};

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::service::files;

/// What the rules depend on, as far as it is known: the remembered setup, and what the options and the environment say.
pub(crate) fn remembered(parsed: &Parsed, env: &dyn Env) -> Vec<FirewallConfig> {
    // A damaged file must not keep anybody from removing it.
    let state = HostState::open(&options::state_dir(parsed, env)).ok().and_then(|state| state.firewall);
    let config = options::config(&Parsed::default(), env, "").unwrap_or_default();
    let control = parsed.text("http-addr").map(str::to_owned).or_else(|| env.var("WEAVE_HTTP_ADDR"));
    let port = |addr: String| addr.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let docker = config.docker_bridge.map(|name| {
        let address = weave_host::first_address(&name).ok().flatten().unwrap_or(Ipv4Addr::LOCALHOST);
        DockerBridge { name, address }
    });
    let setup = FirewallConfig {
        instance: options::instance(parsed, env),
        bridge: options::devices(parsed, env).bridge,
        port: config.port,
        control_port: control.and_then(port).or(Some(weave_api::DEFAULT_PORT)),
        docker,
        expect_npc: false,
        no_masq_local: false,
        dns_port: config.dns.map(|dns| dns.port()),
    };
    // Of another instance only what it remembers is known.
    let guessed = setup.instance.is_none() || state.is_none();
    state.into_iter().chain(guessed.then_some(setup)).collect()
}

/// What [`remove`] would take away, in words, and what could not be looked at.
pub(crate) fn present(parsed: &Parsed, env: &dyn Env) -> (Vec<String>, Vec<String>) {
    let names = options::devices(parsed, env);
    let mut things: Vec<String> =
        unmanaged::present(Path::new("/"), &names).iter().map(|f| format!("file {}", f.display())).collect();
    let guard = guard(remembered(parsed, env));
    let sets = guard.as_ref().is_some_and(|(_, setup)| FirewallManager::has_policy_sets(setup));
    let (places, errors) = guard.map_or_else(Default::default, |(g, s)| g.backends_with_rules(&s));
    things
        .extend(places.iter().map(|place| format!("firewall rules and chains of weave in {}", place.name())));
    things.extend(sets.then(|| "sets of the policy controller of 2.8.1".to_owned()));
    (things, errors.iter().map(ToString::to_string).collect())
}

/// Takes rules and files away; what could not be removed.
pub(crate) fn remove(setups: Vec<FirewallConfig>, names: &DeviceNames) -> Vec<String> {
    let removed = guard(setups).map_or(Ok(false), |(mut guard, setup)| guard.remove(&setup));
    let files = unmanaged::remove(Path::new("/"), names);
    files.read_only.iter().for_each(|path| files::notice_stays(path));
    let rules = removed.err().into_iter().flatten().map(|e| e.to_string());
    rules.chain(files.errors.iter().map(ToString::to_string)).collect()
}

fn guard(mut setups: Vec<FirewallConfig>) -> Option<(FirewallManager, FirewallConfig)> {
    let last = setups.pop()?;
    Some((FirewallManager::new(setups), last))
}
