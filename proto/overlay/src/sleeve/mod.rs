//! The original's overlay: Ethernet frames in UDP datagrams, several to one datagram, NaCl-sealed if there is a key.
//!
//! ```text
//!            control half, in node                         data half, in data threads
//!   mesh <-- Control 1,2,3 --> SleeveControl ----- SleevePath, Session ----> Sealer --> datagrams
//!                               ^                             Opener <-- datagrams
//!                               +--------- ControlFrame -------------+
//! ```
//!
//! * [`Session`]: names, key and sequence counters of one connection; [`Sealer`] and [`Opener`] work with it.
//! * [`SleeveControl`]: establishment, heartbeats, fragmentation test; [`pmtu`] finds out how long packets may be.
//! * [`ControlFrame`]: the control frames that travel among the data.

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
