//! weaveDNS: names of containers, for every host of the network (docs/spec/dns.md).
//!
//! * [`Names`]: the live names, as a snapshot that the threads of the server read.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod names;

pub use names::{HostName, HostNameError, Names};
