//! Work that a sending kernel left to its network device, described by `struct virtio_net_hdr` (virtio 1.2 section 5.1.6;
//! `linux/virtio_net.h`).
//!
//! ```text
//!  0       1          2         4          6            8             10
//!  | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | [num_buffers] |
//! ```
//! Numbers are in native byte order, the default of packet sockets and TAP devices.

/// Length of the header.
pub const VIRTIO_HEADER: usize = 10;
/// Length of the header with the number of buffers behind it (`IFF_VNET_HDR` with a 12-byte header).
pub const VIRTIO_HEADER_MRG: usize = 12;

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// The first segment may carry CWR. Segmentation clears it in the following ones in any case.
const GSO_ECN: u8 = 0x80;

/// A checksum that is still to be computed, over everything from `start` on. It is stored at `start + offset`, which contains
/// the sum of the pseudo header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Csum {
    /// Offset of the transport header in the frame.
    pub start: u16,
    /// Offset of the checksum field in the transport header.
    pub offset: u16,
}

/// How a super-frame is segmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP segments over IPv4.
    TcpV4,
    /// TCP segments over IPv6.
    TcpV6,
    /// UDP datagrams, each with its own header, over IPv4 or IPv6 (USO). Not IP fragments.
    Udp,
}

/// A pending segmentation of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Kind of the segments.
    pub kind: GsoKind,
    /// Payload bytes of each segment except the last.
    pub size: u16,
    /// Length of all headers. Only a hint; the headers are parsed.
    pub hdr_len: u16,
}

/// Pending work on a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum to complete.
    pub csum: Option<Csum>,
    /// The segmentation to perform.
    pub gso: Option<Gso>,
}

/// The virtio header is invalid. The frame is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// Less than 10 bytes.
    #[error("virtio header too short")]
    TooShort,
    /// A kind of segmentation that was not negotiated, for example UFO.
    #[error("unknown segmentation kind {0:#04x}")]
    UnknownGso(u8),
}

impl Offload {
    /// No pending work.
    pub const NONE: Offload = Offload { csum: None, gso: None };

    /// Parses a header of 10 bytes; further bytes are ignored.
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

    /// The header of 12 bytes, with zero buffers, as the kernel expects it in writes.
    pub fn to_virtio_mrg(&self) -> [u8; VIRTIO_HEADER_MRG] {
        let mut header = [0; VIRTIO_HEADER_MRG];
        header[..VIRTIO_HEADER].copy_from_slice(&self.to_virtio());
        header
    }

    /// The offload after `by` bytes were inserted into the frame before the network header, such as a VLAN tag of 4 bytes
    /// that the kernel delivered separately.
    #[must_use]
    pub fn shifted(self, by: u16) -> Offload {
        let csum = self.csum.map(|csum| Csum { start: csum.start.saturating_add(by), ..csum });
        let gso = self.gso.map(|gso| Gso { hdr_len: gso.hdr_len.saturating_add(by), ..gso });
        Offload { csum, gso }
    }
}
