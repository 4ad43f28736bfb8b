//! Another bridge, Docker's most often, joined to the weave bridge by a pair of links (`weave attach-bridge`):
//!
//! ```text
//! bridge weave -- vethwebl<other> == vethwebg<other> -- bridge <other>
//! -t nat -I POSTROUTING -o weave -j ACCEPT         what is routed in keeps its source address; `reset` removes it
//! ```

use crate::error::ignore_missing_device;
use crate::firewall::{self, FirewallError};
use crate::{Error, Link, Netlink, sysctl};

/// Room for the other bridge's name in those of the pair.
const NAME_LENGTH: usize = 7;

/// Sees to it that `other` is joined to `bridge`; `true` if it was not before. A pair made here goes again if a later
/// step fails.
///
/// # Errors
/// One of the bridges is not there or is none, the kernel refuses, or the firewall does.
pub fn join_bridges(bridge: &str, other: &str) -> Result<bool, Error> {
    if bridge == other {
        return Err(Error::Argument(format!("bridge {bridge} cannot be joined to itself")));
    }
    let mut netlink = Netlink::open()?;
    let Some(weave) = netlink.link(bridge)?.filter(|l| l.is("bridge")) else {
        return Err(Error::State(
            "Weave bridge not found. Please run 'weave launch' and try again".to_owned(),
        ));
    };
    let Some(second) = netlink.link(other)?.filter(|l| l.is("bridge")) else {
        return Err(Error::State(format!("{other:?} is not a bridge of this host")));
    };
    let [local, guest] = pair_names(other);
    if let Some(port) = netlink.link(&local)?.filter(|l| l.is("veth")) {
        let far = netlink.link(&guest)?;
        let joined = port.master == Some(weave.index)
            && far.as_ref().is_some_and(|f| f.master == Some(second.index) && port.peer == Some(f.index));
        if joined {
            let far = far.as_ref();
            [Some(&port), far].into_iter().flatten().try_for_each(|l| netlink.set_up(l, true))?;
            firewall::keep_source_addresses(bridge).map_err(no_rule)?;
            return Ok(false);
        }
        // Half of a pair, or between other bridges: of no use to anybody.
        ignore_missing_device(netlink.delete_link(&port))?;
    }
    let (port, far) = netlink.create_veth(&local, &guest, Some(weave.mtu))?;
    plug(&mut netlink, [(&port, &weave), (&far, &second)])
        .and_then(|()| firewall::keep_source_addresses(bridge).map_err(no_rule))
        .map_err(|cause| match ignore_missing_device(netlink.delete_link(&port)) {
            Ok(()) => cause,
            Err(left) => Error::Undo { cause: Box::new(cause), left: vec![left] },
        })?;
    Ok(true)
}

fn pair_names(other: &str) -> [String; 2] {
    let other: String = other.chars().take(NAME_LENGTH).collect();
    [format!("vethwebl{other}"), format!("vethwebg{other}")]
}

fn plug(netlink: &mut Netlink, ends: [(&Link, &Link); 2]) -> Result<(), Error> {
    for (end, bridge) in ends {
        sysctl::ignore_router_advertisements(&end.name)?;
        netlink.set_master(end, Some(bridge))?;
        netlink.set_up(end, true)?;
    }
    Ok(())
}

fn no_rule(e: FirewallError) -> Error {
    Error::State(format!("the rule that keeps source addresses cannot be made: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit() {
        assert_eq!(pair_names("docker0"), ["vethwebldocker0", "vethwebgdocker0"]);
        assert!(pair_names("br-0123456789").iter().all(|n| n.len() == 15));
    }
}
