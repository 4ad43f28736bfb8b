//! `weaveutil`, a helper of 2.8.1 that scripts of other projects call: as `weave weaveutil <command>`, or by a link of that
//! name (docs/spec/cli.md 13).

use std::ops::RangeInclusive;

use clap::{Arg, ArgAction, Command};
use weave_api::host_requests::{AttachRequest, DetachRequest};
use weave_cni::Plugin;
use weave_host::DeviceNames;
use weave_host::identity::{Sources, SystemIds};
use weave_runtime::{AddressRequest, Reference, Target, etc_hosts};
use weave_types::Cidr;

use crate::args::{self, Parsed};
use crate::env::Env;
use crate::{
    Failure, addresses, cni, container, docker_bridge, host_client, hosts_file, launch_options, notice,
    print, ps, require_root,
};

/// One command of the helper.
pub(crate) struct Sub {
    name: &'static str,
    usage: &'static str,
    /// Number of arguments without options.
    count: RangeInclusive<usize>,
    action: Action,
}

#[derive(Clone, Copy)]
enum Action {
    Run(fn(&Parsed, &dyn Env) -> Result<(), Failure>),
    /// Why it is not in this version.
    Missing(&'static str),
}

const ANY: usize = usize::MAX;

const fn sub(
    name: &'static str,
    usage: &'static str,
    count: RangeInclusive<usize>,
    run: fn(&Parsed, &dyn Env) -> Result<(), Failure>,
) -> Sub {
    Sub { name, usage, count, action: Action::Run(run) }
}

const fn missing(name: &'static str, usage: &'static str, why: &'static str) -> Sub {
    Sub { name, usage, count: 0..=ANY, action: Action::Missing(why) }
}

const NO_DATAPATH: &str = "this version has no Open vSwitch datapath; 'weave launch' prepares the kernel";
const ONLY_SCRIPT: &str = "only the script of 2.8.1 needed this";
const NO_KUBERNETES: &str = "the Kubernetes add-on is not in this version yet";

static SUBS: &[Sub] = &[
    sub("help", "", 0..=ANY, |_, _| {
        notice(usage().trim_end());
        Ok(())
    }),
    sub("netcheck", "<cidr> [<ignored interface> ...]", 1..=ANY, netcheck),
    sub("detect-bridge-type", "<bridge> <datapath>", 2..=2, detect_bridge_type),
    sub("bridge-ip", "<bridge>", 1..=1, |p, _| print(&docker_bridge::first_address(&p.rest[0])?.to_string())),
    sub("container-addrs", "<bridge> [<id>|weave:expose|weave:allids ...]", 1..=ANY, |p, env| {
        ps::container_addrs(&p.rest[0], &p.rest[1..], env)
    }),
    sub("process-addrs", "<bridge>", 1..=1, |p, env| ps::process_addrs(&p.rest[0], env)),
    sub("container-id", "<container>", 1..=1, |p, env| print(&format!("{}\n", docker(p, env)?.id))),
    sub("container-state", "<container>", 1..=1, |p, env| print(&format!("{}\n", docker(p, env)?.state))),
    sub("container-fqdn", "<container>", 1..=1, container_fqdn),
    sub("list-containers", "", 0..=ANY, |_, env| {
        let ids = ps::docker(env).running()?;
        print(&ids.iter().map(|id| format!("{id}\n")).collect::<String>())
    }),
    sub(
        "attach-container",
        "[--no-multicast-route] [--keep-tx-on] [--hairpin-mode=false] <container> <bridge> <cidr> ...",
        3..=ANY,
        attach,
    ),
    sub("detach-container", "<container> <cidr> ...", 2..=ANY, detach),
    sub(
        "rewrite-etc-hosts",
        "<container> <image> <cidr>[,<cidr>...] [<name>:<ip> ...]",
        3..=ANY,
        rewrite_hosts,
    ),
    sub("unique-id", "<db prefix> <host root>", 2..=2, unique_id),
    sub("check-datapath", "<datapath>", 1..=1, check_datapath),
    missing("create-datapath", "<datapath>", NO_DATAPATH),
    missing("delete-datapath", "<datapath>", NO_DATAPATH),
    missing("add-datapath-interface", "<datapath> <interface>", NO_DATAPATH),
    missing("docker-tls-args", "", ONLY_SCRIPT),
    missing("run-container", "", ONLY_SCRIPT),
    missing("stop-container", "<container>", ONLY_SCRIPT),
    missing("kill-container", "<container>", ONLY_SCRIPT),
    missing("remove-container", "<container>", ONLY_SCRIPT),
    missing("create-volume-container", "", ONLY_SCRIPT),
    missing("remove-plugin-network", "<name>", ONLY_SCRIPT),
    missing("is-docker-plugin-enabled", "", ONLY_SCRIPT),
    missing("swarm-manager-peers", "", ONLY_SCRIPT),
    sub("cni-net", "", 0..=0, |_, env| cni::run(Plugin::Net, env)),
    sub("cni-ipam", "", 0..=0, |_, env| cni::run(Plugin::Ipam, env)),
    missing("get-db-flag", "<db prefix> <flag>", NO_KUBERNETES),
    missing("set-db-flag", "<db prefix> <flag> <value>", NO_KUBERNETES),
];

pub(crate) fn names() -> Vec<&'static str> {
    SUBS.iter().map(|sub| sub.name).collect()
}

pub(crate) fn run(arguments: &[String], env: &dyn Env) -> Result<(), Failure> {
    let Some((name, rest)) = arguments.split_first() else { return Err(Failure::new(1, usage().trim_end())) };
    let name = if matches!(name.as_str(), "--help" | "-h") { "help" } else { name };
    let Some(sub) = SUBS.iter().find(|s| s.name == name) else {
        return Err(Failure::new(1, format_args!("\"{name}\" cmd is not found\n{}", usage().trim_end())));
    };
    let run = match sub.action {
        Action::Run(run) => run,
        Action::Missing(why) => return Err(Failure::new(1, format_args!("weaveutil {name}: {why}"))),
    };
    let mut command = Command::new(sub.name)
        .disable_help_flag(true)
        .arg(Arg::new("argument").action(ArgAction::Append).num_args(0..));
    if name == "attach-container" {
        let flags = ["no-multicast-route", "keep-tx-on", "hairpin-mode"];
        command = command.args(flags.map(|name| launch_options::flag(name, "")));
    }
    let parsed = args::parse(command, rest)?;
    if parsed.help || !sub.count.contains(&parsed.rest.len()) {
        return Err(Failure::new(1, format!("usage: weaveutil {name} {}", sub.usage).trim_end()));
    }
    run(&parsed, env)
}

/// One line for each command.
fn usage() -> String {
    let mut text = String::from("Usage: weaveutil <command> [<argument> ...]\n");
    for sub in SUBS {
        let tail = if matches!(sub.action, Action::Missing(_)) { " [not in this version]" } else { "" };
        text.push_str(format!("  {} {}{tail}", sub.name, sub.usage).trim_end());
        text.push('\n');
    }
    text
}

/// Fails if the host has a route to (a part of) the network.
fn netcheck(parsed: &Parsed, _: &dyn Env) -> Result<(), Failure> {
    let cidr: Cidr = parsed.rest[0].parse()?;
    let mut netlink = weave_host::Netlink::open()?;
    let links = netlink.links()?;
    let ignored = |index: Option<u32>| {
        links.iter().any(|l| Some(l.index) == index && parsed.rest[1..].contains(&l.name))
    };
    let routes = netlink.routes()?;
    let others = routes.iter().filter(|r| !r.is_default() && !ignored(r.index)).map(|r| r.destination);
    match container::overlap(&cidr, &others.collect::<Vec<_>>()) {
        Some(why) => Err(Failure::new(1, why)),
        None => Ok(()),
    }
}

fn detect_bridge_type(parsed: &Parsed, _: &dyn Env) -> Result<(), Failure> {
    let (bridge, legacy_datapath) = (parsed.rest[0].clone(), parsed.rest[1].clone());
    let kind = weave_host::bridge_kind(&DeviceNames { bridge, legacy_datapath, ..DeviceNames::default() })?;
    print(&format!("{}\n", kind.map_or("none", |k| k.name())))
}

/// Fails unless an Open vSwitch datapath of that name exists, which 2.8.1 may have left.
fn check_datapath(parsed: &Parsed, _: &dyn Env) -> Result<(), Failure> {
    let name = &parsed.rest[0];
    match weave_host::Netlink::open()?.link(name)? {
        Some(link) if link.is("openvswitch") => Ok(()),
        Some(_) => Err(Failure::new(1, format_args!("{name} is not an Open vSwitch datapath"))),
        None => Err(Failure::new(1, format_args!("Link not found: {name:?}"))),
    }
}

fn docker(parsed: &Parsed, env: &dyn Env) -> Result<weave_runtime::ContainerInfo, Failure> {
    let name = &parsed.rest[0];
    let found = ps::docker(env).inspect(name)?;
    found.ok_or_else(|| Failure::new(1, format_args!("No such container: {name}")))
}

/// Prints nothing for a container without a domain.
fn container_fqdn(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let info = docker(parsed, env)?;
    print(&info.fqdn().map(|f| format!("{f}\n")).unwrap_or_default())
}

fn target(parsed: &Parsed, env: &dyn Env) -> Result<Target, Failure> {
    Ok(weave_runtime::resolve(&parsed.rest[0].parse::<Reference>()?, &ps::docker(env))?)
}

fn cidrs(texts: &[String]) -> Result<Vec<Cidr>, Failure> {
    Ok(texts.iter().map(|t| t.parse::<Cidr>()).collect::<Result<_, _>>()?)
}

fn attach(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let cidrs = cidrs(&parsed.rest[2..])?;
    cidrs.iter().try_for_each(addresses::check_host_address)?;
    require_root()?;
    let target = target(parsed, env)?;
    let request = AttachRequest {
        container: target.id,
        naming: target.naming,
        bridge: parsed.rest[1].clone(),
        addresses: cidrs.iter().map(ToString::to_string).collect(),
        former: false,
        record: false,
        multicast_route: !parsed.flag("no-multicast-route"),
        hairpin: parsed.text("hairpin-mode") != Some("false"),
        hosts_file: None,
        name: None,
        starting: false,
    };
    let addresses: Vec<_> = cidrs.into_iter().map(AddressRequest::Fixed).collect();
    host_client::attach(request, target.ns, &addresses, parsed, env).map(drop)
}

fn detach(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let cidrs = cidrs(&parsed.rest[1..])?;
    require_root()?;
    let target = target(parsed, env)?;
    let texts = cidrs.iter().map(ToString::to_string).collect();
    let request = DetachRequest { container: target.id, addresses: texts, record: false };
    let addresses: Vec<_> = cidrs.into_iter().map(AddressRequest::Fixed).collect();
    host_client::detach(request, &target.ns, &addresses, parsed, env).map(drop)
}

/// The image argument is not used: 2.8.1 needed it for a helper container.
fn rewrite_hosts(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let list: Vec<String> =
        parsed.rest[2].split([',', ' ']).filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let cidrs = cidrs(&list)?;
    let extra = parsed.rest[3..].iter().map(|e| etc_hosts::parse_extra(e)).collect::<Result<Vec<_>, _>>()?;
    require_root()?;
    let target = target(parsed, env)?;
    hosts_file::local(hosts_file::of(&target, extra)?).rewrite(&cidrs)?;
    Ok(())
}

/// The peer name that is derived from the machine's ids.
fn unique_id(parsed: &Parsed, _: &dyn Env) -> Result<(), Failure> {
    let root = &parsed.rest[1];
    let host_root = if root.is_empty() { "/".into() } else { root.into() };
    let name = SystemIds::read(&Sources { host_root, ..Sources::default() })?.peer_name(None)?;
    print(&format!("{name}\n"))
}
