//! The peer's name (docs/spec/mesh.md 2.2).

use weave_host::identity::{self, Sources, SystemIds};
use weave_types::PeerName;

use super::legacy_database::{self, LegacyDatabaseError};
use crate::config::Config;
use crate::storage::{PeerState, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum PeerNameError {
    #[error(transparent)]
    Database(#[from] LegacyDatabaseError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Host(#[from] weave_host::Error),
}

/// The name that a daemon with this configuration has: that of the option, of the bridge, of the last run, and only then one that is
/// derived from the ids of the machine, since the addresses of this host are those of its name. `legacy` is the name in the database
/// of 2.8.1.
pub(crate) fn peer_name(config: &Config, legacy: Option<PeerName>) -> Result<PeerName, PeerNameError> {
    if let Some(name) = config.name {
        return Ok(name);
    }
    if weave_host::link_mac(&config.bridge)?.is_none()
        && let Some(name) = PeerState::stored_name(&config.state_dir, &machine_ids())?
    {
        return Ok(name);
    }
    Ok(match &config.instance {
        Some(instance) => identity::instance_peer_name(&config.bridge, &Sources::default(), instance)?,
        None => identity::peer_name(&config.bridge, &Sources::default(), legacy)?,
    })
}

/// The ids of the machine. Those that cannot be read count as unknown.
pub(crate) fn machine_ids() -> SystemIds {
    SystemIds::read(&Sources::default()).unwrap_or_default()
}

/// `peer_name` with the database of 2.8.1 that is found on this host.
pub fn find_peer_name(config: &Config) -> Result<PeerName, PeerNameError> {
    let database = legacy_database::find(config)?;
    peer_name(config, database.and_then(|d| d.database.peer_name))
}
