//! Keys and encrypted messages of a connection with a password (docs/spec/mesh.md 4.5, 4.6).
//!
//! ```text
//! shared  = HSalsa20(key = X25519(own private, remote public), input = 16 zero bytes)
//! session = SHA-256(shared ++ password)
//! message -> secretbox(session, nonce(direction, sequence), message) = tag[16] ++ ciphertext
//! ```

use std::fmt;

use dryoc::classic::crypto_core::crypto_core_hsalsa20;
use dryoc::classic::crypto_secretbox::{crypto_secretbox_detached, crypto_secretbox_open_detached};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

/// A password. It is not empty and is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Returns `None` for no bytes, which means no password.
    pub fn new(password: impl Into<Vec<u8>>) -> Option<Secret> {
        let password = password.into();
        (!password.is_empty()).then_some(Secret(password))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Number of bytes that encryption adds to a message: the authentication tag.
pub const BOX_OVERHEAD: usize = 16;

/// The remote's public key gives a shared secret of zero, whatever our private key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("remote sent a public key of low order")]
pub struct WeakKey;

/// The X25519 public key that belongs to a private one.
pub fn public_key(private: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*private)).to_bytes()
}

/// The shared key before the password is mixed in: NaCl's `crypto_box_beforenm`.
///
/// # Errors
/// [`WeakKey`] if the shared secret is all zero. 2.8.1 does not check this (docs/spec/mesh.md 15.5).
pub fn shared_key(private: &[u8; 32], remote_public: &[u8; 32]) -> Result<[u8; 32], WeakKey> {
    let secret = StaticSecret::from(*private).diffie_hellman(&PublicKey::from(*remote_public));
    if !secret.was_contributory() {
        return Err(WeakKey);
    }
    let mut shared = [0; 32];
    crypto_core_hsalsa20(&mut shared, &[0; 16], secret.as_bytes(), None);
    Ok(shared)
}

/// The key of a connection, the same on both sides.
///
/// # Errors
/// As [`shared_key`].
pub fn session_key(
    private: &[u8; 32],
    remote_public: &[u8; 32],
    password: &Secret,
) -> Result<[u8; 32], WeakKey> {
    let shared = shared_key(private, remote_public)?;
    Ok(Sha256::new().chain_update(shared).chain_update(&password.0).finalize().into())
}

/// Nonces of one direction. The first byte holds the flags, the last eight the sequence number (docs/spec/mesh.md 4.6).
#[derive(Clone, Copy, Debug)]
struct Nonces {
    flags: u8,
    sequence: u64,
}

impl Nonces {
    /// Flag 0x80: the sender dialled. Flag 0x40: TCP; sleeve uses the same key without it.
    fn new(sender_is_outbound: bool) -> Nonces {
        Nonces { flags: 0x40 | u8::from(sender_is_outbound) << 7, sequence: 0 }
    }

    fn current(&self) -> [u8; 24] {
        let mut nonce = [0; 24];
        nonce[0] = self.flags;
        nonce[16..].copy_from_slice(&self.sequence.to_be_bytes());
        nonce
    }

    fn advance(&mut self) {
        // No connection lasts for 2^64 messages.
        self.sequence = self.sequence.wrapping_add(1);
    }
}

/// Encrypts the messages of one direction in order.
pub struct Sealer {
    key: [u8; 32],
    nonces: Nonces,
}

impl Sealer {
    /// `outbound` is true on the side that dialled.
    pub fn new(key: [u8; 32], outbound: bool) -> Sealer {
        Sealer { key, nonces: Nonces::new(outbound) }
    }

    /// Appends the encrypted `message` to `out`, [`BOX_OVERHEAD`] bytes more than its length.
    pub fn seal(&mut self, message: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + BOX_OVERHEAD + message.len(), 0);
        let (tag, ciphertext) = out[start..].split_at_mut(BOX_OVERHEAD);
        let mut mac = [0; BOX_OVERHEAD];
        crypto_secretbox_detached(ciphertext, &mut mac, message, &self.nonces.current(), &self.key)
            .expect("the buffer has the size of the message, which is shorter than 2^38 bytes");
        tag.copy_from_slice(&mac);
        self.nonces.advance();
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("nonces", &self.nonces).finish_non_exhaustive()
    }
}

/// Decrypts the messages of one direction in order.
pub struct Opener {
    key: [u8; 32],
    nonces: Nonces,
}

/// The bytes are not the next message encrypted with our key: the passwords differ, or the stream was altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CannotOpen;

impl Opener {
    /// `outbound` is true on the side that dialled.
    pub fn new(key: [u8; 32], outbound: bool) -> Opener {
        Opener { key, nonces: Nonces::new(!outbound) }
    }

    /// Decrypts a message.
    ///
    /// # Errors
    /// [`CannotOpen`]; the caller ends the connection.
    pub fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, CannotOpen> {
        let (tag, ciphertext) = sealed.split_first_chunk::<BOX_OVERHEAD>().ok_or(CannotOpen)?;
        let mut message = vec![0; ciphertext.len()];
        crypto_secretbox_open_detached(&mut message, ciphertext, tag, &self.nonces.current(), &self.key)
            .map_err(|_| CannotOpen)?;
        self.nonces.advance();
        Ok(message)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("nonces", &self.nonces).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_frames_are_encrypted_and_decrypted() {
        let json = crate::test_support::vector("encrypted_frames.json");
        let frames = json["frames"].as_array().unwrap();
        assert!(frames.len() > 30);
        for json in frames {
            let bytes = |key: &str| hex::decode(json[key].as_str().unwrap()).unwrap();
            let key: [u8; 32] = bytes("session_key").try_into().unwrap();
            let outbound = json["sender_is_outbound"].as_bool().unwrap();
            let sequence = json["seq_no"].as_str().unwrap().parse().unwrap();
            let (mut sealer, mut opener) = (Sealer::new(key, outbound), Opener::new(key, !outbound));
            sealer.nonces.sequence = sequence;
            opener.nonces.sequence = sequence;
            assert_eq!(sealer.nonces.current().to_vec(), bytes("nonce"));
            let mut sealed = Vec::new();
            sealer.seal(&bytes("plaintext"), &mut sealed);
            assert_eq!(sealed, bytes("box"));
            let mut altered = sealed.clone();
            *altered.last_mut().unwrap() ^= 1;
            assert_eq!(opener.open(&altered), Err(CannotOpen));
            assert_eq!(opener.open(&sealed[..BOX_OVERHEAD - 1]), Err(CannotOpen));
            assert_eq!(opener.open(&sealed), Ok(bytes("plaintext")));
            assert_eq!(opener.open(&sealed), Err(CannotOpen), "a sequence number is used once");
            assert_eq!(bytes("v2_frame"), [&(sealed.len() as u32).to_be_bytes()[..], &sealed].concat());
            let value = weave_gob::Decoder::new(&bytes("v1_frame")).next().unwrap().unwrap();
            assert_eq!(value.as_bytes(), Ok(&sealed[..]));
        }
    }
}
