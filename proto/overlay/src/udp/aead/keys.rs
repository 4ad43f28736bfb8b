//! The keys of one connection.
//!
//! ```text
//!   shared secret (X25519), mesh key --extract--> . --expand, names, UID, public keys, indices, cipher--> secret 0
//!   secret n --expand "key" direction--> key n of a direction        secret n --expand "next"--> secret n+1
//! ```
//!
//! Both directions have the same epoch. A peer that has reached a limit begins the next one by using it; its neighbour follows when it
//! receives the first datagram of it. Nobody begins an epoch before the neighbour has used the present one, so that the two never
//! differ by more than one, whatever is lost.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use weave_types::{ConnectionUid, Instant, PeerName};
use zeroize::Zeroizing;

use super::cipher::{Cipher, Forged, Key, TAG};
use super::header::{HEADER, Header, LANES};

/// When an epoch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// After so many datagrams of a lane, with and without the don't-fragment bit each. 2^23 of 64 kB are 2^35 blocks of AES, and those of
    /// all counters 2^39, which leaves an attacker an advantage of 2^-51 (the bound of RFC 9001 B.1).
    pub datagrams: u64,
    /// After so much time, which limits what a stolen key gives away.
    pub time: Duration,
}

impl Default for KeyLimits {
    fn default() -> KeyLimits {
        KeyLimits { datagrams: 1 << 23, time: Duration::from_secs(120) }
    }
}

/// What the keys of a connection are derived from. "Dialler" is the peer that opened the TCP connection.
pub struct KeyMaterial {
    /// The result of the key exchange.
    pub shared: Zeroizing<[u8; 32]>,
    /// The key of the mesh connection, if there is a password.
    pub mesh_key: Option<Zeroizing<[u8; 32]>>,
    /// The cipher of both directions.
    pub cipher: Cipher,
    /// Number of the connection.
    pub uid: ConnectionUid,
    /// Names of dialler and acceptor.
    pub names: [PeerName; 2],
    /// Public keys of dialler and acceptor.
    pub public_keys: [[u8; 32]; 2],
    /// The indices that dialler and acceptor have chosen for what they receive.
    pub indices: [u32; 2],
    /// Whether the owner of the keys is the dialler.
    pub outbound: bool,
}

impl KeyMaterial {
    fn secret(&self) -> Secret {
        let mut input = Zeroizing::new([0; 64]);
        input[..32].copy_from_slice(&*self.shared);
        let used = match &self.mesh_key {
            Some(key) => {
                input[32..].copy_from_slice(&**key);
                64
            }
            None => 32,
        };
        let extracted = Salt::new(HKDF_SHA256, b"weave warp 1").extract(&input[..used]);
        let [dialler, acceptor] = self.names.map(PeerName::to_bytes);
        let [dialler_index, acceptor_index] = self.indices.map(u32::to_be_bytes);
        expand(
            &extracted,
            &[
                b"connection",
                &[self.cipher as u8],
                &self.uid.0.to_be_bytes(),
                &dialler,
                &acceptor,
                &self.public_keys[0],
                &self.public_keys[1],
                &dialler_index,
                &acceptor_index,
            ],
        )
    }
}

type Secret = Zeroizing<[u8; 32]>;

/// The length of what is derived.
struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

fn expand(secret: &Prk, info: &[&[u8]]) -> Secret {
    let mut out = Zeroizing::new([0; 32]);
    secret
        .expand(info, Bytes32)
        .and_then(|okm| okm.fill(&mut *out))
        .expect("32 bytes are below the limit of HKDF");
    out
}

/// The keys of one connection, shared by all its sealers and openers.
pub struct Keys {
    cipher: Cipher,
    outbound: bool,
    own_index: u32,
    remote_index: u32,
    limits: KeyLimits,
    epoch: RwLock<Epoch>,
    /// The counters of each lane, without and with the don't-fragment bit, at which the next epoch begins. They never start again.
    ends_at: [[AtomicU64; 2]; LANES],
    /// Whether the neighbour has used the epoch.
    is_shared: AtomicBool,
}

struct Epoch {
    number: u32,
    secret: Secret,
    /// When the epoch was first seen.
    since: Option<Instant>,
    sending: Key,
    /// The keys for datagrams of the epochs before, now and after.
    previous: Option<Key>,
    current: Key,
    next: Key,
}

impl Keys {
    /// Creates the keys of epoch 0.
    pub fn new(material: &KeyMaterial, limits: KeyLimits) -> Keys {
        let KeyMaterial { cipher, outbound, indices, .. } = *material;
        let secret = material.secret();
        let [own_index, remote_index] = if outbound { indices } else { [indices[1], indices[0]] };
        let epoch = Epoch {
            number: 0,
            since: None,
            sending: key(cipher, &secret, outbound),
            previous: None,
            current: key(cipher, &secret, !outbound),
            next: key(cipher, &next_secret(&secret), !outbound),
            secret,
        };
        Keys {
            cipher,
            outbound,
            own_index,
            remote_index,
            limits,
            epoch: RwLock::new(epoch),
            ends_at: [[limits.datagrams; 2]; LANES].map(|ends| ends.map(AtomicU64::new)),
            is_shared: AtomicBool::new(false),
        }
    }

    /// The index in datagrams for this peer.
    pub fn own_index(&self) -> u32 {
        self.own_index
    }

    /// The cipher.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Number of the epoch.
    pub fn epoch(&self) -> u32 {
        self.read().number
    }

    /// Time passes: begins the next epoch if the present one is old.
    pub(crate) fn handle_time(&self, counters: [[u64; 2]; LANES], now: Instant) {
        let mut epoch = self.write();
        let since = *epoch.since.get_or_insert(now);
        if now.saturating_since(since) >= self.limits.time && self.is_shared.load(Ordering::Relaxed) {
            self.advance(&mut epoch, counters, false);
        }
    }

    /// Seals a datagram of a lane, which has room for the header in front and the tag at the end. `counters` are those after this datagram.
    pub(crate) fn seal(
        &self,
        lane: usize,
        word: u64,
        datagram: &mut [u8],
        counters: impl Fn() -> [[u64; 2]; LANES],
    ) {
        let end = &self.ends_at[lane][(word >> 63) as usize];
        let is_over =
            || word << 1 >> 1 >= end.load(Ordering::Relaxed) && self.is_shared.load(Ordering::Relaxed);
        if is_over() {
            let mut epoch = self.write();
            // Another thread may have been faster.
            if is_over() {
                self.advance(&mut epoch, counters(), false);
            }
        }
        let epoch = self.read();
        let header = Header { epoch: epoch.number as u8, lane: lane as u16, index: self.remote_index, word };
        let bytes = header.encode();
        let (head, sealed) = datagram.split_at_mut(HEADER);
        let (body, tag) = sealed.split_at_mut(sealed.len() - TAG);
        head.copy_from_slice(&bytes);
        tag.copy_from_slice(&epoch.sending.seal(header.nonce(), &bytes, body));
    }

    /// Opens a datagram. The caller checks that it is none of the past, and then passes the epoch to
    /// [`note_received`](Keys::note_received).
    pub(crate) fn open<'d>(
        &self,
        header: &Header,
        bytes: &[u8; HEADER],
        sealed: &'d mut [u8],
    ) -> Result<(u32, &'d mut [u8]), Forged> {
        let epoch = self.read();
        let (number, key) = match header.epoch.wrapping_sub(epoch.number as u8) {
            0 => (epoch.number, &epoch.current),
            1 => (epoch.number.wrapping_add(1), &epoch.next),
            u8::MAX => (epoch.number.wrapping_sub(1), epoch.previous.as_ref().ok_or(Forged)?),
            _ => return Err(Forged),
        };
        if usize::from(header.lane) >= LANES || header.index != self.own_index {
            return Err(Forged);
        }
        Ok((number, key.open(header.nonce(), bytes, sealed)?))
    }

    /// An authentic datagram of an epoch has arrived for the first time.
    pub(crate) fn note_received(&self, number: u32, counters: impl Fn() -> [[u64; 2]; LANES]) {
        if self.is_shared.load(Ordering::Relaxed) && self.read().number == number {
            return;
        }
        let mut epoch = self.write();
        if number == epoch.number.wrapping_add(1) {
            self.advance(&mut epoch, counters(), true);
        } else if number == epoch.number {
            self.is_shared.store(true, Ordering::Relaxed);
        }
    }

    fn advance(&self, epoch: &mut Epoch, counters: [[u64; 2]; LANES], is_shared: bool) {
        let secret = next_secret(&epoch.secret);
        let next = key(self.cipher, &next_secret(&secret), !self.outbound);
        epoch.previous =
            Some(std::mem::replace(&mut epoch.current, std::mem::replace(&mut epoch.next, next)));
        epoch.sending = key(self.cipher, &secret, self.outbound);
        epoch.secret = secret;
        epoch.number = epoch.number.wrapping_add(1);
        epoch.since = None;
        for (end, counter) in self.ends_at.as_flattened().iter().zip(counters.as_flattened()) {
            end.store(counter.saturating_add(self.limits.datagrams), Ordering::Relaxed);
        }
        self.is_shared.store(is_shared, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Epoch> {
        self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Epoch> {
        self.epoch.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(cipher: Cipher, secret: &Secret, by_dialler: bool) -> Key {
    let secret = Prk::new_less_safe(HKDF_SHA256, &**secret);
    Key::new(cipher, &expand(&secret, &[b"key", &[u8::from(by_dialler)]]))
}

fn next_secret(secret: &Secret) -> Secret {
    expand(&Prk::new_less_safe(HKDF_SHA256, &**secret), &[b"next"])
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("cipher", &self.cipher)
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}
