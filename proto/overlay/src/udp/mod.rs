//! Several Ethernet frames to a UDP datagram: sleeve, the overlay of 2.8.1, sealed with NaCl's secretbox if there is a key; and warp,
//! which is the same with another sealing.
//!
//! ```text
//!            control, in the node                             data, in the data threads
//!   mesh <-- control messages 1 to 4 --> UdpControl -- UdpPath, Session --> Sealer --> datagrams
//!                                               ^                                  Opener <-- datagrams
//!                                               +------------- ControlFrame -------------+
//! ```
//!
//! * [`Session`]: names, keys, sequence counters and replay windows of one connection, used by [`Sealer`] and [`Opener`].
//! * [`UdpControl`]: establishment, heartbeats, fragmentation test, test of batches; [`pmtu`] discovers the path MTU.
//! * [`ControlFrame`]: the control frames that travel between the data frames.

pub(crate) mod aead;
mod control;
mod control_event;
mod control_frame;
mod fragmentation;
mod path;
pub mod pmtu;
mod replay;
mod session;

pub use control::{Output, UdpControl, UdpControlConfig};
pub use control_event::{ControlMessageError, Event};
pub use control_frame::{ControlFrame, FRAGMENTATION_TEST_FRAME, HEARTBEAT_FRAME, INITIAL_PROBE_FRAME};
pub use path::UdpPath;
pub use pmtu::probe_budget;
pub use replay::ReplayWindow;
pub use session::{
    DatagramBuilder, MAX_DATAGRAM, OpenError, Opener, RECORD_OVERHEAD, Record, Records, Sealer,
    SequenceExhausted, Session, SessionConfig, sender,
};
