//! weaveDNS: names of containers, for every host of the network (docs/spec/dns.md).
//!
//! * [`Registry`]: the names of all peers, and their gossip. [`message`]: its encoding.
//! * [`Names`]: the live names, as a snapshot that the threads of the server read.
//! * [`Responder`]: answers queries from it.
//! * [`Forwarder`]: asks the servers of the host for everything else.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod cache;
mod entry;
mod forwarder;
pub mod message;
mod names;
mod output;
mod query;
mod registry;
mod resolv_conf;
mod upstream;

pub use answer::{AnswerConfig, AnswerKind, ErrorCode, Responder, Verdict, answer_with_error};
pub use entry::Entry;
pub use forwarder::{ExchangeId, Forwarder, ForwarderConfig, ForwarderOutput, ForwarderStats};
pub use names::{HostName, HostNameError, Names};
pub use output::{RegistryEvent, RegistryOutput};
pub use query::Transport;
pub use registry::{Filter, Policy, Registry, RegistryConfig, TOMBSTONE_LIFETIME};
pub use resolv_conf::parse_resolv_conf;

/// Name of the gossip channel.
pub const CHANNEL: &str = "nameserver";
