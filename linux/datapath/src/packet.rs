//! Packet sockets on the switch's uplink: frames with their virtio header, in both directions.
//!
//! Every frame is preceded by the 10 bytes of a `virtio_net_hdr`, so that the kernel neither completes checksums nor segments
//! super-frames (TCP or UDP frames of up to 64 kB, GSO) on capture, and accepts super-frames for injection. A header with `NEEDS_CSUM` or a GSO type
//! describes pending work, which must be done before the frame is sent without the header.
//!
//! The kernel delivers VLAN tags separately; they are inserted into the frame, and the offsets of the header are adjusted.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use socket2::SockRef;
use weave_switch::offload::{OffloadError, VIRTIO_HEADER};
use weave_switch::{Offload, Segments};

use crate::error::StartError;
use crate::sys::{self, OutMessage, RawAddress, RecvBatch, SendBatch};

/// Bytes of a super-frame: 65,535 bytes of IP packet, an Ethernet header and two VLAN tags, rounded up.
pub(crate) const MAX_FRAME: usize = 65_600;

const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const VLAN_TAG: usize = 4;
/// Bytes of both MAC addresses.
const MACS_LEN: usize = 12;
/// The kernel credits the sender's socket when a packet socket receives a frame, so that only this limits the data in flight
/// from containers. It should hold the windows of a few TCP connections (4 MB each by default). More would only add delay.
const RECEIVE_BUFFER: i32 = 8 << 20;
const SEND_BUFFER: i32 = 8 << 20;
/// Larger frames are passed to the kernel without a copy, each in a separate call; smaller ones are copied into a batch, which is
/// cheaper than a call for each.
const COPY_LIMIT: usize = 8192;
/// Maximum number of frames in a batch.
const INJECT_BATCH: usize = 64;
/// Bytes of the buffer for a batch.
const INJECT_BUFFER: usize = 128 << 10;

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenDeviceError {
    /// There is no such device in this network namespace.
    #[error("no device {0}")]
    Missing(String),
    /// The device is down.
    #[error("device {0} is down")]
    Down(String),
    /// The kernel refused a step.
    #[error("{step} on {device}: {error}")]
    System {
        /// Name of the device.
        device: String,
        /// The failed step.
        step: &'static str,
        /// Error of the kernel.
        error: io::Error,
    },
}

/// A pair of packet sockets on one device: one captures frames from the bridge, the other injects frames.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    /// `None` if frames are captured in another way.
    capture: Option<OwnedFd>,
    inject: OwnedFd,
    /// Whether the capture socket also receives injected frames, because the kernel lacks PACKET_IGNORE_OUTGOING.
    sees_outgoing: bool,
}

/// Checks that the kernel and the permissions of this process allow [`PacketSocket::open`], independently of a device.
pub(crate) fn check_support() -> Result<(), StartError> {
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

/// Counters of the kernel since the last query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CaptureStatistics {
    /// Frames received, dropped ones included.
    pub(crate) packets: u32,
    /// Frames for which the receive buffer had no room.
    pub(crate) drops: u32,
}

impl PacketSocket {
    /// Opens the device by name, in the network namespace of the calling thread, for injection only or also to capture. Needs
    /// CAP_NET_RAW.
    pub(crate) fn open(device: &str, captures: bool) -> Result<PacketSocket, OpenDeviceError> {
        let failed = |step| move |error| OpenDeviceError::System { device: device.to_owned(), step, error };
        let index = if_nametoindex(device).map_err(|_| OpenDeviceError::Missing(device.to_owned()))?;
        let inject = sys::packet_socket().map_err(failed("packet socket"))?;
        sys::set_option(inject.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
            .map_err(failed("PACKET_VNET_HDR"))?;
        // PACKET_QDISC_BYPASS gains nothing on a veth, and hides injected frames from tcpdump.
        sys::set_send_buffer(inject.as_fd(), SEND_BUFFER);
        sys::bind_packet(inject.as_fd(), index, 0).map_err(failed("bind"))?;
        let mut socket = PacketSocket { capture: None, inject, sees_outgoing: false };
        if captures {
            let capture = sys::packet_socket().map_err(failed("packet socket"))?;
            sys::set_option(capture.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
                .map_err(failed("PACKET_VNET_HDR"))?;
            sys::set_option(capture.as_fd(), libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)
                .map_err(failed("PACKET_AUXDATA"))?;
            socket.sees_outgoing =
                sys::set_option(capture.as_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1).is_err();
            sys::set_receive_buffer(capture.as_fd(), RECEIVE_BUFFER);
            sys::bind_packet(capture.as_fd(), index, ETH_P_ALL).map_err(failed("bind"))?;
            socket.capture = Some(capture);
        }
        // Binding to a device that is down succeeds and leaves a pending error.
        match socket.pending_error() {
            Ok(()) => Ok(socket),
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {
                Err(OpenDeviceError::Down(device.to_owned()))
            }
            Err(error) => Err(failed("bind")(error)),
        }
    }

    /// The error that is pending on the sockets: the device is down or gone.
    pub(crate) fn pending_error(&self) -> io::Result<()> {
        for socket in self.capture.iter().chain([&self.inject]) {
            let [error] = sys::option_words(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR)?;
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error as i32));
            }
        }
        Ok(())
    }

    /// The descriptor to poll: for captured frames, or else only for the loss of the device.
    pub(crate) fn poll_fd(&self) -> BorrowedFd<'_> {
        self.capture.as_ref().unwrap_or(&self.inject).as_fd()
    }

    /// Receives up to `limit` captured frames without waiting.
    pub(crate) fn receive(&self, batch: &mut RecvBatch, limit: usize) -> io::Result<usize> {
        match &self.capture {
            Some(capture) => batch.receive(capture.as_fd(), limit),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Frame `index` of the latest `receive`, with its pending work; `None` if it must not be forwarded.
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
            None => Some(Ok((&message.data[VIRTIO_HEADER..], offload))),
            Some(tag) if message.data.len() >= VIRTIO_HEADER + MACS_LEN => {
                Some(Ok((insert_tag(message.data, tag), offload.shifted(VLAN_TAG as u16))))
            }
            Some(_) => None,
        }
    }

    /// Counters since the last call.
    pub(crate) fn statistics(&self) -> io::Result<CaptureStatistics> {
        let Some(capture) = &self.capture else { return Ok(CaptureStatistics::default()) };
        sys::option_words(capture.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS)
            .map(|[packets, drops]| CaptureStatistics { packets, drops })
    }
}

/// Why a captured frame cannot be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// The frame is longer than [`MAX_FRAME`].
    Truncated,
    /// The virtio header is invalid.
    Offload(OffloadError),
}

/// The VLAN tag of a `tpacket_auxdata` (u32 status, len, snaplen; u16 mac, net, tci, tpid), in network byte order.
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

/// Inserts a VLAN tag into the frame of a message, which starts with the virtio header. The MAC addresses are moved over the
/// header, which has been parsed already; the rest stays in place.
fn insert_tag(message: &mut [u8], tag: [u8; VLAN_TAG]) -> &mut [u8] {
    let start = VIRTIO_HEADER - VLAN_TAG;
    message.copy_within(VIRTIO_HEADER..VIRTIO_HEADER + MACS_LEN, start);
    message[start + MACS_LEN..start + MACS_LEN + VLAN_TAG].copy_from_slice(&tag);
    &mut message[start..]
}

/// A batch of frames to inject, which [`flush`](Injector::flush) sends in one call.
pub(crate) struct Injector {
    buffer: Box<[u8]>,
    used: usize,
    /// End of each frame with its header in the buffer.
    ends: Vec<usize>,
    batch: SendBatch,
    /// One segment of a super-frame.
    segment: Vec<u8>,
    /// Whether the kernel has refused to segment a frame since the latest call of [`take_refused`](Injector::take_refused).
    refused: bool,
}

fn send_frame(device: &PacketSocket, header: &[u8; VIRTIO_HEADER], frame: &[u8]) -> io::Result<()> {
    let parts = [IoSlice::new(header), IoSlice::new(frame)];
    SockRef::from(&device.inject).send_vectored_with_flags(&parts, libc::MSG_NOSIGNAL).map(drop)
}

/// Results of injection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InjectCounts {
    pub(crate) sent: u64,
    /// Refused by the kernel: the device is down or gone, or the frame exceeds its MTU.
    pub(crate) dropped: u64,
}

impl AddAssign for InjectCounts {
    fn add_assign(&mut self, other: InjectCounts) {
        self.sent += other.sent;
        self.dropped += other.dropped;
    }
}

impl Injector {
    pub(crate) fn new() -> Injector {
        Injector {
            buffer: vec![0; INJECT_BUFFER].into(),
            used: 0,
            ends: Vec::with_capacity(INJECT_BATCH),
            batch: SendBatch::new(INJECT_BATCH),
            segment: Vec::new(),
            refused: false,
        }
    }

    /// Whether the kernel has refused to segment a frame since the latest call: then frames should not be merged for some time. (Linux
    /// 6.6.44 and others of that time refuse valid frames.)
    pub(crate) fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// Queues a frame for the next flush. A large frame is injected immediately, after those before it.
    pub(crate) fn push(
        &mut self,
        frame: &[u8],
        offload: Offload,
        device: Option<&PacketSocket>,
    ) -> InjectCounts {
        let header = offload.to_virtio();
        let mut outcome = InjectCounts::default();
        let (start, len) = (self.used, VIRTIO_HEADER + frame.len());
        let large = frame.len() > COPY_LIMIT;
        if large || self.ends.len() == INJECT_BATCH || start + len > self.buffer.len() {
            outcome = self.flush(device);
        }
        if large {
            outcome += match device.map(|device| (device, send_frame(device, &header, frame))) {
                Some((_, Ok(()))) => InjectCounts { sent: 1, dropped: 0 },
                Some((device, Err(error))) => self.handle_failure(device, frame, offload, &error),
                None => InjectCounts { sent: 0, dropped: 1 },
            };
        } else {
            let start = self.used;
            let room = &mut self.buffer[start..start + len];
            room[..VIRTIO_HEADER].copy_from_slice(&header);
            room[VIRTIO_HEADER..].copy_from_slice(frame);
            self.used += len;
            self.ends.push(self.used);
        }
        outcome
    }

    /// The kernel refused a frame: if it is a super-frame, its segments are injected.
    fn handle_failure(
        &mut self,
        device: &PacketSocket,
        frame: &[u8],
        offload: Offload,
        error: &io::Error,
    ) -> InjectCounts {
        let mut outcome = InjectCounts::default();
        let refused = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO)) && offload.gso.is_some();
        let Some(mut segments) = Segments::new(frame, offload).ok().filter(|_| refused) else {
            outcome.dropped += 1;
            return outcome;
        };
        self.refused = true;
        while let Some(len) = segments.next_len() {
            self.segment.resize(len, 0);
            segments.next_into(&mut self.segment);
            let sent = send_frame(device, &Offload::NONE.to_virtio(), &self.segment).is_ok();
            outcome.sent += u64::from(sent);
            outcome.dropped += u64::from(!sent);
        }
        outcome
    }

    /// Injects the batch. Without a device all frames are dropped.
    pub(crate) fn flush(&mut self, device: Option<&PacketSocket>) -> InjectCounts {
        let mut outcome = InjectCounts::default();
        let mut next = 0;
        while next < self.ends.len() {
            let Some(device) = device else {
                outcome.dropped += (self.ends.len() - next) as u64;
                break;
            };
            let mut start = if next == 0 { 0 } else { self.ends[next - 1] };
            let messages = self.ends[next..].iter().map(|&end| {
                let bytes = &self.buffer[std::mem::replace(&mut start, end)..end];
                OutMessage {
                    bytes,
                    from: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    to: RawAddress::NONE,
                    segment: 0,
                }
            });
            match self.batch.send(device.inject.as_fd(), messages) {
                Ok(sent) => {
                    outcome.sent += sent as u64;
                    next += sent.max(1);
                }
                Err(error) => {
                    let start = if next == 0 { 0 } else { self.ends[next - 1] };
                    let message = self.buffer[start..self.ends[next]].to_vec();
                    let (header, frame) = message.split_at(VIRTIO_HEADER);
                    let offload = Offload::from_virtio(header).unwrap_or_default();
                    outcome += self.handle_failure(device, frame, offload, &error);
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
    fn vlan_tag_of_auxdata_is_read_with_and_without_tpid() {
        assert_eq!(vlan_tag(&auxdata(1, 5, 0x88a8)), None);
        assert_eq!(vlan_tag(&auxdata(0x11, 0x2005, 0x88a8)), Some([0x81, 0, 0x20, 5]));
        assert_eq!(vlan_tag(&auxdata(0x51, 0x2005, 0x88a8)), Some([0x88, 0xa8, 0x20, 5]));
        assert_eq!(vlan_tag(&[0x11, 0, 0, 0]), None);
    }

    #[test]
    fn vlan_tag_is_inserted_between_macs_and_type() {
        let mut message: Vec<u8> = (0..40).collect();
        let frame = insert_tag(&mut message, [0x81, 0, 0, 7]);
        assert_eq!(frame[..12], (10..22).collect::<Vec<u8>>());
        assert_eq!(frame[12..16], [0x81, 0, 0, 7]);
        assert_eq!(frame[16..], (22..40).collect::<Vec<u8>>());
    }
}
