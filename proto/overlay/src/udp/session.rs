use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dryoc::classic::crypto_secretbox::{crypto_secretbox_easy_inplace, crypto_secretbox_open_easy_inplace};
use weave_switch::frame::ETHERNET_HEADER;
use weave_types::{ConnectionId, ConnectionUid, Instant, PeerName};

use super::aead::{HEADER, Header, Keys, LANES};
use super::replay::ReplayWindow;
use crate::select::Overlay;
use crate::traffic::Traffic;

/// Bytes before each frame: source peer, destination peer, length.
pub const RECORD_OVERHEAD: usize = 14;
/// Bytes of the largest UDP payload over IPv4; the limit for datagrams that may be fragmented.
pub const MAX_DATAGRAM: usize = 65507;

const NAME_LEN: usize = 6;
const SEQUENCE_LEN: usize = 8;
const TAG_LEN: usize = 16;
/// Marks sequence numbers of datagrams with the don't-fragment bit, which are counted separately.
const DF_BIT: u64 = 1 << 63;
/// Bytes of the outer IPv4 and UDP headers.
pub(super) const OUTER_HEADERS: usize = 28;
/// The same for IPv6.
pub(super) const IPV6_HEADERS: usize = 48;

/// Keys, counters and replay windows of one connection, shared by all sealers and openers. The counters are atomic, so that several
/// threads can seal without a lock and no nonce is used twice.
pub struct Session {
    config: SessionConfig,
    /// The keys of warp; without them the session is one of sleeve.
    warp: Option<Keys>,
    /// The counters of each lane. Sleeve has only the first.
    next: [Counters; LANES],
    /// What has been received of each lane, since its first authentic datagram.
    received: [OnceLock<Box<Mutex<Windows>>>; LANES],
    traffic: Traffic,
}

/// Next sequence number of non-DF (0) and DF (1) datagrams. Threads that use different lanes share no cache line.
#[derive(Default)]
#[repr(align(64))]
struct Counters([AtomicU64; 2]);

/// The windows of non-DF (0) and DF (1) datagrams.
type Windows = [ReplayWindow; 2];

/// Parameters of a [`Session`].
#[derive(Clone)]
pub struct SessionConfig {
    /// Name of this peer.
    pub own: PeerName,
    /// Name of the neighbour.
    pub remote: PeerName,
    /// Local handle of the connection.
    pub conn: ConnectionId,
    /// Number that heartbeats carry.
    pub uid: ConnectionUid,
    /// Whether this side opened the TCP connection, which decides the polarity of the nonces.
    pub outbound: bool,
    /// The key of the mesh session, if there is one: sleeve seals with it.
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
    /// Creates a session with both sequence counters at zero. There must never be two for the same key and polarity.
    pub fn new(config: SessionConfig) -> Arc<Session> {
        Session::with(config, None)
    }

    /// Creates a session of warp. There must never be two with the same keys.
    pub fn with_keys(config: SessionConfig, keys: Keys) -> Arc<Session> {
        Session::with(SessionConfig { key: None, ..config }, Some(keys))
    }

    fn with(config: SessionConfig, warp: Option<Keys>) -> Arc<Session> {
        Arc::new(Session {
            config,
            warp,
            next: Default::default(),
            received: Default::default(),
            traffic: Traffic::default(),
        })
    }

    /// The overlay: sleeve or warp.
    pub fn overlay(&self) -> Overlay {
        if self.warp.is_some() { Overlay::Warp } else { Overlay::Sleeve }
    }

    /// The keys of warp.
    pub fn keys(&self) -> Option<&Keys> {
        self.warp.as_ref()
    }

    /// Time passes, which ends epochs of warp.
    pub(super) fn handle_time(&self, now: Instant) {
        if let Some(keys) = &self.warp {
            keys.handle_time(self.counters(), now);
        }
    }

    /// Name of this peer.
    pub fn own(&self) -> PeerName {
        self.config.own
    }

    /// Name of the neighbour.
    pub fn remote(&self) -> PeerName {
        self.config.remote
    }

    /// Local handle of the connection.
    pub fn conn(&self) -> ConnectionId {
        self.config.conn
    }

    /// Number that heartbeats carry.
    pub fn uid(&self) -> ConnectionUid {
        self.config.uid
    }

    /// What has been sent and received.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Whether datagrams are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.config.key.is_some() || self.warp.is_some()
    }

    /// Bytes of a datagram around its records: 6 plain, 30 encrypted, 32 in warp.
    pub fn packet_overhead(&self) -> usize {
        self.records_offset() + if self.is_encrypted() { TAG_LEN } else { 0 }
    }

    /// Bytes that encapsulation adds to an inner IP packet that is alone in its datagram: Ethernet header, record, packet,
    /// UDP and IPv4 header. 62 plain, 86 encrypted, 88 in warp (docs/spec/data-plane.md 4.5).
    pub fn overhead(&self) -> usize {
        ETHERNET_HEADER + RECORD_OVERHEAD + self.packet_overhead() + OUTER_HEADERS
    }

    /// Offset of the records in an unsealed datagram. Encryption by sleeve moves them by the tag's length.
    fn records_offset(&self) -> usize {
        match (&self.warp, self.config.key) {
            (Some(_), _) => HEADER,
            (None, Some(_)) => NAME_LEN + SEQUENCE_LEN,
            (None, None) => NAME_LEN,
        }
    }

    /// The next sequence numbers of non-DF (0) and DF (1) datagrams of each lane.
    fn counters(&self) -> [[u64; 2]; LANES] {
        self.next.each_ref().map(|Counters(next)| next.each_ref().map(|next| next.load(Ordering::Relaxed)))
    }

    /// Takes the next sequence number of a lane. An exhausted 63-bit counter stays exhausted.
    fn next_sequence(&self, lane: usize, df: bool) -> Result<u64, SequenceExhausted> {
        let next = &self.next[lane].0[usize::from(df)];
        let seq = next.fetch_add(1, Ordering::Relaxed);
        if seq < DF_BIT {
            return Ok(seq);
        }
        next.store(DF_BIT, Ordering::Relaxed);
        Err(SequenceExhausted)
    }

    /// Marks the sequence number of an authentic datagram as received. Returns `false` if it was before, or is too old.
    fn accept(&self, lane: usize, word: u64) -> bool {
        let windows = self.received[lane].get_or_init(Default::default);
        let mut windows = windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows[usize::from(word & DF_BIT != 0)].accept(word & !DF_BIT)
    }

    #[cfg(test)]
    pub(super) fn set_sequence(&self, df: bool, seq: u64) {
        self.next[0].0[usize::from(df)].store(seq, Ordering::Relaxed);
    }
}

/// Nonce of a datagram: polarity of the sender, zeros, sequence word (docs/spec/data-plane.md 4.1).
fn nonce(sender_outbound: bool, word: [u8; SEQUENCE_LEN]) -> [u8; 24] {
    let mut nonce = [0; 24];
    nonce[0] = if sender_outbound { 0x80 } else { 0 };
    nonce[16..].copy_from_slice(&word);
    nonce
}

/// All 2^63 sequence numbers of a session are used: nothing may be sealed with its key any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sequence numbers exhausted")]
pub struct SequenceExhausted;

/// Builds datagrams in buffers of the caller:
///
/// ```text
/// plain       name 6 | records
/// encrypted   name 6 | DF bit and sequence number 8 | tag 16 | sealed records
/// warp        header 16 | sealed records | tag 16
/// record      source peer 6 | destination peer 6 | length 2 | Ethernet frame
/// ```
///
/// A [`DatagramBuilder`] tracks one datagram from [`begin`](Sealer::begin) to [`finish`](Sealer::finish). The caller passes
/// the same buffer to each call.
#[derive(Clone, Debug)]
pub struct Sealer {
    session: Arc<Session>,
    lane: usize,
}

/// Progress of an unsealed datagram, whose bytes are in the caller's buffer.
#[derive(Debug)]
pub struct DatagramBuilder {
    used: usize,
    records: usize,
}

impl DatagramBuilder {
    /// Number of frames added.
    pub fn records(&self) -> usize {
        self.records
    }
}

impl Sealer {
    /// Creates a sealer. A session may have any number of them.
    pub fn new(session: Arc<Session>) -> Sealer {
        Sealer { session, lane: 0 }
    }

    /// The same on another lane, if the session is one of warp: threads that use different ones do not wait for each other, here and at
    /// the neighbour (docs/spec/warp.md 2). From [`LANES`] on the numbers begin at 0 again.
    pub fn on_lane(self, lane: usize) -> Sealer {
        let lane = if self.session.warp.is_some() { lane % LANES } else { 0 };
        Sealer { lane, ..self }
    }

    /// The session that it seals with.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Starts an empty datagram.
    pub fn begin(&self) -> DatagramBuilder {
        DatagramBuilder { used: self.session.records_offset(), records: 0 }
    }

    /// Length of the finished datagram.
    pub fn sealed_len(&self, builder: &DatagramBuilder) -> usize {
        builder.used - self.session.records_offset() + self.session.packet_overhead()
    }

    /// Bytes of the datagram once it is finished, if a frame of `frame` bytes is added before.
    pub fn sealed_len_with(&self, builder: &DatagramBuilder, frame: usize) -> usize {
        self.sealed_len(builder) + RECORD_OVERHEAD + frame
    }

    /// The part of `buf` that the next frame is to be written to, before [`add`](Sealer::add); `None` if there is no room for
    /// a record.
    pub fn space<'b>(&self, builder: &DatagramBuilder, buf: &'b mut [u8]) -> Option<&'b mut [u8]> {
        let trailer = self.session.packet_overhead() - self.session.records_offset();
        let start = builder.used + RECORD_OVERHEAD;
        let end = buf.len().checked_sub(trailer)?.min(start + usize::from(u16::MAX));
        buf.get_mut(start..end)
    }

    /// Turns the first `len` bytes of [`space`](Sealer::space) into a record.
    ///
    /// # Panics
    /// If `len` is more than that space.
    pub fn add(
        &self,
        builder: &mut DatagramBuilder,
        buf: &mut [u8],
        src: PeerName,
        dst: PeerName,
        len: usize,
    ) {
        let room = self.space(builder, buf).map(|space| space.len());
        assert!(room.is_some_and(|room| len <= room), "a record of {len} bytes in a space of {room:?}");
        let header = &mut buf[builder.used..builder.used + RECORD_OVERHEAD];
        header[..6].copy_from_slice(&src.to_bytes());
        header[6..12].copy_from_slice(&dst.to_bytes());
        header[12..].copy_from_slice(&(len as u16).to_be_bytes());
        builder.used += RECORD_OVERHEAD + len;
        builder.records += 1;
    }

    /// Adds a record with a copy of `frame`. Returns `false`, without a change, if `buf` has no room for it.
    #[must_use]
    pub fn push(
        &self,
        builder: &mut DatagramBuilder,
        buf: &mut [u8],
        src: PeerName,
        dst: PeerName,
        frame: &[u8],
    ) -> bool {
        let Some(space) = self.space(builder, buf).and_then(|space| space.get_mut(..frame.len())) else {
            return false;
        };
        space.copy_from_slice(frame);
        self.add(builder, buf, src, dst, frame.len());
        true
    }

    /// Seals the datagram in place and returns its length. `df` selects the sequence that the number is taken from; the
    /// datagram must be sent with the same don't-fragment bit.
    ///
    /// # Panics
    /// If `buf` is shorter than [`sealed_len`](Sealer::sealed_len).
    pub fn finish(
        &self,
        builder: DatagramBuilder,
        buf: &mut [u8],
        df: bool,
    ) -> Result<usize, SequenceExhausted> {
        let config = &self.session.config;
        let len = self.sealed_len(&builder);
        if let Some(keys) = &self.session.warp {
            let seq = self.session.next_sequence(self.lane, df)?;
            let word = seq | if df { DF_BIT } else { 0 };
            keys.seal(self.lane, word, &mut buf[..len], || self.session.counters());
            return Ok(len);
        }
        buf[..NAME_LEN].copy_from_slice(&config.own.to_bytes());
        if let Some(key) = &config.key {
            let seq = self.session.next_sequence(self.lane, df)?;
            let word = (seq | if df { DF_BIT } else { 0 }).to_be_bytes();
            buf[NAME_LEN..NAME_LEN + SEQUENCE_LEN].copy_from_slice(&word);
            // This moves the records up by the tag's length. It fails only for buffers shorter than a tag.
            crypto_secretbox_easy_inplace(
                &mut buf[NAME_LEN + SEQUENCE_LEN..len],
                &nonce(config.outbound, word),
                key,
            )
            .expect("the slice begins with room for the tag");
        }
        Ok(len)
    }
}

/// Authenticates and decrypts a neighbour's datagrams.
#[derive(Debug)]
pub struct Opener {
    session: Arc<Session>,
}

impl Opener {
    /// Creates an opener. A session may have any number of them.
    pub fn new(session: Arc<Session>) -> Opener {
        Opener { session }
    }

    /// The session that it opens with.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Authenticates and decrypts a datagram in place. The caller has found this opener by the name of the [`sender`] or, for warp, by
    /// its index.
    pub fn open<'d>(&self, datagram: &'d mut [u8]) -> Result<Records<'d>, OpenError> {
        let len = datagram.len();
        if let Some(keys) = &self.session.warp {
            let (header, bytes, sealed) = Header::split(datagram).ok_or(OpenError::TooShort { len })?;
            let (epoch, records) = keys.open(&header, bytes, sealed).map_err(|_| OpenError::Forged)?;
            if !self.session.accept(usize::from(header.lane), header.word) {
                return Err(OpenError::Replayed);
            }
            keys.note_received(epoch, || self.session.counters());
            return Ok(Records { rest: records });
        }
        let (_, body) = datagram.split_at_mut_checked(NAME_LEN).ok_or(OpenError::TooShort { len })?;
        let Some(key) = &self.session.config.key else {
            return Ok(Records { rest: body });
        };
        let len = body.len();
        let (word, sealed) =
            body.split_first_chunk_mut::<SEQUENCE_LEN>().ok_or(OpenError::NoSequence { len })?;
        let nonce = nonce(!self.session.config.outbound, *word);
        crypto_secretbox_open_easy_inplace(sealed, &nonce, key).map_err(|_| OpenError::Forged)?;
        let word = u64::from_be_bytes(*word);
        if !self.session.accept(0, word) {
            return Err(OpenError::Replayed);
        }
        // The records have moved down by the length of the tag.
        let records = sealed.len() - TAG_LEN;
        Ok(Records { rest: &sealed[..records] })
    }
}

/// The peer that a datagram claims to be from; `None` if it is too short for a name.
pub fn sender(datagram: &[u8]) -> Option<PeerName> {
    datagram.first_chunk().map(|name| PeerName::from_bytes(*name))
}

/// One frame of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'d> {
    /// The peer that captured the frame from its local bridge.
    pub src: PeerName,
    /// The peer that is to deliver the frame.
    pub dst: PeerName,
    /// The Ethernet frame: unchecked, possibly empty.
    pub frame: &'d [u8],
}

/// The records of a datagram. Records before a malformed one are valid, as in 2.8.1.
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

/// Why a datagram, or the rest of one, was dropped. The sender or the network caused it, and it does not end the connection.
/// The texts are those of 2.8.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The datagram is shorter than a peer name, or than the header of warp.
    #[error("ignoring too short UDP packet")]
    TooShort {
        /// Bytes in the datagram.
        len: usize,
    },
    /// The session is encrypted, but the datagram has no complete sequence number.
    #[error("Failed to decode packet: encrypted UDP packet too short; expected length >= 8, got {len}")]
    NoSequence {
        /// Bytes after the sender's name.
        len: usize,
    },
    /// The datagram was sealed with another key or polarity, or was damaged.
    #[error("Failed to decode packet: UDP packet decryption failed")]
    Forged,
    /// The sequence number was received before or is too old. 2.8.1 logs nothing here.
    #[error("replayed UDP packet")]
    Replayed,
    /// The length of a frame exceeds what is left of the datagram.
    #[error("Failed to decode packet: too short; expected frame of length {expected}, got {len}")]
    Truncated {
        /// Declared length of the frame.
        expected: usize,
        /// Bytes left.
        len: usize,
    },
    /// There are bytes after the last record.
    #[error("Failed to decode packet: {len} octets of trailing garbage")]
    Trailing {
        /// Number of bytes.
        len: usize,
    },
}

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
        let mut builder = sealer.begin();
        assert!(sealer.push(&mut builder, &mut buf, A, B, frame));
        assert_eq!(sealer.finish(builder, &mut buf, df)?, buf.len());
        Ok(buf)
    }

    #[test]
    fn a_large_sequence_number_seals_as_2_8_1_does() {
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
                "the counter does not wrap to used numbers"
            );
        }
        assert!(seal(&sealer, false, &[1; 60]).is_ok(), "the other sequence is independent");
    }

    #[test]
    fn concurrent_threads_never_get_the_same_sequence_number() {
        let session = Session::new(config(true));
        let mut seen: Vec<u64> = Vec::new();
        std::thread::scope(|scope| {
            let run = || (0..1000).map(|_| session.next_sequence(0, true).unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            seen.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap()));
        });
        seen.sort_unstable();
        assert_eq!(seen, (0..4000).collect::<Vec<_>>());
    }

    #[test]
    fn debug_output_omits_the_key() {
        let text = format!("{:?}", Session::new(config(true)));
        assert!(text.contains("encrypted: true") && !text.contains("key"), "{text}");
    }
}
