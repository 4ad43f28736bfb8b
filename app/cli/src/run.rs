//! `weave run`, `start` and `restart`: Docker starts a container, and it is attached (docs/spec/containers.md F.1 to F.3).

use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Command as CommandLine;
use weave_api::host_requests::HostsFile;
use weave_runtime::{AddressRequest, ContainerInfo, Docker, Kind, Reference, Target, etc_hosts};

use crate::args::{self, ArgsError, Parsed};
use crate::container::{self, Settings};
use crate::dns::DnsServer;
use crate::env::Env;
use crate::options;
use crate::target::find;
use crate::{Failure, addresses, dns, hosts_file, notice, print, ps, require_root};

/// Longest host name that Linux allows.
const MAX_HOSTNAME: usize = 64;
/// Docker waits for the end of a container's program, for 10 s unless the container says otherwise.
const RESTART_TIMEOUT: Duration = Duration::from_secs(600);
/// Length of Docker's full ids, in hexadecimal digits.
const FULL_ID_LENGTH: usize = 64;

/// Parses the command line of `run`: its own options and addresses end where the options of `docker run` begin.
pub(crate) fn parse(command: CommandLine, line: &[String]) -> Result<Parsed, ArgsError> {
    let (own, docker) = line.split_at(own_arguments(&command, line));
    let mut parsed = args::parse(command, own)?;
    parsed.rest.extend_from_slice(docker);
    Ok(parsed)
}

/// Number of the leading arguments that are not those of `docker run`.
fn own_arguments(command: &CommandLine, line: &[String]) -> usize {
    let mut count = 0;
    while let Some(arg) = line.get(count) {
        let Some(option) = arg.strip_prefix("--") else {
            if !addresses::looks_like_address(arg) {
                break;
            }
            count += 1;
            continue;
        };
        let (name, inline) = option.split_once('=').map_or((option, false), |(name, _)| (name, true));
        let own = command.get_arguments().find(|own| !own.is_positional() && args::name(own) == name);
        count += match own {
            Some(own) if !args::is_flag(own) && !inline => 2,
            Some(_) => 1,
            None if option == "help" => 1,
            None => break,
        };
    }
    count.min(line.len())
}

pub(crate) fn run(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let (addresses, docker_args) = addresses::leading(&parsed.rest)?;
    if docker_args.is_empty() {
        return Err(Failure::new(1, &parsed.usage));
    }
    require_root()?;
    if parsed.flag("with-dns") {
        notice("Warning: --with-dns is deprecated; it is on by default");
    }
    let server = if parsed.flag("without-dns") { None } else { server(parsed, env) };
    let dns_args = server.map(|server| dns_arguments(&server, docker_args)).unwrap_or_default();
    container::overlaps(&addresses::fixed(&addresses), &options::bridge(parsed, env))?
        .iter()
        .for_each(notice);
    let id = docker_run(&dns_args, docker_args, env)?;
    let further = if parsed.flag("no-rewrite-hosts") { Further::Nothing } else { Further::HostsFile };
    attach(&id, &addresses, further, parsed, env).map_err(|failure| kill(&id, failure, env))?;
    print(&format!("{id}\n"))
}

/// The server that the container is to ask. Without one it runs nevertheless.
fn server(parsed: &Parsed, env: &dyn Env) -> Option<DnsServer> {
    dns::server(parsed, env).unwrap_or_else(|failure| {
        notice(format_args!("Warning: the container does not use weaveDNS: {}", failure.message.trim_end()));
        None
    })
}

/// Options of `docker run` that make the container use weaveDNS, unless `docker_args` say otherwise. As in 1.9 the arguments of the
/// container's command are taken for options, too.
fn dns_arguments(server: &DnsServer, docker_args: &[String]) -> Vec<String> {
    let given = |long: &str| {
        let value = |arg: &String| {
            arg.strip_prefix(long).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        docker_args.iter().any(value)
    };
    // `-h`, also with its value attached, or behind switches as in `-tih`.
    let short_hostname = |arg: &String| {
        !arg.starts_with("--")
            && arg
                .strip_prefix('-')
                .is_some_and(|rest| rest.trim_start_matches(['d', 'i', 't', 'P']).starts_with('h'))
    };
    let domain = server.domain.trim_end_matches('.');
    let mut hostname = None;
    let has_hostname = given("--hostname") || docker_args.iter().any(short_hostname);
    if let Some(name) = container_name(docker_args).filter(|_| !has_hostname) {
        let fqdn = format!("{name}.{domain}");
        if fqdn.len() > MAX_HOSTNAME {
            notice("Container name too long to be used as hostname");
        } else {
            hostname = Some(fqdn);
        }
    }
    let mut options = vec![format!("--dns={}", server.address)];
    // With a search domain of its own a container would look bare names up twice.
    let search = if has_hostname || hostname.is_some() { "." } else { &server.domain };
    options.extend(hostname.map(|fqdn| format!("--hostname={fqdn}")));
    if !given("--dns-search") {
        options.push(format!("--dns-search={search}"));
    }
    options
}

/// The last value of `--name`.
fn container_name(docker_args: &[String]) -> Option<&str> {
    let mut name = None;
    let mut args = docker_args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        name = match arg.strip_prefix("--name=") {
            Some(value) => Some(value),
            None if arg == "--name" => args.next(),
            None => name,
        };
    }
    name.filter(|name| !name.is_empty())
}

/// Runs the `docker` of the user, because any of its options may be given. Returns the id of the container.
fn docker_run(dns_args: &[String], docker_args: &[String], env: &dyn Env) -> Result<String, Failure> {
    let client_args = env.var("DOCKER_CLIENT_ARGS").unwrap_or_default();
    let output = Command::new("docker")
        .args(client_args.split_whitespace())
        // The proxy must not attach the container a second time.
        .args(["run", "-e", "WEAVE_CIDR=none"])
        .args(dns_args)
        .arg("-d")
        .args(docker_args)
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| Failure::new(1, format_args!("cannot run docker: {e}; is its client installed?")))?;
    if !output.status.success() {
        // Docker has said why.
        let code = output.status.code().and_then(|code| u8::try_from(code).ok());
        return Err(Failure::new(code.unwrap_or(1), ""));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let id = text.lines().last().unwrap_or_default().trim();
    if id.len() != FULL_ID_LENGTH || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::new(
            1,
            format_args!(
                "docker run did not print the id of a container but {id:?}: the container is not attached"
            ),
        ));
    }
    Ok(id.to_owned())
}

/// Attaches a container that has been started, under its own name.
fn attach(
    id: &str,
    addresses: &[AddressRequest],
    further: Further,
    parsed: &Parsed,
    env: &dyn Env,
) -> Result<(), Failure> {
    let target = find(id, env)?;
    let settings = Settings {
        former: matches!(further, Further::FormerAddresses),
        multicast_route: !parsed.flag("no-multicast-route"),
        name: dns::own_name(&target).filter(|_| !parsed.flag("without-dns")),
        hosts_file: if matches!(further, Further::HostsFile) { own_hosts_file(&target)? } else { None },
    };
    container::attach_target(target, addresses, settings, parsed, env).map(drop)
}

/// What else a container gets when it is attached.
enum Further {
    Nothing,
    /// Its hosts file is rewritten.
    HostsFile,
    /// The addresses that it had when it ended.
    FormerAddresses,
}

/// The hosts file of a container, with the names of its `--add-host` options. `None` if it has none of its own.
fn own_hosts_file(target: &Target) -> Result<Option<HostsFile>, Failure> {
    let Kind::Docker(info) = &target.kind else { return Ok(None) };
    if info.hosts_path.is_none() {
        return Ok(None);
    }
    hosts_file::of(target, etc_hosts::extra_names(info)).map(Some)
}

/// The failure of a command after it has killed the container that it started.
fn kill(id: &str, failure: Failure, env: &dyn Env) -> Failure {
    let text = failure.message.trim_end();
    let short = id.get(..ps::ID_LENGTH).unwrap_or(id);
    match ps::docker(env).kill(id) {
        Ok(()) => {
            Failure::new(1, format_args!("{text}\nContainer {short} has been killed, it is not attached."))
        }
        Err(e) => Failure::new(1, format_args!("{text}\nContainer {short} runs without being attached: {e}")),
    }
}

pub(crate) fn start(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = container::call(parsed)?;
    require_root()?;
    let docker = ps::docker(env);
    let info = docker_container(&call.container, &docker)?;
    container::overlaps(&addresses::fixed(&call.addresses), &options::bridge(parsed, env))?
        .iter()
        .for_each(notice);
    docker.start(&info.id)?;
    // Without addresses those that it had, else both.
    let given = addresses::after(&parsed.rest).len() < parsed.rest.len();
    let wanted = if given { &call.addresses[..] } else { &[] };
    attach(&info.id, wanted, Further::FormerAddresses, parsed, env).map_err(|failure| {
        // One that ran before is not killed.
        if info.is_running() { failure } else { kill(&info.id, failure, env) }
    })?;
    print(&format!("{}\n", call.container))
}

pub(crate) fn restart(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let [container] = parsed.rest.as_slice() else { return Err(Failure::new(1, &parsed.usage)) };
    require_root()?;
    let docker = ps::docker(env);
    let info = docker_container(container, &docker)?;
    let mut ports = ps::scan(&options::bridge(parsed, env))?;
    let links = ports.in_namespace(&find(container, env)?.ns)?;
    let addresses: Vec<_> =
        links.into_iter().flat_map(|link| link.addresses).filter(|cidr| cidr.addr().is_ipv4()).collect();
    if addresses.is_empty() {
        let hint = "attach it first, or restart it with 'docker restart'";
        return Err(Failure::new(1, format_args!("{container} has no address in the network; {hint}")));
    }
    let addresses: Vec<_> = addresses.into_iter().map(AddressRequest::Fixed).collect();
    docker.with_timeout(RESTART_TIMEOUT).restart(&info.id)?;
    attach(&info.id, &addresses, Further::Nothing, parsed, env)
        .map_err(|failure| kill(&info.id, failure, env))?;
    print(&format!("{container}\n"))
}

/// A container of Docker, running or not.
fn docker_container(name: &str, docker: &Docker) -> Result<ContainerInfo, Failure> {
    match name.parse()? {
        Reference::Docker(name) => {
            docker.inspect(&name)?.ok_or_else(|| weave_runtime::Error::Unknown(name).into())
        }
        other => Err(Failure::new(
            1,
            format_args!("{other} is not a container of Docker, which alone can be started"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn arguments_of_docker_follow_options_and_addresses() {
        for (line, options, rest) in [
            ("-ti ubuntu", "", "-ti ubuntu"),
            ("10.2.1.1/24 -t -i ubuntu", "", "10.2.1.1/24 -t -i ubuntu"),
            ("--with-dns 10.2.1.1/24 -h a.b ubuntu", "--with-dns=true", "10.2.1.1/24 -h a.b ubuntu"),
            (
                "--without-dns --no-rewrite-hosts net:default ip:10.2.2.1/24 --name c1 ubuntu ls --help",
                "--without-dns=true --no-rewrite-hosts=true",
                "net:default ip:10.2.2.1/24 --name c1 ubuntu ls --help",
            ),
            ("10.2.1.1/24 --no-multicast-route u", "--no-multicast-route=true", "10.2.1.1/24 u"),
            ("--instance b --http-addr=:7 -P u", "--instance=b --http-addr=:7", "-P u"),
            // Only the leading ones are ours.
            ("ubuntu --without-dns 10.2.1.1/24", "", "ubuntu --without-dns 10.2.1.1/24"),
            ("-e A=b --without-dns u", "", "-e A=b --without-dns u"),
        ] {
            let parsed = parse(commands::find("run").expect("it exists"), &words(line)).expect(line);
            assert_eq!(
                (parsed.canonical().join(" "), parsed.rest),
                (options.to_owned(), words(rest)),
                "{line}"
            );
        }
        let command = || commands::find("run").expect("it exists");
        assert!(parse(command(), &words("--help")).expect("help").help);
        assert!(!parse(command(), &words("ubuntu --help")).expect("not ours").help);
        assert!(parse(command(), &words("--instance")).is_err());
    }

    #[test]
    fn names_of_containers_become_host_names() {
        let server = DnsServer { address: "172.17.0.1".to_owned(), domain: "weave.local.".to_owned() };
        for (docker_args, expected) in [
            ("-ti ubuntu", "--dns-search=weave.local."),
            ("--name c1 ubuntu", "--hostname=c1.weave.local --dns-search=."),
            ("--name=c1 ubuntu", "--hostname=c1.weave.local --dns-search=."),
            ("--name a --name b ubuntu", "--hostname=b.weave.local --dns-search=."),
            ("--name c1 -h other ubuntu", "--dns-search=."),
            ("--name c1 -hother ubuntu", "--dns-search=."),
            ("--name c1 -tih other ubuntu", "--dns-search=."),
            ("--name c1 --hostname=other ubuntu", "--dns-search=."),
            ("-h pingme.weave.local ubuntu", "--dns-search=."),
            ("--dns-search=example.com --name c1 ubuntu", "--hostname=c1.weave.local"),
            ("--dns-search example.com ubuntu", ""),
            ("--name", "--dns-search=weave.local."),
            ("--health-cmd x --hostnames y u", "--dns-search=weave.local."),
        ] {
            let options = dns_arguments(&server, &words(docker_args));
            assert_eq!(options[0], "--dns=172.17.0.1");
            assert_eq!(options[1..].join(" "), expected, "{docker_args}");
        }
        let long = format!("--name {} ubuntu", "n".repeat(60));
        assert_eq!(dns_arguments(&server, &words(&long))[1..], ["--dns-search=weave.local."]);
    }
}
