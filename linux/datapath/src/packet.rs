//! Packet sockets on the switch's uplink: frames with their virtio header, in both directions.
//!
//! Every frame is preceded by the 10 bytes of a `virtio_net_hdr`, so that the kernel neither completes checksums nor
//! cuts super-frames (up to 64 kB) for us, and takes super-frames back. What a header with `NEEDS_CSUM` or a GSO type
//! describes is unfinished: whoever sends such a frame over a wire that has no room for the header has to finish it.
//!
//! VLAN tags that the kernel keeps beside the frame are put back into it; the header's offsets move along.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;

use crate::sys::{self, OutMessage, RawAddress, RecvBatch, SendBatch};

/// Bytes of the virtio header before each frame.
pub const VNET_LEN: usize = 10;
/// A super-frame: 65,535 bytes of IP packet, an Ethernet header and two VLAN tags, rounded up.
pub const MAX_FRAME: usize = 65_600;

const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const VLAN_TAG: usize = 4;
const MACS: usize = 12;
/// Receive buffer. A packet socket takes frames off a sender's account at once, so that only this limits how much a
/// container may have under way: it should hold the windows of several TCP connections (6 MB each by default).
const RECEIVE_BUFFER: i32 = 16 << 20;
const SEND_BUFFER: i32 = 8 << 20;
/// Arena for frames to inject.
const INJECT_ARENA: usize = 4 * MAX_FRAME;
const INJECT_SLOTS: usize = 64;

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDeviceError {
    /// There is no such device in this network namespace.
    #[error("no device {0}")]
    Missing(String),
    /// It exists, but is down.
    #[error("device {0} is down")]
    Down(String),
    /// The kernel refused a step.
    #[error("{step} on {device}: {error}")]
    System {
        /// The name of the device.
        device: String,
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// A pair of packet sockets on one device: one captures what arrives from the bridge, the other injects.
#[derive(Debug)]
pub struct PacketSocket {
    capture: OwnedFd,
    inject: OwnedFd,
    /// The kernel is too old to leave out what we injected ourselves.
    sees_outgoing: bool,
}

/// What the kernel counted since the last question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureStatistics {
    /// Frames that matched, dropped ones included.
    pub packets: u32,
    /// Frames for which the receive buffer had no room.
    pub drops: u32,
}

impl PacketSocket {
    /// Opens the device by name, in the network namespace of the calling thread. Needs CAP_NET_RAW.
    pub fn open(device: &str) -> Result<PacketSocket, OpenDeviceError> {
        let failed = |step| move |error| OpenDeviceError::System { device: device.to_owned(), step, error };
        let index = if_nametoindex(device).map_err(|_| OpenDeviceError::Missing(device.to_owned()))?;
        let capture = sys::packet_socket().map_err(failed("packet socket"))?;
        let inject = sys::packet_socket().map_err(failed("packet socket"))?;
        for socket in [capture.as_fd(), inject.as_fd()] {
            sys::set_option(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
                .map_err(failed("PACKET_VNET_HDR"))?;
        }
        sys::set_option(capture.as_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)
            .map_err(failed("PACKET_AUXDATA"))?;
        let sees_outgoing =
            sys::set_option(capture.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1).is_err();
        // Improvements that a kernel or a container's limits may refuse.
        let _ = sys::set_option(inject.as_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1);
        grow(capture.as_fd(), libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER);
        grow(inject.as_fd(), libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER);
        sys::bind_packet(inject.as_fd(), index, 0).map_err(failed("bind"))?;
        sys::bind_packet(capture.as_fd(), index, ETH_P_ALL).map_err(failed("bind"))?;
        // Binding to a device that is down succeeds and leaves the reason as the pending error.
        match sys::option_pair(capture.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR) {
            Ok([0, _]) => Ok(PacketSocket { capture, inject, sees_outgoing }),
            Ok([error, _]) if error as i32 == libc::ENETDOWN => Err(OpenDeviceError::Down(device.to_owned())),
            Ok([error, _]) => Err(failed("bind")(io::Error::from_raw_os_error(error as i32))),
            Err(error) => Err(failed("SO_ERROR")(error)),
        }
    }

    /// To poll for captured frames.
    pub(crate) fn capture_fd(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }

    /// Takes captured frames without waiting.
    pub(crate) fn receive(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.receive(self.capture.as_fd())
    }

    /// Frame `index` of what `receive` brought; `None` if it is not one to forward.
    pub(crate) fn frame<'b>(&self, batch: &'b mut RecvBatch, index: usize) -> Option<Captured<'b>> {
        let message = batch.message(index);
        if message.truncated {
            return Some(Captured::Truncated);
        }
        if self.sees_outgoing && message.packet_type == Some(libc::PACKET_OUTGOING) {
            return None;
        }
        let tag = message.control(libc::SOL_PACKET, libc::PACKET_AUXDATA).and_then(vlan_tag);
        let mut header = *message.data.first_chunk::<VNET_LEN>()?;
        match tag {
            None => Some(Captured::Frame { header, frame: &mut message.data[VNET_LEN..] }),
            Some(tag) if message.data.len() >= VNET_LEN + MACS => {
                shift_header(&mut header);
                Some(Captured::Frame { header, frame: insert_tag(message.data, tag) })
            }
            Some(_) => None,
        }
    }

    /// What was captured and dropped since the last call.
    pub(crate) fn statistics(&self) -> io::Result<CaptureStatistics> {
        sys::option_pair(self.capture.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS)
            .map(|[packets, drops]| CaptureStatistics { packets, drops })
    }
}

/// One message of the capture socket.
pub(crate) enum Captured<'a> {
    /// A frame with its virtio header.
    Frame { header: [u8; VNET_LEN], frame: &'a mut [u8] },
    /// A frame longer than [`MAX_FRAME`].
    Truncated,
}

/// `SO_*BUFFORCE` passes the system's limit but needs CAP_NET_ADMIN.
pub(crate) fn grow(socket: BorrowedFd<'_>, force: i32, plain: i32, bytes: i32) {
    if sys::set_option(socket, libc::SOL_SOCKET, force, bytes).is_err() {
        let _ = sys::set_option(socket, libc::SOL_SOCKET, plain, bytes);
    }
}

/// The tag in a `tpacket_auxdata`, in wire order: u32 status, len, snaplen; u16 mac, net, tci, tpid.
fn vlan_tag(aux: &[u8]) -> Option<[u8; VLAN_TAG]> {
    let status = u32::from_ne_bytes(*aux.first_chunk()?);
    if status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tci = u16::from_ne_bytes(aux.get(16..18)?.try_into().ok()?);
    let tpid = match status & TP_STATUS_VLAN_TPID_VALID {
        0 => libc::ETH_P_8021Q as u16,
        _ => u16::from_ne_bytes(aux.get(18..20)?.try_into().ok()?),
    };
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), tci.to_be_bytes());
    Some([a, b, c, d])
}

/// The MACs move into the room of the header, which has been read; what follows stays where it is.
fn insert_tag(message: &mut [u8], tag: [u8; VLAN_TAG]) -> &mut [u8] {
    let start = VNET_LEN - VLAN_TAG;
    message.copy_within(VNET_LEN..VNET_LEN + MACS, start);
    message[start + MACS..start + MACS + VLAN_TAG].copy_from_slice(&tag);
    &mut message[start..]
}

/// Adds the length of a tag to `hdr_len` and `csum_start` where they mean something. A packet socket's virtio header
/// is in the byte order of the machine.
fn shift_header(header: &mut [u8; VNET_LEN]) {
    const NEEDS_CSUM: u8 = 1;
    let (checksum, gso) = (header[0] & NEEDS_CSUM != 0, header[1] != 0);
    let mut add = |at: usize| {
        let value = u16::from_ne_bytes([header[at], header[at + 1]]).saturating_add(VLAN_TAG as u16);
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    };
    if gso {
        add(2);
    }
    if checksum {
        add(6);
    }
}

/// Frames on their way to the device, sent by [`flush`](Injector::flush) in one go.
pub(crate) struct Injector {
    arena: Box<[u8]>,
    used: usize,
    messages: Vec<OutMessage>,
    batch: SendBatch,
}

/// What became of injected frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Injected {
    pub(crate) sent: u64,
    /// Refused by the kernel: device down or gone, or larger than its MTU.
    pub(crate) dropped: u64,
}

impl Injector {
    pub(crate) fn new() -> Injector {
        Injector {
            arena: vec![0; INJECT_ARENA].into(),
            used: 0,
            messages: Vec::with_capacity(INJECT_SLOTS),
            batch: SendBatch::new(INJECT_SLOTS),
        }
    }

    /// Whether a frame of this many bytes can be queued before the next flush.
    pub(crate) fn has_room(&self, frame: usize) -> bool {
        self.messages.len() < INJECT_SLOTS && self.used + VNET_LEN + frame <= self.arena.len()
    }

    /// Room for one frame behind its header; `None` if it must be flushed first, or is longer than any frame. To be
    /// followed by `commit`.
    pub(crate) fn reserve(&mut self, frame: usize) -> Option<&mut [u8]> {
        if !self.has_room(frame) {
            return None;
        }
        let start = self.used + VNET_LEN;
        self.arena.get_mut(start..start + frame)
    }

    /// Queues what was written to the room reserved last.
    pub(crate) fn commit(&mut self, header: [u8; VNET_LEN], frame: usize) {
        let start = self.used;
        self.arena[start..start + VNET_LEN].copy_from_slice(&header);
        self.messages.push(OutMessage { start, len: VNET_LEN + frame, to: RawAddress::NONE, segment: 0 });
        self.used += VNET_LEN + frame;
    }

    /// Whether there is nothing to flush.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Sends everything. Without a device everything is dropped.
    pub(crate) fn flush(&mut self, device: Option<&PacketSocket>) -> Injected {
        let mut outcome = Injected::default();
        let mut next = 0;
        while next < self.messages.len() {
            let Some(device) = device else {
                outcome.dropped += (self.messages.len() - next) as u64;
                break;
            };
            let waiting = self.messages[next..].iter().copied();
            match self.batch.send(device.inject.as_fd(), &self.arena, waiting, 0) {
                Ok(sent) => {
                    outcome.sent += sent as u64;
                    next += sent.max(1);
                }
                Err(_) => {
                    outcome.dropped += 1;
                    next += 1;
                }
            }
        }
        self.messages.clear();
        self.used = 0;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auxdata(status: u32, tci: u16, tpid: u16) -> Vec<u8> {
        let mut aux = Vec::new();
        for word in [status, 64, 64] {
            aux.extend(word.to_ne_bytes());
        }
        for half in [0u16, 14, tci, tpid] {
            aux.extend(half.to_ne_bytes());
        }
        aux
    }

    #[test]
    fn a_tag_beside_the_frame_is_read_with_and_without_tpid() {
        assert_eq!(vlan_tag(&auxdata(1, 5, 0x88a8)), None);
        assert_eq!(vlan_tag(&auxdata(0x11, 0x2005, 0x88a8)), Some([0x81, 0, 0x20, 5]));
        assert_eq!(vlan_tag(&auxdata(0x51, 0x2005, 0x88a8)), Some([0x88, 0xa8, 0x20, 5]));
        assert_eq!(vlan_tag(&[0x11, 0, 0, 0]), None);
    }

    #[test]
    fn a_tag_goes_between_macs_and_type() {
        let mut message: Vec<u8> = (0..40).collect();
        let frame = insert_tag(&mut message, [0x81, 0, 0, 7]);
        assert_eq!(frame[..12], (10..22).collect::<Vec<u8>>());
        assert_eq!(frame[12..16], [0x81, 0, 0, 7]);
        assert_eq!(frame[16..], (22..40).collect::<Vec<u8>>());
    }

    #[test]
    fn header_offsets_move_only_where_they_mean_something() {
        let header = |flags, gso, words: [u16; 4]| {
            let mut h = [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0];
            for (i, word) in words.into_iter().enumerate() {
                h[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_ne_bytes());
            }
            h
        };
        let mut plain = header(2, 0, [0, 0, 0, 0]);
        shift_header(&mut plain);
        assert_eq!(plain, header(2, 0, [0, 0, 0, 0]));
        let mut gso = header(1, 1, [66, 1324, 34, 16]);
        shift_header(&mut gso);
        assert_eq!(gso, header(1, 1, [70, 1324, 38, 16]));
    }
}
