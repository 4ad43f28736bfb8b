use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weave_overlay::fastdp::{KernelEvent, KernelFrame};
use weave_switch::SwitchEvent;
use weave_types::{PeerName, ShortId};

use crate::error::Error;
use crate::layout::{EVENTS_SIZE, PeerRecord, Record};
use crate::sys::{Map, Ring};
use crate::time::Clock;

/// What the reader needs to know to translate records. The handle keeps it up to date.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// The peer of a short id, and since which generation of the tables.
    pub(crate) peers: BTreeMap<u16, (PeerName, u64)>,
    /// The neighbours to which the kernel forwards broadcasts of a peer.
    pub(crate) trees: BTreeMap<u16, Vec<ShortId>>,
    /// Ports of VXLAN devices by their index.
    pub(crate) ports: BTreeMap<u32, u16>,
}

/// Shared between handle and reader.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedNames(Arc<Mutex<Names>>);

impl SharedNames {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives the events of the programs. Its descriptor is readable when there are some.
pub struct EventReader {
    ring: Ring,
    names: SharedNames,
    clock: Clock,
    /// Neighbours to which data was sent.
    traffic: VecDeque<ShortId>,
}

impl EventReader {
    /// Reads from now on: what an earlier process has left is old.
    pub(crate) fn new(events: &Map, names: SharedNames, clock: Clock) -> Result<EventReader, Error> {
        let mut ring = Error::at("mapping the ring buffer of events", || Ring::new(events, EVENTS_SIZE))?;
        ring.skip_all();
        Ok(EventReader { ring, names, clock, traffic: VecDeque::new() })
    }

    /// The next event. `None` if there is none now.
    pub fn read(&mut self) -> Option<KernelEvent> {
        loop {
            if let Some(neighbour) = self.traffic.pop_front() {
                return Some(KernelEvent::Traffic { neighbour });
            }
            // A record of another kind belongs to a program of another version, which has been replaced.
            let record = self.ring.next(Record::decode)?;
            if let Some(event) = record.and_then(|record| self.translate(record)) {
                return Some(event);
            }
        }
    }

    /// `None` if the record refers to a peer or a device that is not the same any more.
    fn translate(&mut self, record: Record) -> Option<KernelEvent> {
        let names = self.names.lock();
        match record {
            Record::Peer { kind, peer: id, last_seen, generation, mac, destination } => {
                let (peer, since) = *names.peers.get(&id)?;
                if generation < since {
                    return None;
                }
                let event = match kind {
                    PeerRecord::LocalMac => SwitchEvent::LocalMac(mac),
                    PeerRecord::RemoteMac => SwitchEvent::RemoteMac { mac, peer },
                    PeerRecord::Conflict => SwitchEvent::LocalConflict { mac, peer },
                    PeerRecord::OwnPacket => SwitchEvent::OwnPacket { peer, mac, dst: destination },
                    PeerRecord::Flood => {
                        self.traffic.extend(names.trees.get(&id).into_iter().flatten());
                        return None;
                    }
                    PeerRecord::Traffic => {
                        return Some(KernelEvent::Traffic { neighbour: ShortId::new(id)? });
                    }
                };
                Some(KernelEvent::Switch { event, last_seen: last_seen.map(|at| self.clock.instant(at)) })
            }
            Record::Control { vni, remote, ifindex, len, head } => Some(KernelEvent::Frame(KernelFrame {
                src: ShortId::new((vni & 0xfff) as u16)?,
                dst: ShortId::new((vni >> 12 & 0xfff) as u16)?,
                from: remote,
                port: *names.ports.get(&ifindex)?,
                len: len as usize,
                head,
            })),
        }
    }
}

impl AsFd for EventReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }
}

impl std::fmt::Debug for EventReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventReader").finish_non_exhaustive()
    }
}
