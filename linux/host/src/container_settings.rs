//! Gives containers that were attached by an earlier launch, or by 2.8.1, what a new one gets: the MTU of the bridge, and a firewall that
//! lets group membership pass.

use crate::firewall::multicast;
use crate::{BridgePorts, Error, NetNs};

/// Result of [`update_containers`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdatedContainers {
    /// What was changed.
    pub changes: Vec<String>,
    /// What could not be changed, and what that means.
    pub problems: Vec<String>,
}

/// Updates all containers that have an interface on the bridge. An MTU that somebody has lowered inside a container is kept.
///
/// # Errors
/// The bridge or the namespaces cannot be listed.
pub fn update_containers(bridge: &str) -> Result<UpdatedContainers, Error> {
    let mut ports = BridgePorts::scan(bridge)?;
    let mut updated = UpdatedContainers::default();
    let mut unknown = ports.with_other_mtu();
    if ports.is_empty() {
        return Ok(updated);
    }
    for ns in NetNs::all()? {
        // An error means that the container has ended meanwhile.
        let Ok(interfaces) = ports.in_namespace(&ns) else { continue };
        for interface in interfaces {
            let name = &interface.name;
            unknown.retain(|port| Some(port.index) != interface.port);
            match ports.update_mtu(&ns, &interface) {
                Ok(Some(change)) => updated.changes.push(format!("{change} in {ns}")),
                Ok(None) => {}
                Err(e) => updated.problems.push(format!("large packets of {ns} are lost: {e}")),
            }
            match ns.run(|| multicast::admit_membership(name)) {
                Ok(Ok(true)) => {
                    updated.changes.push(format!("IGMP is accepted on {name} in {ns}"));
                }
                Ok(Ok(false)) => {}
                Ok(Err(e)) => {
                    updated
                        .problems
                        .push(format!("{ns} may lose multicast groups, its firewall drops IGMP: {e}"));
                }
                Err(e) => updated.problems.push(e.to_string()),
            }
        }
    }
    updated.problems.extend(unknown.iter().map(|port| {
        format!(
            "large packets of the container behind {} are lost: its MTU was {} and its namespace cannot be found; attach it again",
            port.name, port.mtu
        )
    }));
    Ok(updated)
}
