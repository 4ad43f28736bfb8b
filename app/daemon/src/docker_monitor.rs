//! Reports of Docker about the containers that have addresses or names, or are to be attached again. They come in a thread of its own, which waits for Docker.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use weave_dns::HostName;
use weave_host::NetNs;
use weave_runtime::{ContainerState, Docker};

use crate::containers::ipv4;
use crate::control::Control;
use crate::host::Inventory;
use crate::names::NameChange;
use crate::reattacher::Reattacher;

/// Pause before Docker is asked again, after it has ended or does not answer.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Whether Docker answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct DockerHealth(Arc<Mutex<Option<String>>>);

impl DockerHealth {
    /// Why Docker does not answer; `None` if it does, or if that is not known yet.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, problem: Option<String>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*known, &problem) {
            (Some(_), None) => tracing::info!("Docker answers again"),
            (None, Some(e)) => {
                tracing::info!("the end of Docker's containers is not noticed until Docker answers: {e}")
            }
            _ => {}
        }
        *known = problem;
    }
}

/// Passes reports to the task that owns the node until that has ended.
pub(crate) fn monitor_docker(reattacher: Reattacher, health: DockerHealth, bridge: String) -> io::Result<()> {
    let run = move || {
        let Reattacher { docker, control, .. } = &reattacher;
        let mut ended = false;
        while !ended {
            let result = docker.watch(|change| {
                let reconnected = change.is_none();
                health.set(None);
                let states = match change {
                    Some((container, state)) => {
                        let state = docker.refine(&container, state);
                        reattacher.set_state(&container, state);
                        vec![(container, state)]
                    }
                    // What changed while Docker was not watched. The containers existed before the list was made.
                    None => {
                        let containers = control.docker_containers_blocking();
                        let (Some(containers), Ok(states)) = (containers, docker.states()) else {
                            return ControlFlow::Break(());
                        };
                        reattacher.set_states(&states);
                        let state = |id: &String| states.get(id).copied().unwrap_or(ContainerState::Removed);
                        containers.into_iter().map(|id| (id.clone(), state(&id))).collect()
                    }
                };
                ended = control.set_docker_states_blocking(states).is_none();
                if reconnected && control.dns().is_some() {
                    register_attached(docker, control, &bridge);
                }
                if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if let Err(e) = result {
                health.set(Some(e.to_string()));
            }
            if !ended {
                std::thread::sleep(RETRY_DELAY);
            }
        }
    };
    std::thread::Builder::new().name("weave-docker".to_owned()).spawn(run).map(drop)
}

/// Registers containers that are attached and of which nothing is known: 2.8.1 attached them, or a command while no daemon ran.
fn register_attached(docker: &Docker, control: &Control, bridge: &str) {
    let Some(known) = control.named_containers_blocking() else { return };
    let new = |ids: Vec<String>| ids.into_iter().filter(|id| !known.contains(id)).collect::<Vec<_>>();
    let new = docker.running().map(new).unwrap_or_default();
    let Ok(inventory) = (if new.is_empty() { return } else { Inventory::take(bridge, None) }) else { return };
    for container in new {
        let Ok(Some(info)) = docker.inspect(&container) else { continue };
        let name = info.dns_name().and_then(|name| HostName::parse(&name).ok());
        let namespace = info.pid.and_then(|pid| NetNs::of_process(pid).ok()).map(|ns| ns.id());
        let (Some(name), Some(namespace)) = (name, namespace) else { continue };
        let found = inventory.in_use().iter().filter(|found| found.namespace == Some(namespace));
        let addrs = ipv4(found.flat_map(|found| &found.cidrs));
        if !addrs.is_empty() {
            tracing::info!("container {container} is attached: its name is {name}");
            let change = NameChange::Attached { container, namespace: None, name: Some(name), addrs };
            control.change_names_blocking(change);
        }
    }
}
