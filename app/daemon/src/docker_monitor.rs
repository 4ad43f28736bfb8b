//! Reports of Docker about the containers that have addresses. They come in a thread of its own, which waits for Docker.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use weave_runtime::{ContainerState, Docker};

use crate::control::Control;

/// Pause before Docker is asked again, after it has ended or does not answer.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Passes reports to the task that owns the node until that has ended.
pub(crate) fn monitor_docker(docker: Docker, control: Control) -> io::Result<()> {
    let run = move || {
        let mut ended = false;
        while !ended {
            let result = docker.watch(|change| {
                let states = match change {
                    Some(change) => vec![change],
                    // What changed while Docker was not watched. The containers existed before the list was made.
                    None => {
                        let containers = control.docker_containers_blocking();
                        let (Some(containers), Ok(states)) = (containers, docker.states()) else {
                            return ControlFlow::Break(());
                        };
                        let state = |id: &String| states.get(id).copied().unwrap_or(ContainerState::Removed);
                        containers.into_iter().map(|id| (id.clone(), state(&id))).collect()
                    }
                };
                ended = control.set_docker_states_blocking(states).is_none();
                if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            if let Err(e) = result {
                tracing::debug!("the end of Docker's containers is not noticed until Docker answers: {e}");
            }
            if !ended {
                std::thread::sleep(RETRY_DELAY);
            }
        }
    };
    std::thread::Builder::new().name("weave-docker".to_owned()).spawn(run).map(drop)
}
