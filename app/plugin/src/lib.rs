//! Messages of libnetwork's remote drivers, by which Docker asks a plugin for networks (docs/spec/containers.md B).
//!
//! ```text
//!  POST /NetworkDriver.Join {..} --> Plugin::handle --+-- Err(Answer) -----------------------------> Docker
//!                                                     +-- Ok(Action) --> the daemon acts --> Answer --> Docker
//! ```
//!
//! Everything here is a function of its arguments and of what earlier requests said: whoever owns the sockets reads the messages, carries out
//! the [`Action`]s, and sends the [`Answer`]s. Fields that are not known are ignored.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod endpoint;
mod plugin;
mod pool;
mod request;

pub use answer::{Answer, Error};
pub use endpoint::VethPair;
pub use plugin::{Action, Driver, Mode, NotKnown, Plugin};
pub use pool::{AddressRequest, Pool};
pub use request::{CreateEndpoint, Join, MULTICAST_OPTION, multicast};
