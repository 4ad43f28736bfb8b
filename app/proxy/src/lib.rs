//! Rewriting of Docker API messages, so that containers are attached to the network (docs/spec/containers.md A.4 to A.9).
//!
//! ```text
//!  request line --> Route --+-- Create --> create::Create --> body with the wait program as entrypoint
//!                           +-- Start ---> start::rewrite --> body that keeps the wait program
//!                           +-- Exec ----> exec::rewrite ---> command behind the wait program
//!                           +-- Inspect -> inspect::rewrite -> answer that shows the weave address
//!                           +-- Other ---> as it is
//! ```
//!
//! Everything here is a function of its arguments: whoever owns the connections reads the messages, asks Docker about images and
//! containers, and forwards what these functions return. Fields that are not changed keep their text, numbers included.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod create;
mod error;
mod exec;
mod hostname;
mod inspect;
mod json;
mod policy;
mod query;
mod route;
mod start;

pub use create::{Create, ImageCommand};
pub use error::Error;
pub use exec::rewrite as rewrite_exec;
pub use hostname::{HostnameError, HostnameRule};
pub use inspect::{Interface, rewrite as rewrite_inspect, rewrite_exec as rewrite_exec_inspect};
pub use policy::{
    Dns, LeaveAlone, Policy, WAIT_DIRECTORY, WAIT_PROGRAM, WaitDirectories, requested as requested_addresses,
};
pub use route::Route;
pub use start::rewrite as rewrite_start;
