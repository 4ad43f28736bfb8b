//! Takeover of a host on which 2.8.1 has been stopped: its database is imported, and its datapath removed.

use weave_host::{BridgeKind, DeviceNames, Error, LegacyDatapath};

use crate::host::legacy_database::LegacyDatabase;
use crate::storage::{Original, PeerState};

#[derive(Debug, Default)]
pub(crate) struct LegacyTakeover {
    /// The database, unless it has been imported before.
    database: Option<LegacyDatabase>,
    /// Type of the bridge whose uplink is replaced.
    bridge_kind: Option<BridgeKind>,
}

impl LegacyTakeover {
    /// Compares the database with the one that has been imported. Changes nothing.
    pub(crate) fn new(
        database: Option<LegacyDatabase>,
        names: &DeviceNames,
        store: &PeerState,
    ) -> Result<LegacyTakeover, Error> {
        let database = database.filter(|d| store.original().digest.as_deref() != Some(&d.digest));
        if let Some(database) = &database {
            tracing::info!("importing the database of 2.8.1 {}", database.path.display());
        }
        Ok(LegacyTakeover { database, bridge_kind: weave_host::legacy_bridge_kind(names)? })
    }

    /// A database that has not been imported yet.
    pub(crate) fn database(&self) -> Option<&LegacyDatabase> {
        self.database.as_ref()
    }

    /// Removes the Open vSwitch datapath of 2.8.1, which would carry the same frames.
    pub(crate) fn remove_datapath(&self, names: &DeviceNames) -> Result<Undo, Error> {
        match weave_host::remove_legacy_datapath(names)? {
            LegacyDatapath::NotFound => Ok(Undo(None)),
            LegacyDatapath::Removed(name) => {
                tracing::info!(
                    "removed the Open vSwitch datapath {name:?} of 2.8.1; frames go through {} instead",
                    names.device
                );
                Ok(Undo(Some(names.clone())))
            }
            LegacyDatapath::InUse { name, port } => {
                tracing::warn!("kept the Open vSwitch datapath {name:?}, because {port} is a port of it");
                Ok(Undo(None))
            }
        }
    }

    /// Records that everything has been imported, so that the next start uses the state of this peer.
    pub(crate) fn finish(self, store: &mut PeerState) {
        let before = store.original().clone();
        let after = Original {
            digest: self.database.as_ref().map(|d| d.digest.clone()).or(before.digest.clone()),
            path: self.database.map(|d| d.path).or(before.path.clone()),
            bridge: self.bridge_kind.map(|k| k.name().to_owned()).or(before.bridge.clone()),
        };
        if after != before
            && let Err(e) = store.set_original(after)
        {
            tracing::error!(
                "cannot record the takeover, the next start will import the database of 2.8.1 again: {e}"
            );
        }
    }
}

/// Restores the datapath of 2.8.1 if a later step fails.
#[must_use]
pub(crate) struct Undo(Option<DeviceNames>);

impl Undo {
    /// Returns `cause`, extended by the error of the restoration.
    pub(crate) fn undo(self, cause: Error) -> Error {
        match self.0.map(|names| weave_host::restore_legacy_datapath(&names)) {
            Some(Err(left)) => Error::Undo { cause: Box::new(cause), left: vec![left] },
            _ => cause,
        }
    }
}
