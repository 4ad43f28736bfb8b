//! What goes into a bundle, and what is known about the host before anything is written.

mod system;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use weave_api::{Client, Report};
use weave_daemon::pid_file;
use weave_host::ContainerInterface;
use weave_types::{Cidr, MacAddr};

use super::Part;
use super::redact::{Known, marked_values};
use crate::args::Parsed;
use crate::env::Env;
use crate::service::{docker, systemd, unit};
use crate::{Failure, dns, doctor, launch, options, ps, query};
use system::{read_end, read_start};

/// Longest wait for an answer of the daemon, or of a container engine.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that anything but the examination takes.
const TIMEOUT: Duration = Duration::from_secs(20);
/// `weave doctor` ends within 15 seconds.
const DOCTOR_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of a journal, or of a container's log.
const LOG_LINES: u32 = 20_000;
const STATUS_PAGES: [&str; 6] = ["", "/targets", "/connections", "/peers", "/dns", "/ipam"];

/// What is known before the parts are collected.
pub(super) struct Sources {
    pub(super) nickname: String,
    pub(super) known: Known,
    client: Client,
    report: Result<String, String>,
    /// Of the daemon and its supervisor, those that run.
    processes: Vec<i32>,
    /// Files with options and variables of the daemon, and what they contain.
    service_files: Vec<(PathBuf, String)>,
}

impl Sources {
    pub(super) fn read(parsed: &Parsed, env: &dyn Env) -> Result<Sources, Failure> {
        let client = query::client(parsed, env).with_timeout(REQUEST_TIMEOUT);
        let report = client.report_json().map_err(|e| query::explain(e, parsed, env).message);
        let run_dir = options::run_dir(parsed, env);
        let pids =
            ["weave.pid", "supervisor.pid"].iter().filter_map(|file| pid_file::holder(&run_dir.join(file)));
        let hostname = launch::hostname();
        let mut sources = Sources {
            nickname: hostname.clone(),
            known: Known::default(),
            client,
            report,
            processes: pids.collect(),
            service_files: service_files(&systemd::unit_name(&options::named("weave", parsed, env))),
        };
        let parsed_report = sources.report.as_deref().ok().and_then(|json| Report::from_json(json).ok());
        sources.add_secrets(parsed, env);
        sources.add_networks(parsed_report.as_ref(), parsed, env);
        sources.known.hardware = system::hardware();
        sources.add_names(&hostname, parsed_report.as_ref(), parsed, env);
        Ok(sources)
    }

    /// The password wherever it may be stored.
    fn add_secrets(&mut self, parsed: &Parsed, env: &dyn Env) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let secrets = &mut self.known.secrets;
        secrets.extend(env.bytes("WEAVE_PASSWORD").map(|bytes| text(&bytes)));
        let file = options::state_dir(parsed, env).join("password");
        secrets.extend(std::fs::read(file).ok().map(|bytes| text(options::without_line_end(&bytes))));
        secrets.extend(self.service_files.iter().flat_map(|(_, content)| marked_values(content)));
        for pid in &self.processes {
            // The value of a variable or an argument ends with a zero byte, whatever it contains.
            for variable in read_start(format!("/proc/{pid}/environ")).unwrap_or_default().split('\0') {
                let marked = variable
                    .split_once('=')
                    .filter(|(name, _)| marked_values(&format!("{name}=x")).next().is_some());
                secrets.extend(marked.map(|(_, value)| value.to_owned()));
            }
            let arguments = system::arguments(*pid).unwrap_or_default();
            for (argument, next) in arguments.iter().zip(arguments.iter().skip(1)) {
                secrets.extend(argument.split_once("password=").map(|(_, value)| value.to_owned()));
                secrets.extend(argument.ends_with("-password").then(|| next.clone()));
            }
            secrets
                .extend(arguments.last().and_then(|last| Some(last.split_once("password=")?.1.to_owned())));
        }
        secrets.retain(|secret| !secret.is_empty());
    }

    /// The range of addresses, and those that containers have outside of it.
    fn add_networks(&mut self, report: Option<&Report>, parsed: &Parsed, env: &dyn Env) {
        let networks = &mut self.known.networks;
        match report {
            Some(report) => {
                let ranges = report.ipam.iter().flat_map(|ipam| [&ipam.range, &ipam.default_subnet]);
                networks.extend(ranges.filter_map(|range| range.parse::<Cidr>().ok()));
                let entries = report.dns.iter().flat_map(|dns| &dns.entries);
                let own = entries.filter(|entry| entry.container_id != dns::EXTERN);
                networks.extend(own.filter_map(|entry| single(entry.address.parse().ok()?)));
            }
            None => {
                let range = self
                    .service_files
                    .iter()
                    .find_map(|(_, text)| option(text, "ipalloc-range")?.parse::<Cidr>().ok());
                networks.extend(range.or_else(|| options::DEFAULT_RANGE.parse::<Cidr>().ok()));
            }
        }
        let engine = ps::docker(env).with_timeout(REQUEST_TIMEOUT);
        let interfaces = ps::interfaces(&options::bridge(parsed, env), &engine).unwrap_or_default();
        let addresses =
            interfaces.iter().flat_map(|(_, interface): &(String, ContainerInterface)| &interface.addresses);
        for address in addresses {
            networks.extend(single(address.addr()));
            networks.extend(single(address.network().addr()));
        }
        networks.sort_unstable();
        networks.dedup();
    }

    /// The names of this host, of its domains, and of those that were named to weave.
    fn add_names(&mut self, hostname: &str, report: Option<&Report>, parsed: &Parsed, env: &dyn Env) {
        let peers = report.iter().flat_map(|report| &report.router.peers).collect::<Vec<_>>();
        self.known.peers = peers.iter().filter_map(|peer| peer.name.parse::<MacAddr>().ok()).collect();
        self.known.nicknames = peers.iter().map(|peer| peer.nick_name.clone()).collect();
        match report {
            Some(report) => {
                self.nickname.clone_from(&report.router.nick_name);
                self.known.nicknames.insert(report.router.nick_name.clone());
            }
            None => {
                let state = read_start(options::state_dir(parsed, env).join("peer.json")).unwrap_or_default();
                let state: serde_json::Value = serde_json::from_str(&state).unwrap_or_default();
                self.known.peers.extend(state["name"].as_str().and_then(|name| name.parse::<MacAddr>().ok()));
                self.known.names.extend(strings(&state["targets"]).map(host_of));
                self.known.nicknames.insert(hostname.to_owned());
            }
        }
        let targets = report.iter().flat_map(|report| &report.router.targets);
        self.known.names.extend(targets.map(|target| host_of(target)));
        self.known.names.insert(hostname.to_owned());
        self.known.names.extend(system::search_domains());
        let domain = report
            .and_then(|report| report.dns.as_ref())
            .map(|dns| dns.domain.trim_end_matches('.').to_owned());
        let is_known_to_all = |name: &String| {
            name.is_empty()
                || name == "localhost"
                || Some(name) == domain.as_ref()
                || name.parse::<IpAddr>().is_ok()
        };
        self.known.names.retain(|name| !is_known_to_all(name));
    }

    /// The addresses that stay, for people.
    pub(super) fn networks(&self) -> String {
        let (single, ranges): (Vec<&Cidr>, Vec<&Cidr>) =
            self.known.networks.iter().partition(|network: &&Cidr| network.prefix() == 32);
        let mut text: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        if !single.is_empty() {
            text.push("those that containers were given outside of it".to_owned());
        }
        text.join(", ")
    }

    /// All parts, in the order of the archive.
    pub(super) fn parts(&self, parsed: &Parsed, env: &dyn Env) -> Result<Vec<Part>, Failure> {
        let part = |file, what: &str, limit, collect: Box<dyn FnOnce() -> Result<String, String> + Send>| {
            Part { file, what: what.to_owned(), limit, collect }
        };
        let (report, client) = (self.report.clone(), self.client.clone());
        let settings = doctor::settings(parsed, env)?;
        let instance = options::named("weave", parsed, env);
        let unit = systemd::unit_name(&instance);
        let bridge = options::bridge(parsed, env);
        let engine = ps::docker(env).with_timeout(REQUEST_TIMEOUT);
        let (container, logging_engine) = (docker::container_name(instance.clone(), env), docker::local(env));
        let log = self.log_file(&instance);
        let earlier_log = PathBuf::from(format!("{}.1", log.display()));
        let processes = self.processes.clone();
        let service_files = self.service_files.clone();
        let (asked, version) = (self.report.clone(), self.report.clone());
        let metrics_client = client.clone();
        Ok(vec![
            part(
                "versions.txt",
                "versions of weave, kernel, distribution and programs that weave uses",
                TIMEOUT,
                Box::new(move || system::versions(version.ok().as_deref())),
            ),
            part(
                "doctor.txt",
                "'weave doctor'",
                DOCTOR_TIMEOUT,
                Box::new(move || Ok(doctor::examine(settings))),
            ),
            part(
                "status.txt",
                "all pages of 'weave status'",
                TIMEOUT,
                Box::new(move || status(&asked, &client)),
            ),
            part("report.json", "'weave report'", TIMEOUT, Box::new(move || report)),
            part("metrics.txt", "GET /metrics", TIMEOUT, {
                let is_up = self.report.clone();
                Box::new(move || {
                    is_up.and_then(|_| metrics_client.get("/metrics").map_err(|e| e.to_string()))
                })
            }),
            part(
                "containers.txt",
                "'weave ps': containers of this host with their addresses",
                TIMEOUT,
                Box::new(move || {
                    ps::interfaces(&bridge, &engine).map(|all| ps::listing(&all)).map_err(|e| e.message)
                }),
            ),
            part(
                "process.txt",
                "arguments of the daemon and its supervisor, /proc/<pid>/status and limits",
                TIMEOUT,
                Box::new(move || system::processes(&processes)),
            ),
            part(
                "service.txt",
                "unit of systemd, and files with options",
                TIMEOUT,
                Box::new(move || system::with_headings(&service_files)),
            ),
            part(
                "log-journal.txt",
                &format!("'journalctl --unit {unit}', the last {LOG_LINES} lines"),
                TIMEOUT,
                Box::new(move || system::journal(&unit, LOG_LINES)),
            ),
            part(
                "log-container.txt",
                &format!("log of the container {container}, the last {LOG_LINES} lines"),
                TIMEOUT,
                Box::new(move || {
                    let engine = logging_engine
                        .ok_or("Docker does not answer, or is not on this host")?
                        .with_timeout(REQUEST_TIMEOUT);
                    engine.log(&container, LOG_LINES).map_err(|e| e.to_string())
                }),
            ),
            part(
                "log-file.txt",
                &format!("the end of {}", log.display()),
                TIMEOUT,
                Box::new(move || read_end(&log)),
            ),
            part(
                "log-file.1.txt",
                &format!("the end of {}, the file before", earlier_log.display()),
                TIMEOUT,
                Box::new(move || read_end(&earlier_log)),
            ),
            part(
                "sysctls.txt",
                "settings of the kernel that matter to weave, from /proc/sys",
                TIMEOUT,
                Box::new(|| Ok(system::sysctls())),
            ),
            part(
                "network.txt",
                "'ip' of links, addresses, routes and rules of this host",
                TIMEOUT,
                Box::new(system::network),
            ),
            part(
                "firewall.txt",
                "'iptables-save' and 'nft list ruleset'",
                TIMEOUT,
                Box::new(system::firewall),
            ),
        ])
    }

    /// The log file of a daemon that neither systemd nor Docker runs.
    fn log_file(&self, instance: &str) -> PathBuf {
        let arguments = self.processes.iter().flat_map(|pid| system::arguments(*pid).unwrap_or_default());
        let named =
            arguments.into_iter().find_map(|argument| Some(argument.strip_prefix("--log-file=")?.into()));
        named.unwrap_or_else(|| format!("/var/log/{instance}.log").into())
    }
}

/// The network of one address.
fn single(address: IpAddr) -> Option<Cidr> {
    Cidr::new(address, if address.is_ipv4() { 32 } else { 128 })
}

/// The value of an option in a command line or a list of options.
fn option<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("--{name}"))?;
    rest.strip_prefix(['=', ' '])?.split(['"', '\'', ' ', '\n']).next()
}

/// `h2` of `h2:7000`.
fn host_of(target: &str) -> String {
    let has_port = target.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    has_port.map_or(target, |(host, _)| host).trim_matches(['[', ']']).to_owned()
}

fn strings(list: &serde_json::Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str)
}

fn status(report: &Result<String, String>, client: &Client) -> Result<String, String> {
    report.as_ref().map_err(Clone::clone)?;
    let mut text = String::new();
    for page in STATUS_PAGES {
        let answer = client.request("GET", &format!("/status{page}"), &[], &[]);
        let body = answer.map_or_else(|e| format!("{e}\n"), |answer| answer.body);
        text.push_str(&format!("== weave status {}\n{body}\n", page.trim_start_matches('/')));
    }
    Ok(text)
}

/// Those files that exist: units of systemd with what was added to them, and the files with variables that they name.
fn service_files(unit: &str) -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in ["/etc/systemd/system", "/usr/lib/systemd/system"] {
        let unit = Path::new(folder).join(unit);
        let additions = std::fs::read_dir(format!("{}.d", unit.display())).into_iter().flatten().flatten();
        let additions: BTreeSet<PathBuf> = additions.map(|entry| entry.path()).collect();
        paths.push(unit);
        paths.extend(additions);
    }
    paths.extend(unit::FILES.iter().map(PathBuf::from));
    paths.into_iter().filter_map(|path| Some((path.clone(), read_start(&path).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_targets() {
        for (target, host) in
            [("h2", "h2"), ("h2:7000", "h2"), ("[fd00::1]:7000", "fd00::1"), ("fd00::1", "fd00::1")]
        {
            assert_eq!(host_of(target), host);
        }
    }

    #[test]
    fn options_in_files() {
        let text = "PEERS=\"h1\"\nWEAVE_OPTIONS=\"--ipalloc-range 10.2.0.0/16\"\n";
        assert_eq!((option(text, "ipalloc-range"), option(text, "port")), (Some("10.2.0.0/16"), None));
        assert_eq!(
            option("ExecStart=weave daemon --ipalloc-range=10.3.0.0/16", "ipalloc-range"),
            Some("10.3.0.0/16")
        );
    }
}
