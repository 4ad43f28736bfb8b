//! Messages of container network plugins: those of CNI, and in [`netavark`] those of Podman.
//!
//! # CNI
//!
//! Messages of the CNI plugins `weave-net` and `weave-ipam` (docs/spec/containers.md C; the CNI specification, versions 0.1.0 to
//! 1.1.0).
//!
//! ```text
//!  environment, standard input --> Call::read --+--> what the caller does on the host --> AddResult --> standard output
//!                                               +--> Error ---------------------------------------> standard output, exit 1
//! ```
//!
//! Everything here is a function of its arguments. Results and errors have the form of the version that the configuration asks for.
//! For versions up to 0.3.0 that is what 2.8.1 printed.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod call;
mod check;
mod config;
mod error;
mod json;
pub mod netavark;
mod result;
mod route;
mod version;

pub use call::{Call, Command, Plugin, Rejected};
pub use check::{Observed, check};
pub use config::{AttachmentRef, Ipam, NetConf};
pub use error::{Error, code};
pub use result::{AddResult, Address, Interface};
pub use route::Route;
pub use version::{SUPPORTED, Version, version_text};

/// Longest configuration that is read, in bytes. Runtimes put the result of the previous plugin into it.
pub const MAX_INPUT: u64 = 1 << 20;
