//! The daemon's devices on the host: made last, when everything else is known to work, and taken back if the start
//! fails after all.

use weave_host::{BridgeConfig, Error, Mtu, Names, Netlink};
use weave_types::{MacAddr, PeerName};

use crate::config::Config;

/// Names of the devices for this configuration.
pub(crate) fn names(config: &Config) -> Names {
    Names { bridge: config.bridge.clone(), ..Names::default() }
}

/// What was made.
#[derive(Debug)]
pub(crate) struct HostWork {
    /// Devices that were not there before, in the order of their making.
    created: Vec<String>,
}

impl HostWork {
    /// Bridge and uplink. What is there is adopted; what was made is taken back if a step fails.
    pub(crate) fn ensure(config: &Config, name: PeerName) -> Result<HostWork, Error> {
        let names = names(config);
        let mtu = match config.mtu {
            Some(mtu) => Mtu::Exactly(mtu),
            None => Mtu::Default(config.new_mtu),
        };
        let mut work = HostWork { created: Vec::new() };
        let bridge = BridgeConfig { name: names.bridge.clone(), mac: MacAddr(name.to_bytes()), mtu };
        let bridge = weave_host::ensure_bridge(&bridge)?;
        if bridge.created {
            work.created.push(names.bridge.clone());
        }
        bridge.warnings.iter().for_each(|w| tracing::warn!("{w}"));
        match weave_host::ensure_uplink(&names) {
            Ok(uplink) => {
                if uplink.created {
                    work.created.push(names.port.clone());
                }
                tracing::info!("bridge {} with MTU {}, uplink {}", names.bridge, bridge.mtu, names.device);
                Ok(work)
            }
            Err(cause) => {
                work.undo();
                Err(cause)
            }
        }
    }

    /// Removes what was made.
    pub(crate) fn undo(self) {
        for name in self.created.iter().rev() {
            let removed = Netlink::open().and_then(|mut netlink| match netlink.link(name)? {
                Some(link) => netlink.delete_link(&link),
                None => Ok(()),
            });
            if let Err(e) = removed {
                tracing::warn!("{name} stays behind, 'weave reset' removes it: {e}");
            }
        }
    }
}
