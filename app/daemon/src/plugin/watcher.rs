//! The default network, and what containers of our networks get when they have started (docs/spec/containers.md B.3).

use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError};

use weave_dns::HostName;
use weave_host::{NetNs, announce_interfaces};
use weave_plugin::multicast;
use weave_runtime::{ContainerInfo, Docker};

use super::service::Service;
use crate::config::driver_name;
use crate::names::{NameChange, may_run};

/// Interface names that Docker makes of the prefix in our answers: `ethwe0`, `ethwe1`, ...
const INTERFACES: &str = "ethwe";
/// Networks whose drivers are remembered.
const MAX_SEEN: usize = 10_000;

impl Service {
    /// Docker has started a container.
    pub(crate) fn started(self: &Arc<Service>, id: &str) {
        if !self.is_legacy() {
            return;
        }
        let (service, id) = (self.clone(), id.to_owned());
        self.runtime.spawn_blocking(move || service.announce(&id));
    }

    /// Docker has started, or this daemon.
    pub(crate) fn docker_answers(self: &Arc<Service>) {
        if !self.is_legacy() {
            return;
        }
        let service = self.clone();
        self.runtime.spawn_blocking(move || {
            let Some(docker) = &service.docker else { return };
            service.ensure_network(docker);
            for network in docker.networks().unwrap_or_default() {
                if service.is_ours(&network.driver)
                    && let Ok(multicast) = multicast(&network.options)
                {
                    service.learn(&network.id, multicast);
                }
            }
            docker.running().unwrap_or_default().iter().for_each(|id| service.announce(id));
        });
    }

    fn is_ours(&self, driver: &str) -> bool {
        [&self.config.socket, &self.config.mesh_socket]
            .into_iter()
            .flatten()
            .any(|s| driver_name(s) == driver)
    }

    /// Creates the default network in Docker unless it exists.
    fn ensure_network(&self, docker: &Docker) {
        let Some((name, socket)) = self.config.network.as_ref().zip(self.config.mesh_socket.as_ref()) else {
            return;
        };
        let Some(info) = self.control.allocation() else {
            tracing::info!("Docker gets no network {name}, because no addresses are allocated");
            return;
        };
        match docker.network(name) {
            Ok(Some(network)) if self.is_ours(&network.driver) => return,
            Ok(Some(network)) => {
                tracing::warn!("Docker has a network {name} of another driver, {}", network.driver);
                return;
            }
            Ok(None) => {}
            Err(e) => {
                tracing::warn!("cannot find out whether Docker has the network {name}: {e}");
                return;
            }
        }
        let settings = Service::network_settings(name, info.default_subnet.cidr(), &driver_name(socket));
        match docker.create_network(&settings) {
            Ok(()) => tracing::info!("created the network {name} of Docker"),
            // Another client may have created it.
            Err(_) if docker.network(name).is_ok_and(|found| found.is_some()) => {}
            Err(e) => {
                tracing::warn!("Docker has no network {name}, it is tried again when Docker starts: {e}")
            }
        }
    }

    /// Registers the names of a container in our networks, and announces its addresses.
    fn announce(&self, id: &str) {
        let Some(docker) = &self.docker else { return };
        let info = match docker.inspect(id) {
            Ok(Some(info)) if info.is_running() => info,
            Ok(_) => return,
            Err(e) => {
                tracing::warn!("container {id} may have no name in the network: {e}");
                return;
            }
        };
        let mut ours = false;
        for endpoint in &info.endpoints {
            if !self.is_our_network(docker, &endpoint.network) {
                continue;
            }
            ours = true;
            if let Ok(addr) = endpoint.address.parse::<Ipv4Addr>() {
                self.register(&info, &endpoint.aliases, addr);
            }
        }
        if !ours {
            return;
        }
        if self.control.dns().is_some() && !may_run(Some(docker), id) {
            self.control.change_names_blocking(NameChange::Ended(id.to_owned()));
            return;
        }
        let Some(pid) = info.pid else { return };
        match NetNs::of_process(pid).and_then(|ns| announce_interfaces(&ns, INTERFACES)) {
            Ok(warnings) => warnings.iter().for_each(|w| tracing::warn!("container {id}: {w}")),
            Err(e) => tracing::warn!("container {id} may be found late by others in the network: {e}"),
        }
    }

    fn is_our_network(&self, docker: &Docker, network: &str) -> bool {
        if network.is_empty() {
            return false;
        }
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ours) = seen().get(network) {
            return *ours;
        }
        let Ok(Some(found)) = docker.network(network) else { return false };
        let ours = self.is_ours(&found.driver);
        let mut seen = seen();
        if seen.len() >= MAX_SEEN {
            seen.clear();
        }
        seen.insert(network.to_owned(), ours);
        ours
    }

    fn register(&self, info: &ContainerInfo, aliases: &[String], addr: Ipv4Addr) {
        let Some(dns) = self.control.dns() else { return };
        let domain = dns.domain.to_string();
        for name in names(info, aliases, &domain) {
            match HostName::parse(&name) {
                Ok(name) => {
                    let change = NameChange::Add { name, container: info.id.clone(), addrs: vec![addr] };
                    self.control.change_names_blocking(change);
                }
                Err(e) => tracing::debug!("no name for container {}: {e}", info.id),
            }
        }
    }
}

/// The names of a container in a network: its host name, its name and its further names there. Those without a domain are in ours; 2.8.1
/// ignored further names without a domain.
fn names(info: &ContainerInfo, aliases: &[String], domain: &str) -> Vec<String> {
    let ours = |name: &str| format!("{name}.{domain}");
    let further = aliases.iter().map(|name| if name.contains('.') { name.clone() } else { ours(name) });
    let mut names: Vec<String> =
        info.dns_name().into_iter().chain([ours(&info.name)]).chain(further).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_container() {
        let info = ContainerInfo {
            name: "web".into(),
            hostname: "front".into(),
            domainname: "weave.local".into(),
            ..ContainerInfo::default()
        };
        let aliases = ["www".to_owned(), "api.weave.local".to_owned(), "web".to_owned()];
        assert_eq!(
            names(&info, &aliases, "weave.local."),
            ["api.weave.local", "front.weave.local", "web.weave.local.", "www.weave.local."]
        );
        let info = ContainerInfo { name: "web".into(), hostname: "abc".into(), ..ContainerInfo::default() };
        assert_eq!(names(&info, &[], "weave.local."), ["web.weave.local."]);
    }
}
