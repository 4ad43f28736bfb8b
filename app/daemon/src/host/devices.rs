//! Bridge and uplink of the peer.

use weave_host::{BridgeConfig, DeviceNames, Error, IngressDrop, Mtu, Netlink};
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

/// Creates bridge and uplink if they are missing, and returns the MTU of both. If the uplink fails, a bridge that was created here
/// is removed.
pub(crate) fn ensure(names: &DeviceNames, wanted: &BridgeConfig) -> Result<u32, Error> {
    let bridge = weave_host::ensure_bridge(wanted)?;
    bridge.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    match weave_host::ensure_uplink(names) {
        Ok(uplink) => {
            if let IngressDrop::Missing(why) = &uplink.ingress_drop {
                tracing::warn!("this host's own network stack sees broadcasts of containers twice: {why}");
            }
            tracing::info!("bridge {} with MTU {}, uplink {}", names.bridge, bridge.mtu, names.device);
            Ok(uplink.mtu)
        }
        Err(cause) if bridge.created => match remove(&names.bridge) {
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
