//! The daemon's HTTP interface without the daemon: the report's schema, the status pages, the client.
//!
//!
//! * [`Report`] is the JSON of `GET /report` with the key order, `null`s and numbers of 2.8.1 (docs/spec/cli.md 9);
//! * [`status`] renders the text pages of `GET /status...` (docs/spec/cli.md 8), [`status_json`] the same facts as JSON;
//! * [`NetworkView`] is what the live picture and `weave top` show;
//! * [`template`] evaluates the Go templates of `weave report -f`;
//! * [`Client`] talks to a daemon over its unix socket or TCP (docs/spec/cli.md 2.1, 7).
//!
//! * [`host_requests`] are the requests by which commands let the daemon change the host; [`trace`] is the one of `weave trace`.
//!
//! The daemon makes the reports; only the client opens sockets.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
mod facts;
pub mod host_requests;
pub mod network_view;
pub mod owned;
pub mod report;
pub mod status;
pub mod status_json;
pub mod template;
pub mod time;
pub mod trace;

pub use client::{Client, ClientError, DEFAULT_PORT, Endpoint, Response, encode, parse_endpoint};
pub use network_view::NetworkView;
pub use owned::{Owned, OwnedBy};
pub use report::Report;
pub use time::Timestamp;
