//! weaveDNS: names of containers, for every host of the network (docs/spec/dns.md).
//!
//! * [`Names`]: the live names, as a snapshot that the threads of the server read.
//! * [`Responder`]: answers queries from it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod names;
mod query;

pub use answer::{AnswerConfig, AnswerKind, ErrorCode, Responder, Verdict, answer_with_error};
pub use names::{HostName, HostNameError, Names};
pub use query::Transport;
