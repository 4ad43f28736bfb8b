//! Interfaces that network plugins ask for: under any name, with routes.

use weave_host::{AttachRequest, DetachRequest, Link, LinkRoute, NetNs};
use weave_types::{Cidr, MacAddr};

use crate::pending::{Change, Namespace};
use crate::{AddressRequest, Error};

/// An interface to create in a container.
#[derive(Debug)]
pub struct NewInterface {
    /// The container's namespace.
    pub ns: NetNs,
    /// The name of the interface in the container.
    pub interface: String,
    /// Source of the interface name on the host.
    pub naming: String,
    /// The bridge to attach to.
    pub bridge: String,
    /// MTU in bytes; `None` takes the bridge's.
    pub mtu: Option<u32>,
    /// The Ethernet address; `None` for any.
    pub mac: Option<MacAddr>,
    /// Whether frames may leave by the bridge port that they came in by.
    pub hairpin: bool,
    /// The addresses to attach with.
    pub addresses: Vec<AddressRequest>,
}

/// Both ends of an interface that was created.
#[derive(Clone, Debug)]
pub struct CreatedInterface {
    /// The container's end.
    pub link: Link,
    /// The host's end.
    pub port: Link,
}

impl NewInterface {
    /// Checks that the interface can be created, and describes its creation.
    pub(crate) fn change(&self) -> Result<Change, Error> {
        if self.ns.id() == NetNs::current()?.id() {
            return Err(Error::HostNamespace(self.ns.to_string()));
        }
        let state = weave_host::interface_state(&self.ns, &self.interface, &self.bridge)?;
        if state.as_ref().is_some_and(|state| state.port.is_none()) {
            return Err(Error::Reference(format!(
                "the container has an interface {} already, which is not connected to bridge {}",
                self.interface, self.bridge
            )));
        }
        let mut naming = self.naming.clone();
        if weave_host::is_id_taken(&naming, &self.ns)? {
            naming = format!("M{:06x}", self.ns.id().inode() & 0xff_ffff);
        }
        Ok(Change::AddInterface {
            namespace: Namespace::of(&self.ns)?,
            interface: self.interface.clone(),
            naming,
            bridge: self.bridge.clone(),
            existed: state.is_some(),
        })
    }

    /// Returns what was created, and warnings.
    pub(crate) fn create(
        &self,
        naming: &str,
        cidrs: &[Cidr],
        routes: &[LinkRoute],
    ) -> Result<(CreatedInterface, Vec<String>), Error> {
        let attached = weave_host::attach(&AttachRequest {
            ifname: &self.interface,
            bridge: &self.bridge,
            mtu: self.mtu,
            mac: self.mac,
            multicast_route: false,
            hairpin: self.hairpin,
            routes,
            ..AttachRequest::new(&self.ns, naming, cidrs)
        })?;
        let created = self.describe();
        if created.is_err()
            && attached.created
            && let Err(e) = remove(&self.ns, &self.interface, &self.bridge)
        {
            tracing::warn!("the interface {} of {} is left: {e}", self.interface, self.ns);
        }
        Ok((created?, attached.warnings))
    }

    fn describe(&self) -> Result<CreatedInterface, Error> {
        let gone = || Error::Died(self.ns.to_string());
        let state = weave_host::interface_state(&self.ns, &self.interface, &self.bridge)?.ok_or_else(gone)?;
        Ok(CreatedInterface { link: state.link, port: state.port.ok_or_else(gone)? })
    }
}

/// Removes an interface with all its addresses, if the container has it. Returns warnings.
pub(crate) fn remove(ns: &NetNs, interface: &str, bridge: &str) -> Result<Vec<String>, Error> {
    let Some(state) = weave_host::interface_state(ns, interface, bridge)? else {
        return Ok(vec![format!("error removing interface {interface:?}: Link not found")]);
    };
    if state.port.is_none() {
        return Ok(vec![format!("interface {interface:?} is left, it is not connected to bridge {bridge}")]);
    }
    let request = DetachRequest { ifname: interface, ..DetachRequest::new(ns, &state.addresses) };
    Ok(weave_host::detach(&request)?.warnings)
}
