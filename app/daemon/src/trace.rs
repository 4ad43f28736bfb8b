//! `weave trace` (docs/spec/trace.md): looks for the frames of other peers' traces, and runs those of this host.
//!
//! ```text
//!  core --TraceMessage--> thread "weave-trace" --Watch--> watch: packet socket, FrameWatch of the data path
//!                           |        ^          <-Collect- what they have seen
//!             Hop, Report   v        | messages to this peer itself
//!  POST /trace ----------> run (a thread each, one at a time) --> probes from the container's namespace
//! ```

mod context;
mod describe;
mod run;
mod tracer;
mod watch;
mod watcher;

pub(crate) use context::{TraceInbox, inbox};
pub(crate) use tracer::Tracer;
