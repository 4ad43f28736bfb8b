//! The plugin of netavark, Podman's network program: `weave netavark`, or a link to this program in a directory `netavark`.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use weave_api::host_requests::{AddInterface, AttachmentId, HostResponse, InterfaceRequest, Routes};
use weave_cni::MAX_INPUT;
use weave_cni::netavark::{self, Action, Exec};
use weave_host::NetNs;
use weave_types::Cidr;

use crate::args::Parsed;
use crate::env::Env;
use crate::service::files::{Undo, remove};
use crate::{Failure, host_client, link, notice, oci_runtime, options, print, query, require_root};

/// A directory in which netavark looks for plugins; the name of the file there is the name of the driver.
pub(crate) const PLUGIN: &str = "/usr/local/lib/netavark/weave";

/// A file that makes Podman attach containers before their program starts, in a directory that it reads.
const HOOK_FILE: &str = "/usr/share/containers/oci/hooks.d/weave.json";

/// Whether this program was called as a plugin.
pub(crate) fn is_plugin(program: &Path) -> bool {
    program.parent().and_then(Path::file_name) == Some("netavark".as_ref())
}

/// `weave setup-podman`.
pub(crate) fn setup(parsed: &Parsed) -> Result<(), Failure> {
    require_root()?;
    let (plugin, hook_file) = (Path::new(PLUGIN), Path::new(HOOK_FILE));
    if parsed.flag("undo") {
        return remove(plugin).and(remove(hook_file));
    }
    let program = std::env::current_exe()?;
    let mut undo = Undo::default();
    for path in [plugin, hook_file] {
        undo.directory(path.parent().unwrap_or(path), 0o755)?;
    }
    undo.replace(hook_file, Some(oci_runtime::podman_hook(&program).as_bytes()), 0o644)?;
    link::replace(&program, plugin)?;
    undo.keep();
    Ok(())
}

/// Answers a call of netavark.
pub(crate) fn run(arguments: &[String], env: &dyn Env) -> Result<(), Failure> {
    match answer(arguments, env) {
        Ok(text) => print(&text),
        Err(failure) => {
            print(&netavark::error(failure.message.trim_end()))?;
            Err(Failure::new(1, ""))
        }
    }
}

fn answer(arguments: &[String], env: &dyn Env) -> Result<String, Failure> {
    let bad = |text: String| Failure::new(1, text);
    match Action::parse(arguments).map_err(bad)? {
        Action::Info => Ok(netavark::info(weave_daemon::VERSION)),
        Action::Create => netavark::create(&input()?, default_subnet(env)).map_err(bad),
        Action::Setup(path) => {
            let exec = Exec::read(&input()?).map_err(bad)?;
            let ns = NetNs::at(&PathBuf::from(path))?;
            if exec.publishes_ports() {
                notice("weave: this network publishes no ports; another network of the container may");
            }
            attach(&exec, &ns, env)
        }
        Action::Teardown(path) => {
            let exec = Exec::read(&input()?).map_err(bad)?;
            // The namespace may be gone.
            let ns = NetNs::at(&PathBuf::from(path)).ok();
            ask(InterfaceRequest::Remove(id(&exec)), ns.as_ref(), env)?;
            Ok(String::new())
        }
    }
}

fn attach(exec: &Exec, ns: &NetNs, env: &dyn Env) -> Result<String, Failure> {
    let bad = |text: String| Failure::new(1, text);
    exec.network.check().map_err(bad)?;
    let names = exec.names();
    let named = !names.is_empty();
    let bridge = exec.network.bridge().map(str::to_owned);
    let bridge = bridge.unwrap_or_else(|| options::bridge(&Parsed::default(), env));
    let default = default_subnet(env);
    let subnet = exec.network.subnet().map_err(bad)?;
    let routed = !exec.network.internal && is_routed(subnet, default, &bridge);
    let request = AddInterface {
        id: id(exec),
        bridge,
        mtu: exec.network.mtu().map_err(bad)?,
        mac: exec.mac().map(str::to_owned),
        hairpin: true,
        addresses: exec.addresses(default).map_err(bad)?,
        record: true,
        routes: Routes { gateway: None, list: (!routed).then(Vec::new) },
        names,
    };
    let answer = ask(InterfaceRequest::Add(request), Some(ns), env)?;
    let created = answer.interface.ok_or_else(|| bad("the daemon is of an older version".to_owned()))?;
    let addresses = answer.addresses.iter().map(|text| text.parse()).collect::<Result<Vec<Cidr>, _>>()?;
    let server = if named { name_server(created.gateway, env) } else { None };
    // Without a route to the host only what is in the subnet is reached.
    let server = server.filter(|(server, _)| routed || addresses.iter().any(|cidr| cidr.contains(*server)));
    let dns = server.as_ref().map(|(address, domain)| (*address, domain.as_str()));
    Ok(netavark::status(exec.interface(), &created.mac, &addresses, created.gateway, dns))
}

/// Whether the host is, or will be, in a subnet, so that it can be the next hop of its containers. It joins the default subnet by itself.
fn is_routed(subnet: Option<Cidr>, default: Option<Cidr>, bridge: &str) -> bool {
    let Some(subnet) = subnet else { return true };
    let present = weave_host::bridge_addresses(bridge).unwrap_or_default();
    default == Some(subnet) || present.iter().any(|cidr| subnet.contains(cidr.addr()))
}

/// Address and domain of weaveDNS; `None` if this peer has no names.
fn name_server(gateway: Option<IpAddr>, env: &dyn Env) -> Option<(IpAddr, String)> {
    let client = query::unix_client(&Parsed::default(), env);
    let domain = client.get("/domain").ok()?;
    let listening = client.get("/dns-address").ok().and_then(|text| text.trim().parse().ok());
    // It may not listen yet on the first address of the bridge, which the container has just brought about.
    Some((listening.or(gateway)?, domain.trim().to_owned()))
}

fn id(exec: &Exec) -> AttachmentId {
    AttachmentId {
        network: exec.network.name.clone(),
        container: exec.container_id.clone(),
        interface: exec.interface().to_owned(),
    }
}

/// The default subnet of the peer; `None` if it does not run or allocates nothing.
fn default_subnet(env: &dyn Env) -> Option<Cidr> {
    let client = query::unix_client(&Parsed::default(), env);
    client.get("/ipinfo/defaultsubnet").ok()?.trim().parse().ok()
}

fn ask(request: InterfaceRequest, ns: Option<&NetNs>, env: &dyn Env) -> Result<HostResponse, Failure> {
    let client = query::unix_client(&Parsed::default(), env);
    let answer = host_client::post(&client, "/interface", request, ns, "an address");
    let response = host_client::if_running(answer)?;
    let response = response.ok_or_else(|| Failure::new(1, query::NO_DAEMON))?;
    for warning in &response.warnings {
        notice(format_args!("weave: {warning}"));
    }
    Ok(response)
}

fn input() -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    std::io::stdin().take(MAX_INPUT).read_to_end(&mut input)?;
    Ok(input)
}
