//! Open vSwitch datapaths, as 2.8.1 uses them: created and deleted by a generic netlink family. While one with a VXLAN port exists, the
//! kernel listens on UDP port 6784.

use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

use crate::links::check_name;
use crate::netlink::{Netlink, Request, find, u16_at};
use crate::{Error, Link};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const OVS_DATAPATH_FAMILY: &str = "ovs_datapath";
const OVS_DATAPATH_VERSION: u8 = 2;
const OVS_DP_CMD_NEW: u8 = 1;
const OVS_DP_CMD_DEL: u8 = 2;
const OVS_DP_ATTR_NAME: u16 = 1;
const OVS_DP_ATTR_UPCALL_PID: u16 = 2;
const GENL_HEADER: usize = 4;

/// Deletes the datapath whose local port is `link`. The devices that were its other ports stay.
pub(crate) fn delete(link: &Link) -> Result<(), Error> {
    let step = format!("deleting Open vSwitch datapath {}", link.name);
    execute(&step, |family| request(family, OVS_DP_CMD_DEL, link.index))
}

/// Creates a datapath without ports, except for its local port, which is a link of that name.
pub(crate) fn create(name: &str) -> Result<(), Error> {
    check_name(name)?;
    execute(&format!("creating Open vSwitch datapath {name}"), |family| create_request(family, name))
}

/// Whether the kernel has Open vSwitch. The request loads its module.
pub(crate) fn supported() -> Result<bool, Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_GENERIC)?;
    Ok(family(&mut netlink, OVS_DATAPATH_FAMILY)?.is_some())
}

fn execute(step: &str, request: impl FnOnce(u16) -> Request) -> Result<(), Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_GENERIC)?;
    match family(&mut netlink, OVS_DATAPATH_FAMILY)? {
        Some(family) => netlink.execute(request(family), step),
        None => {
            Err(Error::MissingFeature { step: step.into(), feature: "Open vSwitch (module openvswitch)" })
        }
    }
}

fn create_request(family: u16, name: &str) -> Request {
    let mut request = request(family, OVS_DP_CMD_NEW, 0);
    // Frames without a flow are dropped until 2.8.1 sets the receiver of upcalls.
    request.string(OVS_DP_ATTR_NAME, name).number(OVS_DP_ATTR_UPCALL_PID, 0);
    request
}

fn request(family: u16, command: u8, index: u32) -> Request {
    let mut header = [0; GENL_HEADER + 4];
    header[..2].copy_from_slice(&[command, OVS_DATAPATH_VERSION]);
    // struct ovs_header: the local port identifies the datapath.
    header[GENL_HEADER..].copy_from_slice(&index.to_ne_bytes());
    Request::new(family, 0, &header)
}

/// The id of a generic netlink family; `None` if the kernel does not have it.
fn family(netlink: &mut Netlink, name: &str) -> Result<Option<u16>, Error> {
    let mut request = Request::new(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    request.string(CTRL_ATTR_FAMILY_NAME, name);
    match netlink.query(request, format_args!("looking up netlink family {name}")) {
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
    fn family_id_is_read_from_the_reply() {
        let mut netlink = Netlink::open_protocol(NETLINK_GENERIC).unwrap();
        assert_eq!(family(&mut netlink, "nlctrl"), Ok(Some(GENL_ID_CTRL)));
        assert_eq!(family(&mut netlink, "no_such_family"), Ok(None));
    }

    #[test]
    fn request_has_the_netlink_layout() {
        // struct nlmsghdr, struct genlmsghdr, struct ovs_header, attributes.
        let mut create = create_request(0x1c, "datapath");
        let bytes = create.encoded();
        assert_eq!(bytes[4..6], 0x1cu16.to_ne_bytes());
        assert_eq!(bytes[16..18], [1, 2], "command, version");
        assert_eq!(bytes[20..24], [0; 4], "no datapath yet");
        assert_eq!(find(&bytes[24..], OVS_DP_ATTR_NAME), Some(&b"datapath\0"[..]));
        assert_eq!(find(&bytes[24..], OVS_DP_ATTR_UPCALL_PID), Some(&[0; 4][..]));
        let mut delete = request(0x1c, OVS_DP_CMD_DEL, 7);
        assert_eq!(delete.encoded()[16..], [&[2, 2, 0, 0][..], &7u32.to_ne_bytes()].concat());
    }
}
