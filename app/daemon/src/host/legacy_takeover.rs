//! A host on which 2.8.1 runs no more: what is taken over from it, and when that is final.

use weave_host::{BridgeKind, DeviceNames, Error, LegacyDatapath};

use crate::host::legacy_database::LegacyDatabase;
use crate::storage::{Original, PeerState};

/// What this start takes over.
#[derive(Debug, Default)]
pub(crate) struct LegacyTakeover {
    /// The database, unless it was taken in before.
    import: Option<LegacyDatabase>,
    /// The set-up whose uplink is replaced.
    kind: Option<BridgeKind>,
}

impl LegacyTakeover {
    /// Compares what was found with what is stored. Changes nothing.
    pub(crate) fn new(
        import: Option<LegacyDatabase>,
        names: &DeviceNames,
        store: &PeerState,
    ) -> Result<LegacyTakeover, Error> {
        let import = import.filter(|i| store.original().digest.as_deref() != Some(&i.digest));
        if let Some(import) = &import {
            tracing::info!("taking over what 2.8.1 left in {}", import.path.display());
        }
        Ok(LegacyTakeover { import, kind: weave_host::legacy_bridge_kind(names)? })
    }

    /// The database that has not been taken in yet.
    pub(crate) fn import(&self) -> Option<&LegacyDatabase> {
        self.import.as_ref()
    }

    /// Removes the Open vSwitch datapath that is in the way. Gives how to undo it.
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
                tracing::warn!("the Open vSwitch datapath {name:?} stays, because {port} is a port of it");
                Ok(Undo(None))
            }
        }
    }

    /// Everything has been taken in: from now on our own state counts.
    pub(crate) fn finish(self, store: &mut PeerState) {
        let before = store.original().clone();
        let after = Original {
            digest: self.import.as_ref().map(|i| i.digest.clone()).or(before.digest.clone()),
            path: self.import.map(|i| i.path).or(before.path.clone()),
            bridge: self.kind.map(|k| k.name().to_owned()).or(before.bridge.clone()),
        };
        if after != before
            && let Err(e) = store.set_original(after)
        {
            tracing::error!("the next start will take over from 2.8.1 again: {e}");
        }
    }
}

/// How the way is blocked again.
#[must_use]
pub(crate) struct Undo(Option<DeviceNames>);

impl Undo {
    /// A later step failed: 2.8.1 finds its datapath again.
    pub(crate) fn undo(self, cause: Error) -> Error {
        match self.0.map(|names| weave_host::restore_legacy_datapath(&names)) {
            Some(Err(left)) => Error::Undo { cause: Box::new(cause), left: vec![left] },
            _ => cause,
        }
    }
}
