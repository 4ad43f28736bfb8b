/// Bytes of a [`Header`].
pub const HEADER: usize = 16;
/// Number of lanes: counters of a connection and direction, each with a replay window of its own.
pub const LANES: usize = 8;
/// First byte of every datagram: kind and version. It has the bit of group addresses, which the generated names of peers, with which
/// sleeve's datagrams begin, do not have.
pub const TYPE: u8 = 0xf1;

/// The clear part of a datagram. All of it is authenticated.
///
/// ```text
/// 0      1       2      4              8                         16
/// type   epoch   lane   index          DF bit 1, counter 63      sealed records, tag 16
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The low bits of the number of the epoch.
    pub epoch: u8,
    /// The lane whose counter `word` is from, below [`LANES`].
    pub lane: u16,
    /// The number by which the receiver finds the connection.
    pub index: u32,
    /// Highest bit: the datagram was sent with the don't-fragment bit. The others count datagrams, separately with and without it.
    pub word: u64,
}

impl Header {
    /// Splits a datagram into its header, as bytes and parsed, and what is sealed.
    pub fn split(datagram: &mut [u8]) -> Option<(Header, &[u8; HEADER], &mut [u8])> {
        let (bytes, sealed) = datagram.split_first_chunk_mut::<HEADER>()?;
        let bytes = &*bytes;
        let [kind, epoch, l0, l1, i0, i1, i2, i3, word @ ..] = *bytes;
        let header = Header {
            epoch,
            lane: u16::from_be_bytes([l0, l1]),
            index: u32::from_be_bytes([i0, i1, i2, i3]),
            word: u64::from_be_bytes(word),
        };
        (kind == TYPE).then_some((header, bytes, sealed))
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = TYPE;
        bytes[1] = self.epoch;
        bytes[2..4].copy_from_slice(&self.lane.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.index.to_be_bytes());
        bytes[8..].copy_from_slice(&self.word.to_be_bytes());
        bytes
    }

    /// The nonce: lane, two zero bytes, DF bit and counter. Direction and epoch have keys of their own.
    pub(super) fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..2].copy_from_slice(&self.lane.to_be_bytes());
        nonce[4..].copy_from_slice(&self.word.to_be_bytes());
        nonce
    }
}

/// The index in the header of a datagram, if it is one of warp.
pub fn receiver(datagram: &[u8]) -> Option<u32> {
    let header = datagram.first_chunk::<HEADER>().filter(|header| header[0] == TYPE)?;
    header[4..].first_chunk().map(|index| u32::from_be_bytes(*index))
}
