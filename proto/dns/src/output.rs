use std::fmt;

use weave_types::PeerName;

/// What the driver of a [`Registry`](crate::Registry) has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryOutput {
    /// Send this to all peers over channel [`CHANNEL`](crate::CHANNEL).
    Broadcast(Vec<u8>),
    /// Compare states with neighbours, as periodic gossip does.
    Compare,
    /// The live names have changed: publish [`Registry::names`](crate::Registry::names).
    NamesChanged,
    /// Something to log.
    Event(RegistryEvent),
}

/// An event for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryEvent {
    /// The clock of another host differs from ours by more than 2.8.1 accepts.
    ClockSkew {
        /// The source of the broadcast; `None` if a neighbour sent its state.
        src: Option<PeerName>,
        /// How far the other clock is ahead, seconds.
        seconds: i64,
    },
    /// Entries of another peer were ignored because there are too many.
    Full {
        /// The peer that registered them.
        origin: PeerName,
    },
}

impl fmt::Display for RegistryEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegistryEvent::ClockSkew { src, seconds } => {
                match src {
                    Some(src) => write!(f, "the clock of {src}, or of a peer that relays its messages,")?,
                    None => write!(f, "the clock of a neighbour")?,
                }
                let (by, how) = (seconds.unsigned_abs(), if *seconds < 0 { "behind" } else { "ahead of" });
                write!(
                    f,
                    " is {by} s {how} ours: peers of version 2.8.1 will not stay connected; check the time on the hosts"
                )
            }
            RegistryEvent::Full { origin } => {
                write!(f, "names registered by {origin} are not known here: too many names")
            }
        }
    }
}
