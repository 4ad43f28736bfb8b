//! The HTTP control API (docs/spec/cli.md 7): routes, texts and status codes of 2.8.1, with limits for each client.
//!
//! ```text
//! unix socket, root only       all routes
//! 127.0.0.1:6784 (control)     all routes, for root; GET for every process of the host; requests that a foreign web page can
//!                              cause are refused
//! 127.0.0.1:6782 (status)      GET /status..., /report, /metrics, /picture..., /events; only under a name of this machine
//! --metrics-addr               GET /metrics
//! ```

mod connection_limits;
mod fd_stream;
mod form;
mod host_header;
mod host_requests;
mod ipam;
#[cfg(test)]
mod ipam_tests;
mod names;
#[cfg(test)]
mod names_tests;
mod origin;
mod picture;
mod response;
mod routes;
mod server;
mod trace;
mod view_feed;
mod write_timeout;

pub(crate) use form::read_body;
pub(crate) use response::{Answer, TEXT, respond};
pub use routes::Access;
pub use server::{Limits, Listener, serve_connection};
