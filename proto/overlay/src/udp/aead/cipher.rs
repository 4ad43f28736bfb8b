//! The authenticated ciphers of warp, and nothing else that depends on the library that has them.

use std::fmt;
use std::hint::black_box;

use ring::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes that sealing adds at the end.
pub const TAG: usize = 16;

/// A cipher; the number is the one on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// Faster where the processor has instructions for AES and carry-less multiplication. It is used if both peers prefer it.
    Aes256Gcm = 1,
    /// Fast on every processor.
    ChaCha20Poly1305 = 2,
}

impl Cipher {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Cipher::Aes256Gcm => &AES_256_GCM,
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

/// The datagram was sealed with another key, or was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forged;

/// A key that is ready for use.
pub(super) struct Key {
    cipher: Cipher,
    expanded: LessSafeKey,
}

impl Key {
    pub(super) fn new(cipher: Cipher, bytes: &[u8; 32]) -> Key {
        Key { cipher, expanded: expand(cipher, bytes) }
    }

    /// Encrypts `body` and returns its tag, which also covers `header`.
    pub(super) fn seal(&self, nonce: [u8; NONCE_LEN], header: &[u8], body: &mut [u8]) -> [u8; TAG] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.expanded.seal_in_place_separate_tag(nonce, Aad::from(header), body);
        // Only bodies of more than 64 GiB are refused.
        let tag = tag.expect("a datagram is shorter than the limit of the cipher");
        tag.as_ref().try_into().expect("the tags of both ciphers have 16 bytes")
    }

    /// Decrypts `sealed`, the body and its tag, in place, and returns the body.
    pub(super) fn open<'d>(
        &self,
        nonce: [u8; NONCE_LEN],
        header: &[u8],
        sealed: &'d mut [u8],
    ) -> Result<&'d mut [u8], Forged> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.expanded.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| Forged)
    }
}

fn expand(cipher: Cipher, bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(cipher.algorithm(), bytes).expect("both ciphers have keys of 32 bytes"))
}

impl Drop for Key {
    /// The library does not wipe keys: a key of zeros is written over this one.
    fn drop(&mut self) {
        self.expanded = expand(self.cipher, &[0; 32]);
        black_box(&mut self.expanded);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("cipher", &self.cipher).finish_non_exhaustive()
    }
}
