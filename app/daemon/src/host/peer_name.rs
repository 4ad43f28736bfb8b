//! The peer's name (docs/spec/mesh.md 2.2).

use weave_host::identity::Sources;
use weave_types::PeerName;

use crate::StartError;
use crate::config::Config;
use crate::host::legacy_database;

/// The name that a daemon with this configuration has. `persisted` is the one in the database of 2.8.1.
///
/// # Errors
/// None is given and the machine has no ids, or they cannot be read.
pub fn peer_name(config: &Config, persisted: Option<PeerName>) -> Result<PeerName, weave_host::Error> {
    match (config.name, &config.instance) {
        (Some(name), _) => Ok(name),
        (None, Some(instance)) => {
            weave_host::identity::instance_peer_name(&config.bridge, &Sources::default(), instance)
        }
        (None, None) => weave_host::identity::peer_name(&config.bridge, &Sources::default(), persisted),
    }
}

/// [`peer_name`] with what [`legacy_database::find`] finds.
///
/// # Errors
/// As both of them.
pub fn find_peer_name(config: &Config) -> Result<PeerName, StartError> {
    let import = legacy_database::find(config)?;
    Ok(peer_name(config, import.and_then(|i| i.database.peer_name))?)
}
