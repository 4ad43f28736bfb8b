//! `weave trace`: where the frames from one container to another go, and where they are lost (docs/spec/trace.md).
//!
//! ```text
//!  origin                                   h2                          h3, the target
//!    -- Watch ------------------------------>  looks for the frames
//!    <-- Hop: next is h3, by fastdp ---------
//!    -- Watch --------------------------------------------------------->  looks for the frames
//!    <-- Hop: the way back begins with h2 ------------------------------
//!    ~~ probe frames, as the container sends them ~~~~~~~~~~~~~~~~~~~~~>
//!    -- Collect ---------------------------->
//!    <-- Report: seen in, seen out ----------
//!    -- Collect ------------------------------------------------------->
//!    <-- Report: passed to the container -------------------------------
//! ```
//!
//! * [`Flow`], [`Probe`]: the frames, which every peer recognises;
//! * [`Message`]: what peers send each other on the gossip channel [`CHANNEL`];
//! * [`Trace`]: the side that asks: finds the peers on the way, then collects what they have seen;
//! * [`conclude`]: from that, what became of each probe.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod flow;
mod message;
mod trace;
mod verdict;

pub use flow::{Direction, Endpoint, Flow, Probe, Recognised};
pub use message::{
    Delivery, Hop, Link, MAX_MESSAGE, MAX_TEXT, Malformed, Message, NoLink, Overlay, Port, Report, Sighting,
    Sightings,
};
pub use trace::{MAX_HOPS, Output, Silence, Trace, TraceConfig};
pub use verdict::{Outcome, Place, Reason, Verdict, conclude};

/// Name of the gossip channel. Peers without it do not relay its broadcasts, which there are none of, but all relay its unicasts.
pub const CHANNEL: &str = "trace";
/// Key of the feature in the handshake.
pub const FEATURE: &str = "Trace";
/// Peers forget what they look for after this time.
pub const WATCH_LIFETIME: std::time::Duration = std::time::Duration::from_secs(15);
/// Traces that a peer looks for at the same time. Further ones are refused.
pub const MAX_WATCHES: usize = 4;
