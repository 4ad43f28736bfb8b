//! The generation of nftables: the kernel's count of changes, which shows cheaply that nothing has changed.

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::Error;
use crate::netlink::{Netlink, Request, find};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = 10 << 8 | 16;
const NFTA_GEN_ID: u16 = 1;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// Reads the counter of the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Generation(Netlink);

impl Generation {
    pub(crate) fn open() -> Result<Generation, Error> {
        Netlink::open_protocol(NETLINK_NETFILTER).map(Generation)
    }

    /// The number of changes so far, modulo 2^32. Fails if the kernel has no nftables.
    pub(crate) fn read(&mut self) -> Result<u32, Error> {
        let step = "reading the generation of nftables";
        let replies = self.0.query(Request::new(GET_GENERATION, 0, &[0; HEADER]), step)?;
        let id = |body: &[u8]| <[u8; 4]>::try_from(find(body.get(HEADER..)?, NFTA_GEN_ID)?).ok();
        let found = replies.iter().find_map(|r| id(&r.body)).map(u32::from_be_bytes);
        found.ok_or_else(|| Error::Unreadable {
            step: step.into(),
            detail: "no generation in the answer".into(),
        })
    }
}
