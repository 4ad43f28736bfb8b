//! Warp, the encrypted overlay between two peers of this implementation (docs/spec/warp.md): the records, control frames and state
//! machine of [`udp`](crate::udp), sealed with other keys and another cipher.
//!
//! ```text
//!   confirmed -- control 0: public key, index, cipher --> both have the secret of the connection --> Session --> UdpControl
//!
//!   epoch 0 -- 2^23 datagrams of a lane or 2 minutes, and the neighbour uses epoch 0, too --> epoch 1 --> ...
//! ```
//!
//! * [`WarpControl`] exchanges keys over the mesh connection, and then owns the [`UdpControl`](crate::udp::UdpControl).
//! * [`Keys`] are those of one connection; they change from epoch to epoch.
//! * [`Header`] is the clear part of a datagram.

mod control;

pub use crate::udp::aead::{
    Cipher, HEADER, Header, KeyLimits, KeyMaterial, Keys, LANES, TAG, TYPE, receiver,
};
pub use control::{WarpControl, WarpControlConfig, WarpControlError};
