//! Where the frames of a trace pass on this host.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use weave_host::{BridgePorts, DeviceNames, Error, FrameSocket, Link, Netlink, SeenFrame, shortcut_ports};
use weave_overlay::forward::{Fate, FrameWatch};
use weave_trace::{Delivery, Direction, Flow, Port, Probe, Recognised, Report, Sighting, Sightings};

/// Which container an interface leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// What an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The router's end of the uplink.
    Uplink,
    /// The bridge's end of the uplink.
    UplinkPort,
    /// A VXLAN device.
    Overlay,
    /// The port of a container.
    Port(End),
    /// The bridge, whose addresses are those of the host.
    Host(End),
}

/// Looks for the frames of a trace.
pub(super) struct Watch {
    flow: Flow,
    names: DeviceNames,
    socket: FrameSocket,
    roles: BTreeMap<u32, Role>,
    user_space: Arc<UserSpace>,
}

impl Watch {
    /// Looks for the frames of a flow from now on.
    pub(super) fn start(names: &DeviceNames, flow: Flow) -> Result<Watch, Error> {
        let links = Netlink::open()?.links()?;
        let ports = BridgePorts::scan(&names.bridge)?;
        let mut roles = BTreeMap::new();
        for link in &links {
            let role = match &link.name {
                name if *name == names.device => Role::Uplink,
                name if *name == names.port => Role::UplinkPort,
                _ if link.vxlan_port.is_some() => Role::Overlay,
                _ => continue,
            };
            roles.insert(link.index, role);
        }
        for (end, address) in [(End::Source, flow.source.ip), (End::Destination, flow.destination.ip)] {
            match locate(&ports, names, address.into())? {
                Found::Nowhere => {}
                Found::Host(bridge) => {
                    roles.insert(bridge, Role::Host(end));
                }
                Found::Port(port) => {
                    roles.insert(port.index, Role::Port(end));
                }
            }
        }
        let socket = FrameSocket::open(0, [flow.source.ip, flow.destination.ip])?;
        let user_space = Arc::new(UserSpace { flow, seen: Mutex::default() });
        Ok(Watch { flow, names: names.clone(), socket, roles, user_space })
    }

    /// The part for the data path of user space.
    pub(super) fn in_user_space(&self) -> Arc<dyn FrameWatch> {
        self.user_space.clone()
    }

    /// What was seen.
    pub(super) fn report(&self) -> Report {
        let mut report = self.user_space.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // An error ends the list: there are no more frames then.
        while let Ok(Some(seen)) = self.socket.receive(Duration::ZERO) {
            self.note(&seen, &mut report.sightings);
        }
        // What cannot be told is left out.
        let _ = self.complete(&mut report);
        report
    }

    fn note(&self, seen: &SeenFrame, sightings: &mut Sightings) {
        let (Some(role), Some(Recognised::Probe(probe, direction))) =
            (self.roles.get(&seen.link), self.flow.recognise(&seen.bytes))
        else {
            return;
        };
        let (sender, receiver) = match direction {
            Direction::There => (End::Source, End::Destination),
            Direction::Back => (End::Destination, End::Source),
        };
        let sighting = match (role, seen.outgoing) {
            (Role::Uplink, false) => Sighting::FromBridge,
            (Role::UplinkPort, false) => Sighting::ToBridge,
            (Role::Overlay, true) => Sighting::ToOverlay,
            (Role::Overlay, false) => Sighting::FromOverlay,
            (Role::Port(end), false) | (Role::Host(end), true) if *end == sender => Sighting::FromContainer,
            (Role::Port(end), true) | (Role::Host(end), false) if *end == receiver => Sighting::ToContainer,
            _ => return,
        };
        sightings.note(probe, direction, sighting);
    }

    /// Adds where the containers are, and what may filter.
    fn complete(&self, report: &mut Report) -> Result<(), Error> {
        let ports = BridgePorts::scan(&self.names.bridge)?;
        let shortcuts = shortcut_ports(&self.names.bridge)?;
        let mut filter = shortcuts.why_none.clone();
        for (delivery, address) in
            report.delivery.iter_mut().zip([self.flow.destination.ip, self.flow.source.ip])
        {
            *delivery = match locate(&ports, &self.names, address.into())? {
                Found::Nowhere => Delivery::Nowhere,
                Found::Host(_) => Delivery::Host,
                Found::Port(port) => {
                    let bypasses = shortcuts.with.iter().any(|link| link.index == port.index);
                    if !bypasses && port.running && filter.is_none() {
                        filter = Some(format!("{} has a qdisc, or settings of its own", port.name));
                    }
                    let Link { name, up, running, .. } = *port;
                    Delivery::Port(Port { name, up, running, bypasses })
                }
            };
        }
        report.filter = filter.unwrap_or_default();
        Ok(())
    }
}

enum Found {
    Nowhere,
    /// The index of the bridge.
    Host(u32),
    Port(Box<Link>),
}

fn locate(ports: &BridgePorts, names: &DeviceNames, address: IpAddr) -> Result<Found, Error> {
    if let Some(port) = ports.with_address(address)? {
        return Ok(Found::Port(Box::new(port)));
    }
    let bridge = Netlink::open()?.link(&names.bridge)?;
    let exposed = weave_host::bridge_addresses(&names.bridge)?;
    Ok(match bridge.filter(|_| exposed.iter().any(|cidr| cidr.addr() == address)) {
        Some(bridge) => Found::Host(bridge.index),
        None => Found::Nowhere,
    })
}

/// Looks for the frames in the data path of user space.
#[derive(Debug)]
struct UserSpace {
    flow: Flow,
    seen: Mutex<Report>,
}

impl FrameWatch for UserSpace {
    fn wants(&self, frame: &[u8]) -> bool {
        matches!(self.flow.recognise(frame), Some(Recognised::Probe(..)))
    }

    fn note(&self, frame: &[u8], fate: &Fate) {
        let Some(Recognised::Probe(probe, direction)) = self.flow.recognise(frame) else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let from = if fate.from_neighbour { Sighting::FromOverlay } else { Sighting::FromBridge };
        let to = [(fate.sent, Sighting::ToOverlay), (fate.injected, Sighting::ToBridge)];
        seen.sightings.note(probe, direction, from);
        for (_, sighting) in to.into_iter().filter(|(is_so, _)| *is_so) {
            seen.sightings.note(probe, direction, sighting);
        }
        let is_known = |dropped: &[(Probe, Direction, String)]| {
            dropped.iter().any(|(p, d, _)| (*p, *d) == (probe, direction))
        };
        if let Some(why) = fate.dropped.as_ref().filter(|_| !is_known(&seen.dropped)) {
            seen.dropped.push((probe, direction, why.clone()));
        }
    }
}
