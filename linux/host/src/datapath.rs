//! Open vSwitch datapaths that 2.8.1 left. They are not deleted like other links but through their own generic netlink
//! family. While one exists, the kernel holds UDP port 6784 for its VXLAN port.

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use crate::netlink::{Netlink, Request, find, u16_at};
use crate::{Error, Link};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const OVS_DATAPATH_FAMILY: &str = "ovs_datapath";
const OVS_DATAPATH_VERSION: u8 = 2;
const OVS_DP_CMD_DEL: u8 = 2;
const GENL_HEADER: usize = 4;

/// Deletes the datapath whose local port is `link`, with all its ports (devices that were plugged in stay).
pub(crate) fn delete(link: &Link) -> Result<(), Error> {
    let step = format!("deleting Open vSwitch datapath {}", link.name);
    let mut netlink = Netlink::open_protocol(NETLINK_GENERIC)?;
    let Some(family) = family(&mut netlink, OVS_DATAPATH_FAMILY)? else {
        return Err(Error::MissingFeature { step, feature: "Open vSwitch (module openvswitch)" });
    };
    netlink.execute(delete_request(family, link.index), step)
}

fn delete_request(family: u16, index: u32) -> Request {
    let mut header = [0; GENL_HEADER + 4];
    header[..2].copy_from_slice(&[OVS_DP_CMD_DEL, OVS_DATAPATH_VERSION]);
    // struct ovs_header: the local port tells which datapath.
    header[GENL_HEADER..].copy_from_slice(&index.to_ne_bytes());
    Request::new(family, 0, &header)
}

/// The number by which the kernel knows a generic netlink family; none if it does not know it.
fn family(netlink: &mut Netlink, name: &str) -> Result<Option<u16>, Error> {
    let mut request = Request::new(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    request.string(CTRL_ATTR_FAMILY_NAME, name);
    match netlink.ask(request, format_args!("looking up netlink family {name}")) {
        Ok(replies) => {
            let id = |body: &[u8]| u16_at(find(body.get(GENL_HEADER..)?, CTRL_ATTR_FAMILY_ID)?, 0);
            Ok(replies.iter().find_map(|r| id(&r.body)))
        }
        Err(e) if e.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families() {
        let mut netlink = Netlink::open_protocol(NETLINK_GENERIC).unwrap();
        assert_eq!(family(&mut netlink, "nlctrl"), Ok(Some(GENL_ID_CTRL)));
        assert_eq!(family(&mut netlink, "no_such_family"), Ok(None));
    }
}
