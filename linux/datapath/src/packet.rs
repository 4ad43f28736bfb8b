//! Packet sockets on the switch's uplink: frames with their virtio header, in both directions.
//!
//! Every frame is preceded by the 10 bytes of a `virtio_net_hdr`, so that the kernel neither completes checksums nor
//! cuts super-frames (up to 64 kB) for us, and takes super-frames back. What a header with `NEEDS_CSUM` or a GSO type
//! describes is unfinished: whoever sends such a frame over a wire that has no room for the header has to finish it.
//!
//! VLAN tags that the kernel keeps beside the frame are put back into it; the header's offsets move along.

use std::io::{self, IoSlice};
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use socket2::SockRef;
use weave_switch::Offload;
use weave_switch::offload::{OffloadError, VIRTIO_HEADER};

use crate::StartError;
use crate::sys::{self, OutMessage, RawAddress, RecvBatch, SendBatch};

/// Bytes of the virtio header before each frame.
const VNET_LEN: usize = VIRTIO_HEADER;
/// A super-frame: 65,535 bytes of IP packet, an Ethernet header and two VLAN tags, rounded up.
pub const MAX_FRAME: usize = 65_600;

const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const VLAN_TAG: usize = 4;
const MACS: usize = 12;
/// A packet socket takes frames off a sender's account at once, so that only this limits how much containers may have
/// under way: it should hold the windows of a few TCP connections (4 MB each by default). More would only add delay.
const RECEIVE_BUFFER: i32 = 8 << 20;
const SEND_BUFFER: i32 = 8 << 20;
/// Frames above this are handed to the kernel where they are; below, a copy costs less than a call for each.
const COPY_LIMIT: usize = 8192;
const INJECT_SLOTS: usize = 64;
/// Arena for frames to inject.
const INJECT_ARENA: usize = 128 << 10;

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

/// Whether this process can have what [`PacketSocket::open`] asks for, device or no device.
pub(crate) fn check() -> Result<(), StartError> {
    let missing = |step, why| Err(StartError::Feature { step, why });
    let socket = match sys::packet_socket() {
        Ok(socket) => socket,
        Err(error) => {
            let step = "opening a packet socket";
            return match error.raw_os_error() {
                Some(libc::EAFNOSUPPORT) => missing(
                    step,
                    "this kernel lacks packet sockets (CONFIG_PACKET, module af_packet); load the module, or use a kernel \
                     that has it",
                ),
                Some(libc::EPERM | libc::EACCES) => {
                    missing(step, "permission denied (this needs root, or the capability NET_RAW)")
                }
                _ => Err(StartError::System { step, error }),
            };
        }
    };
    match sys::set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1) {
        Err(_) => missing(
            "setting up a packet socket",
            "this kernel lacks PACKET_VNET_HDR (Linux 2.6.39); use a later kernel",
        ),
        Ok(()) => Ok(()),
    }
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
        // PACKET_QDISC_BYPASS was tried: it gains nothing on a veth, and hides injected frames from tcpdump.
        grow(capture.as_fd(), libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER);
        grow(inject.as_fd(), libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER);
        sys::bind_packet(inject.as_fd(), index, 0).map_err(failed("bind"))?;
        sys::bind_packet(capture.as_fd(), index, ETH_P_ALL).map_err(failed("bind"))?;
        // Binding to a device that is down succeeds and leaves the reason as the pending error.
        match sys::option_words(capture.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR) {
            Ok([0]) => Ok(PacketSocket { capture, inject, sees_outgoing }),
            Ok([error]) if error as i32 == libc::ENETDOWN => Err(OpenDeviceError::Down(device.to_owned())),
            Ok([error]) => Err(failed("bind")(io::Error::from_raw_os_error(error as i32))),
            Err(error) => Err(failed("SO_ERROR")(error)),
        }
    }

    /// To poll for captured frames.
    pub(crate) fn capture_fd(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }

    /// Takes captured frames, up to `limit`, without waiting.
    pub(crate) fn receive(&self, batch: &mut RecvBatch, limit: usize) -> io::Result<usize> {
        batch.receive(self.capture.as_fd(), limit)
    }

    /// Frame `index` of what `receive` brought, and what is left to do with it; `None` if it is not one to forward.
    pub(crate) fn frame<'b>(
        &self,
        batch: &'b mut RecvBatch,
        index: usize,
    ) -> Option<Result<(&'b [u8], Offload), FrameError>> {
        let message = batch.message(index);
        if message.truncated {
            return Some(Err(FrameError::Truncated));
        }
        if self.sees_outgoing && message.packet_type == Some(libc::PACKET_OUTGOING) {
            return None;
        }
        let tag = message.control(libc::SOL_PACKET, libc::PACKET_AUXDATA).and_then(vlan_tag);
        let offload = match Offload::from_virtio(message.data) {
            Ok(offload) => offload,
            Err(error) => return Some(Err(FrameError::Offload(error))),
        };
        match tag {
            None => Some(Ok((&message.data[VNET_LEN..], offload))),
            Some(tag) if message.data.len() >= VNET_LEN + MACS => {
                Some(Ok((insert_tag(message.data, tag), offload.shifted(VLAN_TAG as u16))))
            }
            Some(_) => None,
        }
    }

    /// What was captured and dropped since the last call.
    pub(crate) fn statistics(&self) -> io::Result<CaptureStatistics> {
        sys::option_words(self.capture.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS)
            .map(|[packets, drops]| CaptureStatistics { packets, drops })
    }
}

/// A frame that was captured and cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// It is longer than [`MAX_FRAME`].
    Truncated,
    /// Its header asks for the unknown.
    Offload(OffloadError),
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

/// Frames on their way to the device, sent by [`flush`](Injector::flush) in one go.
pub(crate) struct Injector {
    arena: Box<[u8]>,
    used: usize,
    /// Where each frame with its header ends.
    ends: Vec<usize>,
    batch: SendBatch,
}

/// What became of injected frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Injected {
    pub(crate) sent: u64,
    /// Refused by the kernel: device down or gone, or larger than its MTU.
    pub(crate) dropped: u64,
}

impl AddAssign for Injected {
    fn add_assign(&mut self, other: Injected) {
        self.sent += other.sent;
        self.dropped += other.dropped;
    }
}

impl Injector {
    pub(crate) fn new() -> Injector {
        Injector {
            arena: vec![0; INJECT_ARENA].into(),
            used: 0,
            ends: Vec::with_capacity(INJECT_SLOTS),
            batch: SendBatch::new(INJECT_SLOTS),
        }
    }

    /// Injects a frame with the next flush, or at once with all before it if it is large.
    pub(crate) fn push(&mut self, frame: &[u8], offload: Offload, device: Option<&PacketSocket>) -> Injected {
        let header = offload.to_virtio();
        let mut outcome = Injected::default();
        let (start, len) = (self.used, VNET_LEN + frame.len());
        let large = frame.len() > COPY_LIMIT;
        if large || self.ends.len() == INJECT_SLOTS || start + len > self.arena.len() {
            outcome = self.flush(device);
        }
        if large {
            let parts = [IoSlice::new(&header), IoSlice::new(frame)];
            let sent = device.is_some_and(|device| {
                SockRef::from(&device.inject).send_vectored_with_flags(&parts, libc::MSG_NOSIGNAL).is_ok()
            });
            outcome.sent += u64::from(sent);
            outcome.dropped += u64::from(!sent);
        } else {
            let start = self.used;
            let room = &mut self.arena[start..start + len];
            room[..VNET_LEN].copy_from_slice(&header);
            room[VNET_LEN..].copy_from_slice(frame);
            self.used += len;
            self.ends.push(self.used);
        }
        outcome
    }

    /// Sends everything. Without a device everything is dropped.
    pub(crate) fn flush(&mut self, device: Option<&PacketSocket>) -> Injected {
        let mut outcome = Injected::default();
        let mut next = 0;
        while next < self.ends.len() {
            let Some(device) = device else {
                outcome.dropped += (self.ends.len() - next) as u64;
                break;
            };
            let mut start = if next == 0 { 0 } else { self.ends[next - 1] };
            let waiting = self.ends[next..].iter().map(|&end| {
                let bytes = &self.arena[std::mem::replace(&mut start, end)..end];
                OutMessage { bytes, to: RawAddress::NONE, segment: 0 }
            });
            match self.batch.send(device.inject.as_fd(), waiting) {
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
        self.ends.clear();
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
}
