//! Frames that arrive on `vethwe-datapath` are for the switch. It receives them by packet sockets; after that a filter at the ingress of
//! the link drops them, so that the host's network stack does not process them as well.
//!
//! Before that filter comes the program of the kernel path, if there is one.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use crate::bpf;
use crate::netlink::{Netlink, Reply, Request, find, text, u32_at};
use crate::{Error, Link};

const CLSACT_HANDLE: u32 = 0xffff_0000;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_INGRESS_HOOK: u32 = 0xffff_fff2;
const ETH_P_ALL: u16 = 0x0003;
/// Low, so that a program with another purpose (the kernel fast path) comes first.
const PRIORITY: u16 = 65000;
/// Of the program of the kernel path.
const PROGRAM_PRIORITY: u16 = 1000;
const HANDLE: u32 = 1;

const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_GACT_PARMS: u16 = 2;
const TC_ACT_SHOT: u32 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
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

/// A program at the ingress of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressProgram {
    /// Number of the program in the kernel.
    pub id: u32,
    /// The name that it was attached with.
    pub name: String,
}

impl Netlink {
    /// Attaches an eBPF program to the ingress of `link`, where it stays without this process. One that is there already is replaced in
    /// one step, so that each frame passes one of the two.
    pub fn set_ingress_program(
        &mut self,
        link: &Link,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), Error> {
        self.add_clsact(link)?;
        let mut request = filter(link, "bpf", PROGRAM_PRIORITY, NLM_F_CREATE);
        request.nested(libc::TCA_OPTIONS, |r| {
            r.number(TCA_BPF_FD, program.as_raw_fd() as u32)
                .string(TCA_BPF_NAME, name)
                .number(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
        let step = format!("attaching a program to {}", link.name);
        match self.execute(request, &step) {
            Err(e) if e.errno() == Some(Errno::ENOENT) => {
                Err(Error::MissingFeature { step, feature: "classifier bpf (CONFIG_NET_CLS_BPF)" })
            }
            other => other,
        }
    }

    /// The program that [`set_ingress_program`](Netlink::set_ingress_program) has attached to `link`.
    pub fn ingress_program(&mut self, link: &Link) -> Result<Option<IngressProgram>, Error> {
        Ok(self.ingress_filters(link)?.iter().find_map(|reply| {
            let options = find(ours(reply, PROGRAM_PRIORITY)?, libc::TCA_OPTIONS)?;
            let name = find(options, TCA_BPF_NAME).map(text).unwrap_or_default();
            Some(IngressProgram { id: u32_at(find(options, TCA_BPF_ID)?, 0)?, name })
        }))
    }

    /// Removes the program from the ingress of `link`, if it has one.
    pub fn remove_ingress_program(&mut self, link: &Link) -> Result<(), Error> {
        let info = u32::from(PROGRAM_PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
        let header = header(link, HANDLE, TC_H_INGRESS_HOOK, info);
        let mut request = Request::new(libc::RTM_DELTFILTER, 0, &header);
        request.string(libc::TCA_KIND, "bpf");
        match self.execute(request, format_args!("removing the program from {}", link.name)) {
            Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)) => Ok(()),
            other => other,
        }
    }

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
        let replies = self.ingress_filters(link)?;
        Ok(replies.iter().find_map(|reply| {
            let kind = text(find(ours(reply, PRIORITY)?, libc::TCA_KIND)?);
            match kind.as_str() {
                "matchall" => Some(IngressDrop::MatchAll),
                "bpf" => Some(IngressDrop::Bpf),
                _ => None,
            }
        }))
    }

    /// The ingress filters of `link`; none if the kernel has no filters there.
    fn ingress_filters(&mut self, link: &Link) -> Result<Vec<Reply>, Error> {
        let request = Request::new(libc::RTM_GETTFILTER, 0, &header(link, 0, TC_H_INGRESS_HOOK, 0));
        let step = format!("listing the ingress filters of {}", link.name);
        match self.dump(request, &step) {
            Err(e) if matches!(e.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOENT)) => {
                Ok(Vec::new())
            }
            other => other,
        }
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
        let mut request = filter(link, "matchall", PRIORITY, NLM_F_CREATE | NLM_F_EXCL);
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
        let mut request = filter(link, "bpf", PRIORITY, NLM_F_CREATE | NLM_F_EXCL);
        request.nested(libc::TCA_OPTIONS, |r| {
            r.number(TCA_BPF_FD, program.as_raw_fd() as u32)
                .string(TCA_BPF_NAME, "weave-drop")
                .number(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        });
        self.execute(request, format_args!("adding filter bpf to {}", link.name))
    }
}

/// The attributes of a listed filter if it has this priority and our handle.
fn ours(reply: &Reply, priority: u16) -> Option<&[u8]> {
    let ours =
        u32_at(&reply.body, 8) == Some(HANDLE) && u32_at(&reply.body, 16)? >> 16 == u32::from(priority);
    if ours { reply.body.get(20..) } else { None }
}

fn filter(link: &Link, kind: &str, priority: u16, flags: u16) -> Request {
    let info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
    let header = header(link, HANDLE, TC_H_INGRESS_HOOK, info);
    let mut request = Request::new(libc::RTM_NEWTFILTER, flags, &header);
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
