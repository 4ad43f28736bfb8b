//! The original's overlay: Ethernet frames in UDP datagrams, several to one datagram, NaCl-sealed if there is a key.
//!
//! ```text
//!            control half, in node                         data half, in data threads
//!   mesh <-- Control 1,2,3 --> Link ----- Path, Session ----> Sealer --> datagrams
//!                               ^                             Opener <-- datagrams
//!                               +--------- Special -------------+
//! ```
//!
//! * [`Session`]: names, key and sequence counters of one connection; [`Sealer`] and [`Opener`] work with it.
//! * [`Link`]: establishment, heartbeats, fragmentation test; [`pmtu`] finds out how long packets may be.
//! * [`Special`]: the control frames that travel among the data.

mod link;
mod path;
pub mod pmtu;
mod replay;
mod session;
mod special;

pub use link::{ControlError, Event, Link, LinkConfig, Output};
pub use path::Path;
pub use replay::ReplayWindow;
pub use session::{
    Draft, MAX_DATAGRAM, OpenError, Opener, RECORD_OVERHEAD, Record, Records, Sealer, SequenceExhausted,
    Session, SessionConfig, sender,
};
pub use special::{FRAGMENTATION_TEST_FRAME, HEARTBEAT_FRAME, KICK_OFF_FRAME, Special};
