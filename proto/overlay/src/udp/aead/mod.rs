//! How warp seals: keys, cipher and header (docs/spec/warp.md).

mod cipher;
mod header;
mod keys;

pub use cipher::{Cipher, TAG};
pub use header::{HEADER, Header, LANES, TYPE, receiver};
pub use keys::{KeyLimits, KeyMaterial, Keys};
