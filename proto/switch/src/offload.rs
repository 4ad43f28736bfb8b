//! What a sending kernel left to do, as `struct virtio_net_hdr` says it (virtio 1.2, 5.1.6; `linux/virtio_net.h`).
//!
//! ```text
//!  0       1          2         4          6            8             10
//!  | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | [num_buffers] |
//! ```
//! Numbers are in the byte order of this machine, which is what packet sockets and TAP devices use unless told
//! otherwise.

use std::fmt;

/// Length of the header.
pub const VIRTIO_HEADER: usize = 10;
/// Length of the header with the number of buffers behind it (`IFF_VNET_HDR` with a 12-byte header).
pub const VIRTIO_HEADER_MRG: usize = 12;

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Says that the first segment may carry CWR, which is cleared in the following ones anyway.
const GSO_ECN: u8 = 0x80;

/// A checksum that is still to be computed: over everything from `start` on, stored at `start + offset`, where
/// now the sum of the pseudo header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csum {
    /// Offset of the transport header in the frame.
    pub start: u16,
    /// Offset of the checksum field in the transport header.
    pub offset: u16,
}

/// What a super-frame is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP segments over IPv4.
    TcpV4,
    /// TCP segments over IPv6.
    TcpV6,
    /// UDP datagrams, each with its own header, over IPv4 or IPv6 (USO). Not IP fragments.
    Udp,
}

/// A super-frame that is still to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Into what.
    pub kind: GsoKind,
    /// Payload bytes in each piece but the last.
    pub size: u16,
    /// Length of all headers. A hint: the headers themselves decide.
    pub hdr_len: u16,
}

/// What is left to do with a frame. Both `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to complete.
    pub csum: Option<Csum>,
    /// A cut to make.
    pub gso: Option<Gso>,
}

/// The virtio header cannot be obeyed. Drop the frame and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffloadError {
    /// Less than 10 bytes.
    TooShort,
    /// A kind of segmentation that was never agreed upon (UFO, for one).
    UnknownGso(u8),
}

impl fmt::Display for OffloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OffloadError::TooShort => f.write_str("virtio header too short"),
            OffloadError::UnknownGso(kind) => write!(f, "unknown segmentation kind {kind:#04x}"),
        }
    }
}

impl std::error::Error for OffloadError {}

impl Offload {
    /// Nothing left to do.
    pub const NONE: Offload = Offload { csum: None, gso: None };

    /// Reads a header of 10 bytes; more are ignored.
    pub fn from_virtio(header: &[u8]) -> Result<Offload, OffloadError> {
        let &[flags, gso, l0, l1, s0, s1, c0, c1, o0, o1] =
            header.first_chunk::<VIRTIO_HEADER>().ok_or(OffloadError::TooShort)?;
        let csum = (flags & FLAG_NEEDS_CSUM != 0)
            .then(|| Csum { start: u16::from_ne_bytes([c0, c1]), offset: u16::from_ne_bytes([o0, o1]) });
        let kind = match gso & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => return Err(OffloadError::UnknownGso(gso)),
        };
        let gso = kind.map(|kind| Gso {
            kind,
            size: u16::from_ne_bytes([s0, s1]),
            hdr_len: u16::from_ne_bytes([l0, l1]),
        });
        Ok(Offload { csum, gso })
    }

    /// The header of 10 bytes.
    pub fn to_virtio(&self) -> [u8; VIRTIO_HEADER] {
        let mut header = [0; VIRTIO_HEADER];
        if let Some(gso) = self.gso {
            header[1] = match gso.kind {
                GsoKind::TcpV4 => GSO_TCPV4,
                GsoKind::TcpV6 => GSO_TCPV6,
                GsoKind::Udp => GSO_UDP_L4,
            };
            header[2..4].copy_from_slice(&gso.hdr_len.to_ne_bytes());
            header[4..6].copy_from_slice(&gso.size.to_ne_bytes());
        }
        if let Some(csum) = self.csum {
            header[0] = FLAG_NEEDS_CSUM;
            header[6..8].copy_from_slice(&csum.start.to_ne_bytes());
            header[8..10].copy_from_slice(&csum.offset.to_ne_bytes());
        }
        header
    }

    /// The header of 12 bytes, with zero buffers, as it is to be written.
    pub fn to_virtio_mrg(&self) -> [u8; VIRTIO_HEADER_MRG] {
        let mut header = [0; VIRTIO_HEADER_MRG];
        header[..VIRTIO_HEADER].copy_from_slice(&self.to_virtio());
        header
    }

    /// The same after `by` bytes were put into the frame before the network header, such as a VLAN tag of 4
    /// bytes that the kernel handed over beside the frame.
    #[must_use]
    pub fn shifted(self, by: u16) -> Offload {
        let csum = self.csum.map(|csum| Csum { start: csum.start.saturating_add(by), ..csum });
        let gso = self.gso.map(|gso| Gso { hdr_len: gso.hdr_len.saturating_add(by), ..gso });
        Offload { csum, gso }
    }
}
