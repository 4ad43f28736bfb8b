//! The peer's name (docs/spec/mesh.md 2.2).

use weave_host::identity::Sources;
use weave_types::PeerName;

use super::legacy_database::{self, LegacyDatabaseError};
use crate::config::Config;

#[derive(Debug, thiserror::Error)]
pub enum PeerNameError {
    #[error(transparent)]
    Database(#[from] LegacyDatabaseError),
    #[error(transparent)]
    Host(#[from] weave_host::Error),
}

/// The name that a daemon with this configuration has. `persisted` is the one in the database of 2.8.1.
pub(crate) fn peer_name(config: &Config, persisted: Option<PeerName>) -> Result<PeerName, weave_host::Error> {
    match (config.name, &config.instance) {
        (Some(name), _) => Ok(name),
        (None, Some(instance)) => {
            weave_host::identity::instance_peer_name(&config.bridge, &Sources::default(), instance)
        }
        (None, None) => weave_host::identity::peer_name(&config.bridge, &Sources::default(), persisted),
    }
}

/// `peer_name` with the database of 2.8.1 that is found on this host.
pub fn find_peer_name(config: &Config) -> Result<PeerName, PeerNameError> {
    let database = legacy_database::find(config)?;
    Ok(peer_name(config, database.and_then(|d| d.database.peer_name))?)
}
