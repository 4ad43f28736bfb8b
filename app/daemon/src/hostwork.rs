//! The daemon's devices on the host: made last, when everything else is known to work.

use weave_host::{BridgeConfig, Error, Mtu, Names, Netlink};
use weave_types::{MacAddr, PeerName};

use crate::config::Config;

/// Names of the devices for this configuration.
pub(crate) fn names(config: &Config) -> Names {
    Names { bridge: config.bridge.clone(), ..Names::default() }
}

/// Bridge and uplink; gives the MTU that both have. What is there is adopted; if the second fails, the first is taken back if it was made here.
pub(crate) fn ensure(config: &Config, name: PeerName) -> Result<u32, Error> {
    let names = names(config);
    let mtu = match config.mtu {
        Some(mtu) => Mtu::Exactly(mtu),
        None => Mtu::Default(config.new_mtu),
    };
    let wanted = BridgeConfig { name: names.bridge.clone(), mac: MacAddr(name.to_bytes()), mtu };
    let bridge = weave_host::ensure_bridge(&wanted)?;
    bridge.warnings.iter().for_each(|w| tracing::warn!("{w}"));
    match weave_host::ensure_uplink(&names) {
        Ok(uplink) => {
            tracing::info!("bridge {} with MTU {}, uplink {}", names.bridge, bridge.mtu, names.device);
            if let Err(e) = weave_host::ensure_forwarding(&names.bridge) {
                tracing::warn!(
                    "containers of this host may not reach each other, the firewall is as it was: {e}"
                );
            }
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
