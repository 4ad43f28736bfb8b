//! The ones' complement checksum of IP, TCP, UDP and ICMP (RFC 1071), fast.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A running sum. Parts may be added in any order; each must have an even length, except the last part of the data.
///
/// It adds 16-bit words in native byte order. The sum does not depend on the byte order (RFC 1071 section 2 B) as long as the
/// result is converted back. Additions cannot overflow before 2^32 words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Sum = Sum(0);

    /// Adds bytes; an odd last one counts as if a zero followed.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        const BLOCK: usize = 64;
        const LOW: u64 = 0xffff_ffff;
        // Eight independent sums of half words compile to vector additions.
        let mut low = [0u64; 8];
        let mut high = [0u64; 8];
        let blocks = bytes.chunks_exact(BLOCK);
        let rest = blocks.remainder();
        for block in blocks {
            for (i, word) in block.as_chunks::<8>().0.iter().enumerate() {
                let word = u64::from_ne_bytes(*word);
                low[i] += word & LOW;
                high[i] += word >> 32;
            }
        }
        let mut sum: u64 = 0;
        for i in 0..8 {
            sum += (low[i] & LOW) + (low[i] >> 32) + (high[i] & LOW) + (high[i] >> 32);
        }
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0u8; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += u64::from(u32::from_ne_bytes(last));
        Sum(self.0 + (sum & LOW) + (sum >> 32))
    }

    /// Adds one word.
    #[must_use]
    pub fn word(self, word: u16) -> Sum {
        Sum(self.0 + u64::from(word.to_be()))
    }

    /// Adds the pseudo header of TCP or UDP over IPv4 (RFC 9293 section 3.1).
    #[must_use]
    pub fn pseudo_v4(self, src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> Sum {
        self.bytes(&src.octets()).bytes(&dst.octets()).word(u16::from(protocol)).word(len)
    }

    /// Adds the pseudo header of an upper layer over IPv6 (RFC 8200 section 8.1).
    #[must_use]
    pub fn pseudo_v6(self, src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: u32) -> Sum {
        let sum = self.bytes(&src.octets()).bytes(&dst.octets()).word(u16::from(protocol));
        sum.word((len >> 16) as u16).word(len as u16)
    }

    /// The sum without complement, the content of a partial checksum field.
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        let mut sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum for the header field.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The checksum for the UDP header, where zero would mean "no checksum".
    pub fn checksum_udp(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }

    /// Whether a sum that includes the checksum field is correct.
    pub fn is_valid(self) -> bool {
        self.folded() == 0xffff
    }
}
