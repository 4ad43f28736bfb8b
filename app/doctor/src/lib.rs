//! Finds what keeps a peer, its host or its connections from working, and says what it leads to and how to mend it.
//!
//! ```text
//!   Settings --> collect() --> Facts --> check() --> Findings
//!                reads          values    pure
//! ```
//!
//! * [`collect()`] reads the host, and asks the daemon if one runs, DNS servers and container engines. It changes nothing, and all that
//!   it does has a time limit;
//! * [`check()`] judges the facts.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod check;
mod collect;
mod dns_probe;
mod facts;
mod finding;

pub use check::{best_overlay, check};
pub use collect::{Settings, collect};
pub use facts::{
    Daemon, Device, DialError, DialResult, Directory, DnsServer, Engine, Facts, PortUse, ResolvConf,
    RouteFact, Sysctls, UnderlayDevice,
};
pub use finding::{Finding, Severity};
