//! The peer's name (spec mesh 2.2).

use weave_host::identity::Sources;
use weave_types::PeerName;

use crate::config::Config;

/// The name that a daemon with this configuration has.
///
/// # Errors
/// None is given and the machine has no ids, or they cannot be read.
pub fn peer_name(config: &Config) -> Result<PeerName, weave_host::Error> {
    match config.name {
        Some(name) => Ok(name),
        None => weave_host::identity::peer_name(&config.bridge, &Sources::default(), None),
    }
}
