//! Attaches containers whose entrypoint is the wait program, when they have started (docs/spec/containers.md A.7).
//!
//! The start is reported by Docker's events. If a client started the container through the proxy, the proxy attaches it instead, so that
//! the client gets the reason if that fails. Attaching twice changes nothing.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Handle;
use weave_api::host_requests::{AttachRequest, HostsFile};
use weave_dns::HostName;
use weave_proxy::{Dns, LeaveAlone, Policy, WAIT_DIRECTORY, WAIT_PROGRAM, WaitDirectories};
use weave_runtime::{ContainerInfo, Docker, Error, INTERFACE, Kind, Reference, Target, etc_hosts, resolve};

use super::endpoints::copy_owner;
use crate::config::{Config, ProxyConfig, ProxyEndpoint};
use crate::containers::{Containers, HostRequest};
use crate::control::Control;

/// Longest time from the start of a container until it is attached, while a client waits. Clients themselves give up after a minute.
const START_TIMEOUT: Duration = Duration::from_secs(50);
/// First pause before a container that ran already is attached again; each further one is half as long again.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(2);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Attaches containers that wait.
#[derive(Debug)]
pub(crate) struct Attacher {
    docker: Docker,
    containers: Containers,
    control: Control,
    config: ProxyConfig,
    bridge: String,
    /// The proxy's unix socket.
    socket: Option<PathBuf>,
    /// Without the address of the name server, which follows the host.
    policy: Policy,
    /// Containers that clients are starting, with the numbers of these clients.
    expected: Mutex<BTreeMap<String, usize>>,
    runtime: Handle,
}

/// While it exists, the start of a container is left to the client that waits for it.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    attacher: &'a Attacher,
    id: String,
}

impl Attacher {
    /// Tasks run on `runtime`.
    pub(crate) fn new(
        docker: Docker,
        containers: Containers,
        control: Control,
        daemon: &Config,
        runtime: Handle,
    ) -> Attacher {
        let config = &daemon.proxy;
        let wait = if config.multicast_route { weave_wait::MULTICAST } else { weave_wait::INTERFACE };
        let has_socket = config.endpoints.iter().any(|e| matches!(e, ProxyEndpoint::Unix(_)));
        let domain = control.dns().map(|info| info.domain.to_string());
        let dns = domain.filter(|_| !config.without_dns).map(|domain| Dns { server: None, domain });
        let policy = Policy {
            wait: WaitDirectories {
                wait: daemon.wait_dir().join(wait),
                no_wait: daemon.wait_dir().join(weave_wait::NOTHING),
            },
            dns,
            attach_by_default: config.attach_by_default,
            user_networks: config.user_networks,
            hostname: config.hostname.clone(),
        };
        Attacher {
            docker,
            containers,
            control,
            config: config.clone(),
            bridge: daemon.bridge.clone(),
            socket: has_socket.then(|| daemon.proxy_socket()),
            policy,
            expected: Mutex::default(),
            runtime,
        }
    }

    pub(super) fn docker(&self) -> &Docker {
        &self.docker
    }

    pub(super) fn bridge(&self) -> &str {
        &self.bridge
    }

    /// How containers are attached now.
    pub(super) fn policy(&self) -> Policy {
        let mut policy = self.policy.clone();
        let server = self.control.dns().and_then(|info| info.listen.first());
        if let Some(dns) = &mut policy.dns {
            dns.server = server.map(|server| server.ip().to_string());
        }
        policy
    }

    pub(super) fn expect(&self, id: &str) -> Expected<'_> {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        *expected.entry(id.to_owned()).or_default() += 1;
        Expected { attacher: self, id: id.to_owned() }
    }

    /// Docker has started a container. If it cannot be attached it is killed, so that its restart policy tries again.
    pub(crate) fn started(self: &Arc<Attacher>, id: &str) {
        if self.expected.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id) {
            return;
        }
        let (attacher, id) = (self.clone(), id.to_owned());
        self.runtime.spawn(async move {
            let Err(failure) = attacher.attach(&id).await else { return };
            if attacher.control.has_ended() {
                return;
            }
            tracing::error!("container {id} is killed, it cannot be attached: {}", failure.text);
            if let Some(pid) = failure.pid {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
            }
        });
    }

    /// Docker has started, or this daemon. Attaches all containers that wait already; those that cannot be attached yet are tried
    /// again.
    pub(crate) fn docker_answers(self: &Arc<Attacher>) {
        if let Some(socket) = &self.socket
            && let Err(e) = copy_owner(socket, &self.docker)
        {
            tracing::warn!("users of Docker may not be able to use {}: {e}", socket.display());
        }
        for id in self.docker.running().unwrap_or_default() {
            let attacher = self.clone();
            self.runtime.spawn(async move {
                let mut delay = FIRST_RETRY_DELAY;
                while let Err(failure) = attacher.attach(&id).await {
                    tracing::warn!("container {id} cannot be attached yet: {}", failure.text);
                    tokio::time::sleep(delay).await;
                    delay = (delay * 3 / 2).min(MAX_RETRY_DELAY);
                }
            });
        }
    }

    /// Attaches a container that a client has started. If that fails, the container is killed; the error is for the client.
    pub(super) async fn attach_for_client(&self, info: &ContainerInfo) -> Result<(), String> {
        let attached = tokio::time::timeout(START_TIMEOUT, self.attach(&info.id)).await;
        let failure = match attached {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(failure)) => failure.text,
            Err(_) => {
                format!("no address within {} s; 'weave status ipam' may say why", START_TIMEOUT.as_secs())
            }
        };
        if !self.control.has_ended() {
            let (docker, id) = (self.docker.clone(), info.id.clone());
            tracing::error!("container {id} is killed, it cannot be attached: {failure}");
            // It may have ended by itself.
            let _ = tokio::task::spawn_blocking(move || docker.kill(&id)).await;
        }
        Err(format!("container {} cannot be attached to the weave network: {failure}", info.name))
    }

    /// Attaches a container if it waits for that.
    async fn attach(&self, id: &str) -> Result<(), Failure> {
        let (docker, asked) = (self.docker.clone(), id.to_owned());
        let found = tokio::task::spawn_blocking(move || find(&docker, &asked)).await;
        let target = found.map_err(|e| Failure { pid: None, text: e.to_string() })?;
        let failure = |pid, text: String| Failure { pid, text };
        let Some(target) = target.map_err(|e| failure(None, e.to_string()))? else { return Ok(()) };
        let Kind::Docker(info) = &target.kind else { return Ok(()) };
        // 2.8.1 has attached it, or an earlier daemon. If 2.8.1 ended before it was done, the program still waits.
        let attached = weave_host::interface_addresses(&target.ns, INTERFACE);
        if attached.is_ok_and(|addresses| !addresses.is_empty()) && !target.pid.is_some_and(runs_wait_program)
        {
            return Ok(());
        }
        let addresses = match self.addresses(info) {
            Ok(addresses) => addresses,
            Err(reason) => {
                tracing::info!("container {id} is not attached, because {reason}");
                return Ok(());
            }
        };
        let pid = target.pid;
        let request = AttachRequest {
            container: target.id.clone(),
            naming: target.naming.clone(),
            bridge: self.bridge.clone(),
            addresses,
            former: false,
            record: true,
            multicast_route: self.needs_multicast_route(info),
            hairpin: true,
            hosts_file: self.hosts_file(info),
            name: self.name(info),
            starting: false,
        };
        let ns = target.ns.as_fd().try_clone_to_owned().map_err(|e| failure(pid, e.to_string()))?;
        let attached = self.containers.handle(&self.control, HostRequest::Attach(request, ns)).await;
        let attached = attached.map_err(|text| failure(pid, text))?;
        attached.warnings.iter().for_each(|warning| tracing::warn!("container {id}: {warning}"));
        tracing::info!("container {id} is attached: {}", attached.addresses.join(" "));
        Ok(())
    }

    /// Whether containers have the route, or this one may wait for it: it was created while they had. Which of its programs 2.8.1 gave
    /// to a container is not known.
    fn needs_multicast_route(&self, info: &ContainerInfo) -> bool {
        let program = (self.policy.wait.wait.clone(), PathBuf::from(WAIT_DIRECTORY));
        self.config.multicast_route || !info.mounts.contains(&program)
    }

    /// The addresses that it asks for, or those that it had when it ran before.
    fn addresses(&self, info: &ContainerInfo) -> Result<Vec<String>, LeaveAlone> {
        let wanted = self.policy().addresses(&info.network_mode, &info.env)?;
        let attachments = self.containers.attachments();
        Ok(if attachments.contains(&info.id) { attachments.addresses(&info.id) } else { wanted })
    }

    fn name(&self, info: &ContainerInfo) -> Option<String> {
        let name = info.dns_name().filter(|_| !self.config.without_dns)?;
        let valid =
            HostName::parse(&name).inspect_err(|e| tracing::warn!("no name for container {}: {e}", info.id));
        valid.ok().map(|_| name)
    }

    fn hosts_file(&self, info: &ContainerInfo) -> Option<HostsFile> {
        let path = info.hosts_path.clone().filter(|_| self.config.rewrite_hosts)?;
        if !path.exists() {
            tracing::warn!("the hosts file of container {} is not on this host: {}", info.id, path.display());
            return None;
        }
        Some(HostsFile {
            path,
            fqdn: format!("{}.{}", info.hostname, info.domainname),
            extra: etc_hosts::extra_names(info),
        })
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        let mut expected = self.attacher.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = expected.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                expected.remove(&self.id);
            }
        }
    }
}

/// Why a container is not attached, and its first process.
struct Failure {
    pid: Option<u32>,
    text: String,
}

/// Whether it waits to be attached when it has started.
pub(crate) fn waits(container: &ContainerInfo) -> bool {
    container.entrypoint.first().is_some_and(|program| program == WAIT_PROGRAM)
}

/// Whether a process has not become the container's own program yet: its arguments begin with the wait program, or with an init or
/// interpreter in front of it.
fn runs_wait_program(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).take(3).any(|argument| argument == WAIT_PROGRAM.as_bytes())
}

/// The container, if it runs and waits to be attached.
fn find(docker: &Docker, id: &str) -> Result<Option<Target>, Error> {
    if !docker.inspect(id)?.is_some_and(|info| info.is_running() && waits(&info)) {
        return Ok(None);
    }
    match resolve(&Reference::Docker(id.to_owned()), docker) {
        Ok(target) => Ok(Some(target)),
        Err(Error::Unknown(_) | Error::NotRunning(_) | Error::Died(_) | Error::HostNetwork) => Ok(None),
        Err(e) => Err(e),
    }
}
