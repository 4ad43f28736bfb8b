//! Bridge and uplink of the peer.

use weave_host::{BridgeConfig, BridgeInfo, DeviceNames, Error, IngressDrop, Mtu, Netlink, UplinkInfo};
use weave_types::{MacAddr, PeerName};

use crate::config::Config;

pub(crate) fn device_names(config: &Config) -> DeviceNames {
    let names = config.instance.as_deref().map_or_else(DeviceNames::default, DeviceNames::instance);
    DeviceNames { bridge: config.bridge.clone(), ..names }
}

pub(crate) fn bridge(config: &Config, name: PeerName) -> BridgeConfig {
    let mtu = match config.mtu {
        Some(mtu) => Mtu::Exactly(mtu),
        None => Mtu::Default(config.new_mtu),
    };
    BridgeConfig { name: config.bridge.clone(), mac: MacAddr(name.to_bytes()), mtu }
}

/// Result of [`ensure`].
#[derive(Debug)]
pub(crate) struct Ensured {
    /// The MTU of bridge and uplink.
    pub(crate) mtu: u32,
    /// Whether bridge or uplink were missing.
    pub(crate) created: bool,
    /// What existing devices had otherwise and has been changed.
    pub(crate) changes: Vec<String>,
    /// What this host lacks, and what that means.
    pub(crate) problems: Vec<String>,
}

/// Creates bridge and uplink if they are missing, and gives them the settings that they need. If the uplink fails, a bridge that was
/// created here is removed.
pub(crate) fn ensure(names: &DeviceNames, wanted: &BridgeConfig) -> Result<Ensured, Error> {
    let BridgeInfo { created, warnings: mut problems, mut changes, .. } = weave_host::ensure_bridge(wanted)?;
    match weave_host::ensure_uplink(names) {
        Ok(UplinkInfo { mtu, created: new_uplink, ingress_drop, changes: more, .. }) => {
            if let IngressDrop::Missing(why) = &ingress_drop {
                problems.push(format!(
                    "this host's own network stack sees broadcasts of containers twice: {why}"
                ));
            }
            changes.extend(more);
            Ok(Ensured { mtu, created: created || new_uplink, changes, problems })
        }
        Err(cause) if created => match remove(&names.bridge) {
            Ok(()) => Err(cause),
            Err(left) => Err(Error::Undo { cause: Box::new(cause), left: vec![left] }),
        },
        Err(cause) => Err(cause),
    }
}

fn remove(name: &str) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    match netlink.link(name)? {
        Some(link) => netlink.delete_link(&link),
        None => Ok(()),
    }
}
