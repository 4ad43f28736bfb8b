//! A netlink socket with one request at a time, whose reply ends with an acknowledgement or with the end of a dump.
//!
//! Of a reply only the attributes that are used are parsed: kinds of links and attributes that are newer than this program do not make
//! a dump fail.

use std::fmt::Display;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::{Error, fault_injection};

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// Set in an acknowledgement that contains the header of the request only.
const NLM_F_CAPPED: u16 = 0x100;
/// Set in an acknowledgement that carries attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
/// Attempts to get a dump that the kernel does not mark as interrupted by changes.
const DUMP_ATTEMPTS: usize = 16;

/// A route-netlink socket. It works on the network namespace in which it was opened, whatever namespace its thread enters later.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
}

/// A message of a reply, without its netlink header.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// An error that the kernel returned.
struct KernelError {
    errno: Errno,
    detail: String,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Netlink, Error> {
        Netlink::open_protocol(NETLINK_ROUTE)
    }

    pub(crate) fn open_protocol(protocol: isize) -> Result<Netlink, Error> {
        let step = "opening a netlink socket";
        fault_injection::fail_point(&step).map_err(|e| Error::refused(step, e, ""))?;
        let io = |e: std::io::Error| Error::io(step, &e);
        let mut socket = Socket::new(protocol).map_err(|e| {
            let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
            Error::socket(step, errno, "netlink sockets of this kind (CONFIG_NET)")
        })?;
        let port = socket.bind_auto().map_err(io)?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(io)?;
        // Explanations in acknowledgements; kernels before 4.12 have none.
        let _ = socket.set_ext_ack(true);
        Ok(Netlink { socket, port, sequence: 0 })
    }

    /// Has the kernel refuse, or heed, all parts of a request for a list. It ignores some otherwise.
    ///
    /// # Errors
    /// The kernel is older than 4.20.
    pub(crate) fn check_requests(&mut self) -> std::io::Result<()> {
        self.socket.set_netlink_get_strict_chk(true)
    }

    /// Sends a request and waits for the acknowledgement.
    pub(crate) fn execute(&mut self, request: Request, step: impl Display) -> Result<(), Error> {
        self.exchange(request, NLM_F_ACK, &step).map(|_| ())
    }

    /// Sends a request for an object, and returns the messages before the acknowledgement.
    pub(crate) fn query(&mut self, request: Request, step: impl Display) -> Result<Vec<Reply>, Error> {
        self.exchange(request, NLM_F_ACK, &step)
    }

    /// Requests all objects of a kind, again if they change during the dump.
    pub(crate) fn dump(&mut self, request: Request, step: impl Display) -> Result<Vec<Reply>, Error> {
        self.exchange(request, NLM_F_DUMP, &step)
    }

    fn exchange(
        &mut self,
        mut request: Request,
        flags: u16,
        step: &dyn Display,
    ) -> Result<Vec<Reply>, Error> {
        fault_injection::fail_point(step).map_err(|e| Error::refused(step, e, ""))?;
        for _ in 0..DUMP_ATTEMPTS {
            self.sequence = self.sequence.wrapping_add(1);
            let bytes = request.finish(flags, self.sequence);
            send(&self.socket, bytes).map_err(|e| Error::io(step, &e))?;
            match self.receive(step)? {
                Ok((_, true)) => {}
                Ok((replies, false)) => return Ok(replies),
                Err(e) => return Err(Error::refused(step, e.errno, e.detail)),
            }
        }
        Err(Error::refused(step, Errno::EBUSY, "the list kept changing while it was read"))
    }

    /// The messages up to the acknowledgement or end of the dump, and whether the dump was interrupted.
    fn receive(&mut self, step: &dyn Display) -> Result<Result<(Vec<Reply>, bool), KernelError>, Error> {
        let bad = |detail: &str| Error::Unreadable { step: step.to_string(), detail: detail.into() };
        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, from) = match self.socket.recv_from_full() {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.map_err(|e| Error::io(step, &e))?,
            };
            if from.port_number() != 0 {
                continue;
            }
            let mut rest = &datagram[..];
            while rest.len() >= HEADER {
                let length = u32_at(rest, 0).unwrap_or(0) as usize;
                if length < HEADER || length > rest.len() {
                    return Err(bad("message length out of bounds"));
                }
                let message = &rest[..length];
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                let (kind, flags) = (u16_at(message, 4).unwrap_or(0), u16_at(message, 6).unwrap_or(0));
                // Belongs to an exchange that was abandoned.
                if u32_at(message, 8) != Some(self.sequence) || u32_at(message, 12) != Some(self.port) {
                    continue;
                }
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                let body = &message[HEADER..];
                match kind {
                    NLMSG_NOOP => {}
                    NLMSG_ERROR | NLMSG_DONE => {
                        // The end of a dump of old kernels may be empty.
                        let code = u32_at(body, 0).unwrap_or(0) as i32;
                        return Ok(match code {
                            0 => Ok((replies, interrupted)),
                            // An interrupted dump may end with an error as well.
                            code if interrupted && kind == NLMSG_DONE && code == -(Errno::EINTR as i32) => {
                                Ok((replies, true))
                            }
                            code => Err(KernelError {
                                errno: Errno::from_raw(code.saturating_neg()),
                                detail: extended_acknowledgement(kind, flags, body).unwrap_or_default(),
                            }),
                        });
                    }
                    _ => replies.push(Reply { kind, body: body.to_vec() }),
                }
            }
        }
    }
}

fn send(socket: &Socket, bytes: &[u8]) -> std::io::Result<()> {
    loop {
        match socket.send(bytes, 0) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other.map(|_| ()),
        }
    }
}

/// The extended acknowledgement, which follows the copy of the request in an error message.
fn extended_acknowledgement(kind: u16, flags: u16, body: &[u8]) -> Option<String> {
    if kind != NLMSG_ERROR || flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let copy = if flags & NLM_F_CAPPED != 0 { HEADER } else { u32_at(body, 4)? as usize };
    let attributes = body.get(4 + copy.next_multiple_of(4)..)?;
    find(attributes, NLMSGERR_ATTR_MSG).map(text)
}

/// A request under construction: netlink header, family header, attributes.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
    flags: u16,
}

impl Request {
    /// `kind` is the message type, `flags` are those other than request, acknowledge and dump, `header` is the fixed part of the family.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Request {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(header);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Request { bytes, flags }
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Request {
        debug_assert!(value.len() < usize::from(u16::MAX) - 4);
        self.bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Request {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Adds a string with the terminating zero that the kernel expects.
    pub(crate) fn string(&mut self, kind: u16, value: &str) -> &mut Request {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Request)) -> &mut Request {
        let start = self.bytes.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds the fixed part inside a nested attribute (the peer of a veth).
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Request {
        debug_assert!(bytes.len().is_multiple_of(4));
        self.bytes.extend_from_slice(bytes);
        self
    }

    #[cfg(test)]
    pub(crate) fn encoded(&mut self) -> &[u8] {
        self.finish(0, 0)
    }

    fn finish(&mut self, flags: u16, sequence: u32) -> &[u8] {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&(self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// The attributes in `bytes` up to the first malformed one. Flags are removed from their kinds.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|a| {
        let start = a.into_inner();
        let length = usize::from(u16_at(start, 0).unwrap_or(4)).clamp(4, start.len());
        (u16_at(start, 2).unwrap_or(0) & 0x3fff, &start[4..length])
    })
}

/// The first attribute of this kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The value of a string attribute, up to its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_request_is_parsed() {
        let mut r = Request::new(16, 0x400, &[7; 16]);
        r.string(3, "weave").nested(18, |r| {
            r.string(1, "veth").number(4, 1376);
        });
        let bytes = r.finish(NLM_F_ACK, 9).to_vec();
        assert_eq!(u32_at(&bytes, 0), Some(bytes.len() as u32));
        assert_eq!(
            (u16_at(&bytes, 4), u16_at(&bytes, 6), u32_at(&bytes, 8)),
            (Some(16), Some(0x405), Some(9))
        );
        let all: Vec<_> = attributes(&bytes[HEADER + 16..]).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0, text(all[0].1).as_str()), (3, "weave"));
        assert_eq!(all[1].0, 18);
        assert_eq!(find(all[1].1, 4).and_then(|v| u32_at(v, 0)), Some(1376));
        assert_eq!(find(all[1].1, 5), None);
    }

    #[test]
    fn malformed_attribute_ends_the_list() {
        for bytes in [&[][..], &[1], &[3, 0, 1, 0], &[0, 0, 0, 0, 0], &[200, 0, 1, 0, 1, 2, 3, 4]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        let good_then_bad = [8, 0, 4, 0, 1, 2, 3, 4, 9, 0, 1];
        assert_eq!(attributes(&good_then_bad).collect::<Vec<_>>(), [(4u16, &[1u8, 2, 3, 4][..])]);
    }

    #[test]
    fn extended_acknowledgement_is_found() {
        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend([16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut attrs = Request::new(0, 0, &[]);
        attrs.string(NLMSGERR_ATTR_MSG, "Invalid MTU");
        body.extend(&attrs.bytes[HEADER..]);
        assert_eq!(
            extended_acknowledgement(NLMSG_ERROR, NLM_F_ACK_TLVS | NLM_F_CAPPED, &body).as_deref(),
            Some("Invalid MTU")
        );
        assert_eq!(
            extended_acknowledgement(NLMSG_ERROR, NLM_F_ACK_TLVS, &body).as_deref(),
            Some("Invalid MTU")
        );
        assert_eq!(extended_acknowledgement(NLMSG_ERROR, 0, &body), None);
        assert_eq!(extended_acknowledgement(NLMSG_ERROR, NLM_F_ACK_TLVS, &body[..3]), None);
    }
}
