//! TAP devices to which the programs of fastdp redirect the frames that user space has to forward.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use weave_switch::Offload;
use weave_switch::offload::VIRTIO_HEADER;
use weave_types::ShortId;

use crate::packet::{FrameError, MAX_FRAME};

/// Bytes of both MAC addresses.
const MACS_LEN: usize = 12;
/// Bytes of the two VLAN tags of a relayed frame.
const TAGS_LEN: usize = 8;
const ETHERTYPE_QINQ: [u8; 2] = [0x88, 0xa8];
/// The VLAN ID in a tag's control information.
const VLAN_ID: u16 = 0xfff;

/// Queues of the TAP devices of fastdp. Each frame has a virtio header in front.
#[derive(Debug)]
pub struct Taps {
    /// Frames of local containers for neighbours that the kernel does not reach, with pending offloads.
    pub local: OwnedFd,
    /// Further queues of that device, each for one more thread ([`DatapathConfig::threads`](crate::DatapathConfig)). The kernel chooses a
    /// queue for each flow.
    pub further: Vec<OwnedFd>,
    /// Frames of other peers. Two VLAN tags of type 0x88a8 follow their MACs: the short id of the source peer, that of the destination
    /// peer.
    pub relay: OwnedFd,
}

/// A frame of another peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RelayedFrame<'b> {
    pub(crate) src: ShortId,
    pub(crate) dst: ShortId,
    pub(crate) frame: &'b [u8],
}

/// Reads frames of one TAP device.
pub(crate) struct TapReader {
    fd: OwnedFd,
    buffer: Box<[u8]>,
}

impl TapReader {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<TapReader> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(TapReader { fd, buffer: vec![0; VIRTIO_HEADER + MAX_FRAME].into() })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads the next frame with its virtio header; `None` if there is none.
    pub(crate) fn read(&mut self) -> io::Result<Option<&mut [u8]>> {
        match nix::unistd::read(&self.fd, &mut self.buffer) {
            Ok(len) => Ok(Some(&mut self.buffer[..len])),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A frame with its pending work.
pub(crate) fn local_frame(message: &[u8]) -> Result<(&[u8], Offload), FrameError> {
    let offload = Offload::from_virtio(message).map_err(FrameError::Offload)?;
    Ok((message.get(VIRTIO_HEADER..).unwrap_or_default(), offload))
}

/// A frame of another peer, from which the tags are removed; `None` if it has none.
pub(crate) fn relayed_frame(message: &mut [u8]) -> Option<RelayedFrame<'_>> {
    let tags = message.get(VIRTIO_HEADER + MACS_LEN..)?.first_chunk::<TAGS_LEN>()?;
    let id = |tag: &[u8]| {
        let (kind, id) = tag.split_at(2);
        let id = u16::from_be_bytes(id.try_into().ok()?) & VLAN_ID;
        ShortId::new(id).filter(|_| kind == ETHERTYPE_QINQ)
    };
    let (src, dst) = tags.split_at(TAGS_LEN / 2);
    let (src, dst) = (id(src)?, id(dst)?);
    message.copy_within(VIRTIO_HEADER..VIRTIO_HEADER + MACS_LEN, VIRTIO_HEADER + TAGS_LEN);
    Some(RelayedFrame { src, dst, frame: &message[VIRTIO_HEADER + TAGS_LEN..] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_a_relayed_frame_are_removed() {
        let id = |id| ShortId::new(id).unwrap();
        let mut message = vec![0; VIRTIO_HEADER];
        let (macs, rest) = ([7; MACS_LEN], [8; 60]);
        message.extend(macs);
        message.extend([0x88, 0xa8, 0x0a, 0xbc, 0x88, 0xa8, 0xf1, 0x23]);
        message.extend(rest);
        let expected = [&macs[..], &rest].concat();
        let frame = RelayedFrame { src: id(0xabc), dst: id(0x123), frame: &expected };
        assert_eq!(relayed_frame(&mut message.clone()), Some(frame));
        for len in 0..VIRTIO_HEADER + MACS_LEN + TAGS_LEN {
            assert_eq!(relayed_frame(&mut message[..len].to_vec()), None, "{len}");
        }
        message[VIRTIO_HEADER + MACS_LEN] = 0x81;
        assert_eq!(relayed_frame(&mut message), None);
    }
}
