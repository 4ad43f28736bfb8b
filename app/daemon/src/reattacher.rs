//! Attaches containers of Docker again that were attached, and that Docker has started again since: by their restart policy, by hand, or
//! after a restart of the host. Their namespaces are new, and have no interface of ours. Containers of the Docker API proxy, which wait for
//! that, are left to its `Attacher`.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::runtime::Handle;
use weave_dns::HostName;
use weave_host::NamespaceId;
use weave_runtime::{ContainerState, Docker, Error, Kind, Reference};
use weave_types::Cidr;

use crate::containers::{Containers, HostRequest, ipv4};
use crate::control::Control;
use crate::names::NameChange;
use crate::plugin;
use crate::proxy::{self, Attacher};

#[derive(Clone, Debug)]
pub(crate) struct Reattacher {
    pub(crate) docker: Docker,
    pub(crate) containers: Containers,
    pub(crate) control: Control,
    pub(crate) runtime: Handle,
    /// Attaches containers that wait; `None` if another peer of this host does.
    pub(crate) attacher: Option<Arc<Attacher>>,
    /// Announces containers of our networks; `None` without the plugin.
    pub(crate) plugin: Option<Arc<plugin::Service>>,
}

impl Reattacher {
    /// Applies a report of Docker.
    pub(crate) fn set_state(&self, container: &str, state: ContainerState) {
        match state {
            ContainerState::Running => self.started(container),
            ContainerState::Removed => self.containers.attachments().removed(container),
            ContainerState::Stopped | ContainerState::Restarting => {}
        }
    }

    /// Applies the states of all containers, after a time in which Docker's reports were missed.
    pub(crate) fn set_states(&self, states: &BTreeMap<String, ContainerState>) {
        if let Some(attacher) = &self.attacher {
            attacher.docker_answers();
        }
        if let Some(plugin) = &self.plugin {
            plugin.docker_answers();
        }
        let recorded = self.containers.attachments().containers();
        for container in recorded {
            self.set_state(&container, states.get(&container).copied().unwrap_or(ContainerState::Removed));
        }
    }

    fn started(&self, container: &str) {
        if let Some(attacher) = &self.attacher {
            attacher.started(container);
        }
        if let Some(plugin) = &self.plugin {
            plugin.started(container);
        }
        if self.containers.attachments().contains(container)
            && let Err(e) = self.attach(container)
        {
            log_failure(container, &e);
        }
    }

    /// Attaches a container in the background, unless it is attached or has ended. It may be attached by the OCI runtime or for a client of
    /// the proxy.
    fn attach(&self, container: &str) -> Result<(), Error> {
        let target = match weave_runtime::resolve(&Reference::Docker(container.to_owned()), &self.docker) {
            // Docker reports its next start, or its removal.
            Err(Error::NotRunning(_) | Error::Died(_) | Error::Unknown(_)) => return Ok(()),
            found => found?,
        };
        let addresses = weave_host::interface_addresses(&target.ns, weave_runtime::INTERFACE)?;
        if !addresses.is_empty() {
            self.restore_name(container, target.ns.id(), &addresses);
            return Ok(());
        }
        if let Kind::Docker(info) = &target.kind
            && self.attacher.is_some()
            && proxy::waits(info)
        {
            return Ok(());
        }
        let Some(request) = self.containers.attachments().request(container, target.naming) else {
            return Ok(());
        };
        let ns = target.ns.as_fd().try_clone_to_owned().map_err(|e| Error::Processes(e.to_string()))?;
        let (containers, control) = (self.containers.clone(), self.control.clone());
        let container = container.to_owned();
        self.runtime.spawn(async move {
            match containers.handle(&control, HostRequest::Attach(request, ns)).await {
                Ok(response) => {
                    let addresses = response.addresses.join(" ");
                    tracing::info!("container {container} has been started again: attached with {addresses}");
                    response.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                }
                Err(e) => log_failure(&container, &e),
            }
        });
        Ok(())
    }

    /// Registers the name of an attached container if nothing is known of it: it was attached before Docker's report of its former end
    /// arrived, with which its names were removed.
    fn restore_name(&self, container: &str, namespace: NamespaceId, addresses: &[Cidr]) {
        let Some(known) = self.control.dns().and_then(|_| self.control.named_containers_blocking()) else {
            return;
        };
        if known.iter().any(|known| known == container) {
            return;
        }
        let name = self.containers.attachments().name(container).and_then(|name| HostName::parse(&name).ok());
        self.control.change_names_blocking(NameChange::Attached {
            container: container.to_owned(),
            namespace: Some(namespace),
            name,
            addrs: ipv4(addresses),
        });
    }
}

fn log_failure(container: &str, error: &dyn std::fmt::Display) {
    tracing::warn!(
        "container {container} has been started again and is not attached, 'weave attach' does it once this is solved: {error}"
    );
}
