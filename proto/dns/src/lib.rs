//! weaveDNS: names of containers, for every host of the network (docs/spec/dns.md).
//!
//! * [`Names`]: the live names, as a snapshot that the threads of the server read.
//! * [`Responder`]: answers queries from it.
//! * [`Forwarder`]: asks the servers of the host for everything else.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod cache;
mod forwarder;
mod names;
mod query;
mod resolv_conf;
mod upstream;

pub use answer::{AnswerConfig, AnswerKind, ErrorCode, Responder, Verdict, answer_with_error};
pub use forwarder::{ExchangeId, Forwarder, ForwarderConfig, ForwarderOutput, ForwarderStats};
pub use names::{HostName, HostNameError, Names};
pub use query::Transport;
pub use resolv_conf::parse_resolv_conf;
