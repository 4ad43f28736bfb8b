//! What the daemon and its users say to each other over HTTP, apart from the daemon: the report's schema, the status
//!
//! * [`Report`] is the JSON of `GET /report` with the key order, `null`s and numbers of 2.8.1 (docs/spec/cli.md 9);
//! * [`status`] renders the text pages of `GET /status...` (docs/spec/cli.md 8), [`pages`] the same facts as JSON;
//! * [`template`] evaluates the Go templates of `weave report -f`;
//! * [`Client`] talks to a daemon over its unix socket or TCP (docs/spec/cli.md 2.1, 7).
//!
//! Nothing here knows how a report comes about; no sockets but the client's.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod client;
pub mod owned;
pub mod pages;
pub mod report;
pub mod status;
pub mod template;
pub mod time;

pub use client::{Client, ClientError, DEFAULT_PORT, Endpoint, Response};
pub use owned::{Owned, OwnedBy};
pub use report::Report;
pub use time::Timestamp;
