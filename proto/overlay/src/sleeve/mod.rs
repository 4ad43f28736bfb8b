//! Sleeve, the UDP overlay of 2.8.1: several Ethernet frames to a datagram, sealed with NaCl's secretbox if there is a key.
//!
//! ```text
//!            control, in the node                             data, in the data threads
//!   mesh <-- control messages 1, 2, 3 --> SleeveControl -- SleevePath, Session --> Sealer --> datagrams
//!                                               ^                                  Opener <-- datagrams
//!                                               +------------- ControlFrame -------------+
//! ```
//!
//! * [`Session`]: names, key and sequence counters of one connection, used by [`Sealer`] and [`Opener`].
//! * [`SleeveControl`]: establishment, heartbeats, fragmentation test; [`pmtu`] discovers the path MTU.
//! * [`ControlFrame`]: the control frames that travel between the data frames.

mod control;
mod control_frame;
mod path;
pub mod pmtu;
mod replay;
mod session;

pub use control::{ControlMessageError, Event, Output, SleeveControl, SleeveControlConfig};
pub use control_frame::{ControlFrame, FRAGMENTATION_TEST_FRAME, HEARTBEAT_FRAME, INITIAL_PROBE_FRAME};
pub use path::SleevePath;
pub use replay::ReplayWindow;
pub use session::{
    DatagramBuilder, MAX_DATAGRAM, OpenError, Opener, RECORD_OVERHEAD, Record, Records, Sealer,
    SequenceExhausted, Session, SessionConfig, sender,
};
