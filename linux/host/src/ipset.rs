//! Sets of networks in the kernel (`ipset`, type `hash:net`), which packet filter rules refer to by name. Spoken to directly: the
//! `ipset` program is installed on few hosts.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use weave_types::Cidr;

use crate::Error;
use crate::netlink::{Netlink, Request, find};

/// `NFNL_SUBSYS_IPSET << 8`.
const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const SWAP: u16 = SUBSYSTEM | 6;
const ADD: u16 = SUBSYSTEM | 9;
const HEADER: u16 = SUBSYSTEM | 12;
const TYPE: u16 = SUBSYSTEM | 13;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_NAME: u16 = 2;
const ATTR_TYPE: u16 = 3;
/// Of a swap: the other set.
const ATTR_NAME2: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_DATA: u16 = 7;
const DATA_IP: u16 = 1;
const IP_V4: u16 = 1;
const DATA_PREFIX: u16 = 3;
const DATA_FLAGS: u16 = 8;
/// Elements may carry a comment, as those of 2.8.1 do.
const FLAG_COMMENT: u32 = 1 << 4;
/// The attribute is in network byte order.
const NET_BYTEORDER: u16 = 0x4000;
const PROTOCOL: u8 = 6;
const KIND: &str = "hash:net";

/// Makes a set contain exactly these networks, at once; makes the set if there is none.
///
/// # Errors
/// The kernel has no such sets, or refuses.
pub(crate) fn replace(name: &str, networks: &[Cidr]) -> Result<(), Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER)?;
    let revision = revision(&mut netlink)?;
    create(&mut netlink, name, revision)?;
    // Filled beside it and exchanged, so that no packet meets half of it.
    let beside = format!("{name}.new");
    destroy_with(&mut netlink, &beside)?;
    create(&mut netlink, &beside, revision)?;
    let fill = |netlink: &mut Netlink| {
        for network in networks {
            add(netlink, &beside, *network)?;
        }
        let mut swap = request(SWAP, 0, name);
        swap.string(ATTR_NAME2, &beside);
        netlink.execute(swap, format_args!("exchanging set {name}"))
    };
    let filled = fill(&mut netlink);
    let tidied = destroy_with(&mut netlink, &beside);
    filled.and_then(|()| tidied.map(drop))
}

/// Removes a set; `false` if there was none.
///
/// # Errors
/// A rule refers to it, or the kernel refuses.
pub(crate) fn destroy(name: &str) -> Result<bool, Error> {
    destroy_with(&mut Netlink::open_protocol(NETLINK_NETFILTER)?, name)
}

/// Whether there is such a set. A kernel without sets has none.
pub(crate) fn exists(name: &str) -> bool {
    let Ok(mut netlink) = Netlink::open_protocol(NETLINK_NETFILTER) else { return false };
    netlink.ask(request(HEADER, 0, name), "looking for a set").is_ok()
}

fn destroy_with(netlink: &mut Netlink, name: &str) -> Result<bool, Error> {
    // Without this flag newer kernels find nothing wrong with a set that is not there.
    match netlink.execute(request(DESTROY, NLM_F_EXCL, name), format_args!("removing set {name}")) {
        Ok(()) => Ok(true),
        // No such set, no sets at all.
        Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The newest form of the type that the kernel knows.
fn revision(netlink: &mut Netlink) -> Result<u8, Error> {
    let step = "looking for sets of networks";
    let mut ask = bare(TYPE, 0);
    ask.string(ATTR_TYPE, KIND).attribute(ATTR_FAMILY, &[libc::AF_INET as u8]);
    let missing =
        || Error::MissingFeature { step: step.into(), feature: "ipset hash:net (CONFIG_IP_SET_HASH_NET)" };
    let replies = netlink.ask(ask, step).map_err(|e| match e {
        Error::Refused { .. } => missing(),
        other => other,
    })?;
    let revision = |body: &[u8]| find(body.get(4..)?, ATTR_REVISION)?.first().copied();
    replies.iter().find_map(|r| revision(&r.body)).ok_or_else(missing)
}

fn create(netlink: &mut Netlink, name: &str, revision: u8) -> Result<(), Error> {
    let mut create = request(CREATE, NLM_F_CREATE | NLM_F_EXCL, name);
    create
        .string(ATTR_TYPE, KIND)
        .attribute(ATTR_REVISION, &[revision])
        .attribute(ATTR_FAMILY, &[libc::AF_INET as u8])
        .nested(ATTR_DATA, |data| {
            data.attribute(DATA_FLAGS | NET_BYTEORDER, &FLAG_COMMENT.to_be_bytes());
        });
    match netlink.execute(create, format_args!("making set {name}")) {
        Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn add(netlink: &mut Netlink, name: &str, network: Cidr) -> Result<(), Error> {
    let IpAddr::V4(ip) = network.network().addr() else { return Ok(()) };
    let mut add = request(ADD, 0, name);
    add.nested(ATTR_DATA, |data| {
        data.nested(DATA_IP, |addr| {
            addr.attribute(IP_V4 | NET_BYTEORDER, &ip.octets());
        })
        .attribute(DATA_PREFIX, &[network.prefix()]);
    });
    netlink.execute(add, format_args!("adding {network} to set {name}"))
}

fn bare(kind: u16, flags: u16) -> Request {
    let mut request = Request::new(kind, flags, &[libc::AF_INET as u8, 0, 0, 0]);
    request.attribute(ATTR_PROTOCOL, &[PROTOCOL]);
    request
}

fn request(kind: u16, flags: u16, name: &str) -> Request {
    let mut request = bare(kind, flags);
    request.string(ATTR_NAME, name);
    request
}
