use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dryoc::classic::crypto_secretbox::{crypto_secretbox_easy_inplace, crypto_secretbox_open_easy_inplace};
use weave_types::{ConnectionId, ConnectionUid, PeerName};

use super::replay::ReplayWindow;

/// Bytes before each frame: source peer, destination peer, length.
pub const RECORD_OVERHEAD: usize = 14;
/// The largest UDP payload over IPv4; the limit of datagrams that may be fragmented.
pub const MAX_DATAGRAM: usize = 65507;

/// The sending peer's name.
const NAME: usize = 6;
const SEQUENCE: usize = 8;
const TAG: usize = 16;
const DF_BIT: u64 = 1 << 63;

/// What one connection's datagrams are made with. Shared by everyone who seals or opens for it: the counters are atomic,
/// so that several threads may seal without a lock and no nonce is used twice.
pub struct Session {
    config: SessionConfig,
    /// Next sequence number of non-DF (0) and DF (1) datagrams.
    next: [AtomicU64; 2],
}

/// What makes a [`Session`].
#[derive(Clone)]
pub struct SessionConfig {
    /// This peer.
    pub own: PeerName,
    /// The neighbour.
    pub remote: PeerName,
    /// This process's handle for the connection.
    pub conn: ConnectionId,
    /// The number in heartbeats.
    pub uid: ConnectionUid,
    /// Whether this side opened the TCP connection: the polarity of the nonces.
    pub outbound: bool,
    /// The key of the mesh session, if datagrams are to be encrypted.
    pub key: Option<[u8; 32]>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SessionConfig { own, remote, conn, outbound, .. } = self.config;
        f.debug_struct("Session")
            .field("own", &own)
            .field("remote", &remote)
            .field("conn", &conn)
            .field("outbound", &outbound)
            .field("encrypted", &self.is_encrypted())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// With both sequence counters at zero: make one for each connection, never two for the same key and polarity.
    pub fn new(config: SessionConfig) -> Arc<Session> {
        Arc::new(Session { config, next: [AtomicU64::new(0), AtomicU64::new(0)] })
    }

    /// This peer.
    pub fn own(&self) -> PeerName {
        self.config.own
    }

    /// The neighbour.
    pub fn remote(&self) -> PeerName {
        self.config.remote
    }

    /// This process's handle for the connection.
    pub fn conn(&self) -> ConnectionId {
        self.config.conn
    }

    /// The number in heartbeats.
    pub fn uid(&self) -> ConnectionUid {
        self.config.uid
    }

    /// Whether datagrams are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.config.key.is_some()
    }

    /// Bytes of a datagram around its records: 6 plain, 30 encrypted.
    pub fn packet_overhead(&self) -> usize {
        if self.is_encrypted() { NAME + SEQUENCE + TAG } else { NAME }
    }

    /// Bytes that an inner IP packet grows by until it is an outer one, with one frame in the datagram: Ethernet header,
    /// record, packet, UDP and IPv4 header. 62 plain, 86 encrypted (docs/spec/data-plane.md 4.5).
    pub fn overhead(&self) -> usize {
        14 + RECORD_OVERHEAD + self.packet_overhead() + 28
    }

    /// Where records start while a datagram is unsealed: encryption moves them by the tag's length.
    fn start(&self) -> usize {
        if self.is_encrypted() { NAME + SEQUENCE } else { NAME }
    }

    /// The next sequence number. The 63-bit counter fails closed: once used up it stays so.
    fn next_sequence(&self, df: bool) -> Result<u64, SequenceExhausted> {
        let next = &self.next[usize::from(df)];
        let seq = next.fetch_add(1, Ordering::Relaxed);
        if seq < DF_BIT {
            return Ok(seq);
        }
        next.store(DF_BIT, Ordering::Relaxed);
        Err(SequenceExhausted)
    }

    #[cfg(test)]
    pub(super) fn set_sequence(&self, df: bool, seq: u64) {
        self.next[usize::from(df)].store(seq, Ordering::Relaxed);
    }
}

/// 24 bytes: polarity of the sender, zeros, sequence word (docs/spec/data-plane.md 4.1).
fn nonce(sender_outbound: bool, word: [u8; SEQUENCE]) -> [u8; 24] {
    let mut nonce = [0; 24];
    nonce[0] = if sender_outbound { 0x80 } else { 0 };
    nonce[16..].copy_from_slice(&word);
    nonce
}

/// All 2^63 sequence numbers of a session are used: nothing may be sealed with its key any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceExhausted;

impl fmt::Display for SequenceExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sequence numbers exhausted")
    }
}

impl std::error::Error for SequenceExhausted {}

/// Makes datagrams in buffers of the caller:
///
/// ```text
/// plain       name 6 | records
/// encrypted   name 6 | DF bit and sequence number 8 | tag 16 | sealed records
/// record      source peer 6 | destination peer 6 | length 2 | Ethernet frame
/// ```
///
/// A datagram is begun as a [`DatagramBuilder`], filled, and finished once. The caller brings the same buffer to each call.
#[derive(Clone, Debug)]
pub struct Sealer {
    session: Arc<Session>,
}

/// How far an unsealed datagram is filled. The bytes are in the caller's buffer.
#[derive(Debug)]
pub struct DatagramBuilder {
    used: usize,
    records: usize,
}

impl DatagramBuilder {
    /// Frames in it.
    pub fn records(&self) -> usize {
        self.records
    }
}

impl Sealer {
    /// Any number of sealers may work for one session.
    pub fn new(session: Arc<Session>) -> Sealer {
        Sealer { session }
    }

    /// The session it works for.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// An empty datagram.
    pub fn begin(&self) -> DatagramBuilder {
        DatagramBuilder { used: self.session.start(), records: 0 }
    }

    /// Bytes of the datagram once it is finished.
    pub fn sealed_len(&self, draft: &DatagramBuilder) -> usize {
        draft.used - self.session.start() + self.session.packet_overhead()
    }

    /// Bytes of the datagram once it is finished, if a frame of `frame` bytes is added before.
    pub fn sealed_len_with(&self, draft: &DatagramBuilder, frame: usize) -> usize {
        self.sealed_len(draft) + RECORD_OVERHEAD + frame
    }

    /// Where the bytes of the next frame go, as far as `buf` has room; `None` if there is none for a record. Once they are
    /// written, [`add`](Sealer::add) makes them a record.
    pub fn space<'b>(&self, draft: &DatagramBuilder, buf: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let trailer = self.session.packet_overhead() - self.session.start();
        let start = draft.used + RECORD_OVERHEAD;
        let end = buf.len().checked_sub(trailer)?.min(start + usize::from(u16::MAX));
        buf.get_mut(start..end)
    }

    /// Makes a record of the first `len` bytes of [`space`](Sealer::space).
    ///
    /// # Panics
    /// If `len` is more than that space.
    pub fn add(&self, draft: &mut DatagramBuilder, buf: &mut [u8], src: PeerName, dst: PeerName, len: usize) {
        let room = self.space(draft, buf).map(|space| space.len());
        assert!(room.is_some_and(|room| len <= room), "a record of {len} bytes in a space of {room:?}");
        let header = &mut buf[draft.used..draft.used + RECORD_OVERHEAD];
        header[..6].copy_from_slice(&src.to_bytes());
        header[6..12].copy_from_slice(&dst.to_bytes());
        header[12..].copy_from_slice(&(len as u16).to_be_bytes());
        draft.used += RECORD_OVERHEAD + len;
        draft.records += 1;
    }

    /// Adds a record with a copy of `frame`. `false`, and nothing done, if `buf` has no room for it.
    #[must_use]
    pub fn push(
        &self,
        draft: &mut DatagramBuilder,
        buf: &mut [u8],
        src: PeerName,
        dst: PeerName,
        frame: &[u8],
    ) -> bool {
        let Some(space) = self.space(draft, buf).and_then(|space| space.get_mut(..frame.len())) else {
            return false;
        };
        space.copy_from_slice(frame);
        self.add(draft, buf, src, dst, frame.len());
        true
    }

    /// Seals the datagram in place and returns its length. `df` says which of the two sequences it takes its number
    /// from, and must be how the datagram is sent.
    ///
    /// # Panics
    /// If `buf` is shorter than [`sealed_len`](Sealer::sealed_len): it is not the buffer that the draft was filled in.
    pub fn finish(
        &self,
        draft: DatagramBuilder,
        buf: &mut [u8],
        df: bool,
    ) -> Result<usize, SequenceExhausted> {
        let config = &self.session.config;
        let len = self.sealed_len(&draft);
        buf[..NAME].copy_from_slice(&config.own.to_bytes());
        if let Some(key) = &config.key {
            let seq = self.session.next_sequence(df)?;
            let word = (seq | if df { DF_BIT } else { 0 }).to_be_bytes();
            buf[NAME..NAME + SEQUENCE].copy_from_slice(&word);
            // Fails only for buffers shorter than a tag; it moves the records up by the tag's length.
            crypto_secretbox_easy_inplace(&mut buf[NAME + SEQUENCE..len], &nonce(config.outbound, word), key)
                .expect("the slice begins with room for the tag");
        }
        Ok(len)
    }
}

/// Takes the neighbour's datagrams apart. One per session: it has the replay windows.
#[derive(Debug)]
pub struct Opener {
    session: Arc<Session>,
    /// Of non-DF (0) and DF (1) datagrams.
    windows: [ReplayWindow; 2],
}

impl Opener {
    /// Nothing received yet.
    pub fn new(session: Arc<Session>) -> Opener {
        Opener { session, windows: Default::default() }
    }

    /// The session it works for.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Authenticates and decrypts a datagram in place. The sender's name has been looked at already, to find this
    /// opener: [`sender`].
    pub fn open<'d>(&mut self, datagram: &'d mut [u8]) -> Result<Records<'d>, OpenError> {
        let len = datagram.len();
        let (_, body) = datagram.split_at_mut_checked(NAME).ok_or(OpenError::TooShort { len })?;
        let Some(key) = &self.session.config.key else {
            return Ok(Records { rest: body });
        };
        let len = body.len();
        let (word, sealed) = body.split_first_chunk_mut::<SEQUENCE>().ok_or(OpenError::NoSequence { len })?;
        let nonce = nonce(!self.session.config.outbound, *word);
        crypto_secretbox_open_easy_inplace(sealed, &nonce, key).map_err(|_| OpenError::Forged)?;
        let word = u64::from_be_bytes(*word);
        if !self.windows[usize::from(word & DF_BIT != 0)].accept(word & !DF_BIT) {
            return Err(OpenError::Replayed);
        }
        // The records have moved down by the length of the tag.
        let records = sealed.len() - TAG;
        Ok(Records { rest: &sealed[..records] })
    }
}

/// The peer that a datagram says it is from; `None` if it is too short to say.
pub fn sender(datagram: &[u8]) -> Option<PeerName> {
    datagram.first_chunk().map(|name| PeerName::from_bytes(*name))
}

/// One frame of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'d> {
    /// The peer whose local bridge the frame came from.
    pub src: PeerName,
    /// The peer that is to deliver it.
    pub dst: PeerName,
    /// The Ethernet frame; not checked, may be empty.
    pub frame: &'d [u8],
}

/// The records of a datagram. Those before a malformed one are good, as in the original.
#[derive(Clone, Debug)]
pub struct Records<'d> {
    rest: &'d [u8],
}

impl<'d> Iterator for Records<'d> {
    type Item = Result<Record<'d>, OpenError>;

    fn next(&mut self) -> Option<Result<Record<'d>, OpenError>> {
        let rest = std::mem::take(&mut self.rest);
        let Some((header, rest)) = rest.split_first_chunk::<RECORD_OVERHEAD>() else {
            return (!rest.is_empty()).then_some(Err(OpenError::Trailing { len: rest.len() }));
        };
        let [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5, l0, l1] = *header;
        let expected = usize::from(u16::from_be_bytes([l0, l1]));
        let Some((frame, rest)) = rest.split_at_checked(expected) else {
            return Some(Err(OpenError::Truncated { expected, len: rest.len() }));
        };
        self.rest = rest;
        let src = PeerName::from_bytes([s0, s1, s2, s3, s4, s5]);
        let dst = PeerName::from_bytes([d0, d1, d2, d3, d4, d5]);
        Some(Ok(Record { src, dst, frame }))
    }
}

/// Why a datagram, or the rest of one, was not taken. All are the sender's or the network's doing, and none ends the
/// connection. The texts are the original's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// No room for the sender's name.
    TooShort {
        /// Bytes in the datagram.
        len: usize,
    },
    /// Encrypted, but no room for the sequence number.
    NoSequence {
        /// Bytes after the sender's name.
        len: usize,
    },
    /// Not made with our key, from our other end, or damaged.
    Forged,
    /// Seen before, or too old to tell. The original is silent about it.
    Replayed,
    /// A frame is said to be longer than what is left.
    Truncated {
        /// Its declared length.
        expected: usize,
        /// Bytes left.
        len: usize,
    },
    /// Bytes after the last record.
    Trailing {
        /// How many.
        len: usize,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::TooShort { .. } => f.write_str("ignoring too short UDP packet"),
            OpenError::NoSequence { len } => write!(
                f,
                "Failed to decode packet: encrypted UDP packet too short; expected length >= 8, got {len}"
            ),
            OpenError::Forged => f.write_str("Failed to decode packet: UDP packet decryption failed"),
            OpenError::Replayed => f.write_str("replayed UDP packet"),
            OpenError::Truncated { expected, len } => write!(
                f,
                "Failed to decode packet: too short; expected frame of length {expected}, got {len}"
            ),
            OpenError::Trailing { len } => {
                write!(f, "Failed to decode packet: {len} octets of trailing garbage")
            }
        }
    }
}

impl std::error::Error for OpenError {}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 1]);
    const B: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 2]);

    fn config(outbound: bool) -> SessionConfig {
        let (own, remote) = if outbound { (A, B) } else { (B, A) };
        let key = Some(std::array::from_fn(|i| i as u8));
        SessionConfig {
            own,
            remote,
            conn: ConnectionId(1),
            uid: ConnectionUid(0x1122334455667788),
            outbound,
            key,
        }
    }

    fn seal(sealer: &Sealer, df: bool, frame: &[u8]) -> Result<Vec<u8>, SequenceExhausted> {
        let mut buf = vec![0; sealer.sealed_len_with(&sealer.begin(), frame.len())];
        let mut draft = sealer.begin();
        assert!(sealer.push(&mut draft, &mut buf, A, B, frame));
        assert_eq!(sealer.finish(draft, &mut buf, df)?, buf.len());
        Ok(buf)
    }

    #[test]
    fn any_sequence_number_seals_as_the_original_does() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/data-plane/sleeve_encrypted.json");
        let vectors: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let case = vectors["valid"].as_array().unwrap().iter().find(|v| v["seq_hex"].is_string()).unwrap();
        let session = Session::new(config(true));
        session.set_sequence(true, u64::from_str_radix(case["seq_hex"].as_str().unwrap(), 16).unwrap());
        let frame = hex::decode(case["frames"][0]["frame"].as_str().unwrap()).unwrap();
        let sealed = seal(&Sealer::new(session), true, &frame).unwrap();
        assert_eq!(hex::encode(sealed), case["packet"].as_str().unwrap());
    }

    #[test]
    fn exhausted_sequences_stay_exhausted() {
        let session = Session::new(config(true));
        session.set_sequence(true, DF_BIT - 1);
        let sealer = Sealer::new(session.clone());
        assert!(seal(&sealer, true, &[1; 60]).is_ok());
        for _ in 0..3 {
            assert_eq!(seal(&sealer, true, &[1; 60]), Err(SequenceExhausted));
        }
        session.set_sequence(true, u64::MAX);
        for _ in 0..3 {
            assert_eq!(
                seal(&sealer, true, &[1; 60]),
                Err(SequenceExhausted),
                "no wrap to numbers used before"
            );
        }
        assert!(seal(&sealer, false, &[1; 60]).is_ok(), "the other sequence goes on");
    }

    #[test]
    fn threads_share_a_session_without_using_a_number_twice() {
        let session = Session::new(config(true));
        let mut seen: Vec<u64> = Vec::new();
        std::thread::scope(|scope| {
            let run = || (0..1000).map(|_| session.next_sequence(true).unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            seen.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap()));
        });
        seen.sort_unstable();
        assert_eq!(seen, (0..4000).collect::<Vec<_>>());
    }

    #[test]
    fn debug_output_has_no_key() {
        let text = format!("{:?}", Session::new(config(true)));
        assert!(text.contains("encrypted: true") && !text.contains("key"), "{text}");
    }
}
