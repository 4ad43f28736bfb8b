//! Frames that arrive on `vethwe-datapath` are for the switch. It receives them by packet sockets; after that a filter at the ingress of
//! the link drops them, so that the host's network stack does not process them as well.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use crate::bpf;
use crate::netlink::{Netlink, Request, find, text, u32_at};
use crate::{Error, Link};

const CLSACT_HANDLE: u32 = 0xffff_0000;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_INGRESS_HOOK: u32 = 0xffff_fff2;
const ETH_P_ALL: u16 = 0x0003;
/// Low, so that a program with another purpose (the kernel fast path) comes first.
const PRIORITY: u16 = 65000;
const HANDLE: u32 = 1;

const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_GACT_PARMS: u16 = 2;
const TC_ACT_SHOT: u32 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// How the host's network stack is kept from processing the frames of the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IngressDrop {
    /// Classifier `matchall` with action `gact` drops them.
    MatchAll,
    /// Classifier `bpf` drops them, with a program of two instructions.
    Bpf,
    /// They are not dropped, because the kernel has neither classifier; the text says what is missing. The host's network stack receives
    /// broadcasts twice. It does not answer ARP requests on the link (`arp_ignore`), which has no address.
    Missing(String),
}

impl Netlink {
    /// Drops frames that arrive on `link`, after packet sockets have received them.
    pub fn ensure_ingress_drop(&mut self, link: &Link) -> Result<IngressDrop, Error> {
        if let Some(present) = self.ingress_drop(link)? {
            return Ok(present);
        }
        match self.add_clsact(link) {
            Ok(()) => {}
            Err(e @ Error::MissingFeature { .. }) => return Ok(IngressDrop::Missing(e.to_string())),
            Err(e) => return Err(e),
        }
        if self.add_matchall_drop(link).is_ok() {
            return Ok(IngressDrop::MatchAll);
        }
        match self.add_bpf_drop(link) {
            Ok(()) => Ok(IngressDrop::Bpf),
            // This kernel did not list the filter above.
            Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(IngressDrop::Bpf),
            // In sandboxes the operation is not permitted.
            Err(e) => Ok(IngressDrop::Missing(format!(
                "{e}; to drop frames at ingress this kernel needs CONFIG_NET_CLS_BPF with CONFIG_BPF_SYSCALL, or \
                 CONFIG_NET_CLS_MATCHALL with CONFIG_NET_ACT_GACT"
            ))),
        }
    }

    /// The drop filter of `link`, if it has one.
    pub fn ingress_drop(&mut self, link: &Link) -> Result<Option<IngressDrop>, Error> {
        let request = Request::new(libc::RTM_GETTFILTER, 0, &header(link, 0, TC_H_INGRESS_HOOK, 0));
        let step = format!("listing the ingress filters of {}", link.name);
        let replies = match self.dump(request, &step) {
            Err(e) if matches!(e.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT)) => {
                return Ok(None);
            }
            other => other?,
        };
        Ok(replies.iter().find_map(|r| {
            let ours =
                u32_at(&r.body, 8) == Some(HANDLE) && u32_at(&r.body, 16)? >> 16 == u32::from(PRIORITY);
            let kind = text(find(r.body.get(20..)?, libc::TCA_KIND)?);
            match kind.as_str() {
                "matchall" if ours => Some(IngressDrop::MatchAll),
                "bpf" if ours => Some(IngressDrop::Bpf),
                _ => None,
            }
        }))
    }

    /// The queueing discipline that holds ingress filters.
    fn add_clsact(&mut self, link: &Link) -> Result<(), Error> {
        let header = header(link, CLSACT_HANDLE, TC_H_CLSACT, 0);
        let mut request = Request::new(libc::RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &header);
        request.string(libc::TCA_KIND, "clsact");
        let step = format!("adding qdisc clsact to {}", link.name);
        match self.execute(request, &step) {
            Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(()),
            Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EOPNOTSUPP)) => {
                Err(Error::MissingFeature { step, feature: "qdisc clsact (CONFIG_NET_SCH_INGRESS)" })
            }
            other => other,
        }
    }

    fn add_matchall_drop(&mut self, link: &Link) -> Result<(), Error> {
        let mut request = filter(link, "matchall");
        request.nested(libc::TCA_OPTIONS, |r| {
            r.nested(TCA_MATCHALL_ACT, |r| {
                // Number of the action, the only one.
                r.nested(1, |r| {
                    r.string(TCA_ACT_KIND, "gact").nested(TCA_ACT_OPTIONS, |r| {
                        // struct tc_gact: index, capabilities, action, two counts.
                        let mut parameters = [0; 20];
                        parameters[8..12].copy_from_slice(&TC_ACT_SHOT.to_ne_bytes());
                        r.attribute(TCA_GACT_PARMS, &parameters);
                    });
                });
            });
        });
        self.execute(request, format_args!("adding filter matchall to {}", link.name))
    }

    fn add_bpf_drop(&mut self, link: &Link) -> Result<(), Error> {
        let program = bpf::load_drop()?;
        let mut request = filter(link, "bpf");
        request.nested(libc::TCA_OPTIONS, |r| {
            r.number(TCA_BPF_FD, program.as_raw_fd() as u32)
                .string(TCA_BPF_NAME, "weave-drop")
                .number(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
        self.execute(request, format_args!("adding filter bpf to {}", link.name))
    }
}

fn filter(link: &Link, kind: &str) -> Request {
    let info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
    let header = header(link, HANDLE, TC_H_INGRESS_HOOK, info);
    let mut request = Request::new(libc::RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &header);
    request.string(libc::TCA_KIND, kind);
    request
}

/// `struct tcmsg`.
fn header(link: &Link, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut h = [0; 20];
    for (slot, value) in h.chunks_exact_mut(4).skip(1).zip([link.index, handle, parent, info]) {
        slot.copy_from_slice(&value.to_ne_bytes());
    }
    h
}
