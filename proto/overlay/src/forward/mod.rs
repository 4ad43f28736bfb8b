//! The data path. The kernel driver's threads and the simulator run the same code.
//!
//! ```text
//!  local bridge --frame, offload--> handle_local ----+                       +--> reserve, seal in place, commit
//!                                                    +--> verdict --> send --+--> ICMP "too big" back to the source
//!  neighbour ------datagram------> handle_datagram --+                       +--> inject
//! ```
//!
//! Each thread owns a [`Forwarder`]. All threads read the same [`Tables`], an immutable snapshot that `node` publishes.
//! After warm-up nothing here allocates: datagrams are built in the [`Io`]'s memory, and received ones are decrypted in
//! place.
//!
//! Frames to one neighbour are collected in a datagram until the next frame does not fit or [`Forwarder::flush`] is called
//! at the end of a batch (docs/spec/data-plane.md 4.8). A super-frame (TSO, USO) is cut directly into one datagram per
//! segment.

mod egress;
mod stats;
mod tables;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weave_switch::frame::ETHERNET_HEADER;
use weave_switch::{
    DropReason, DuplicateFilter, LocalVerdict, Offload, PeerVerdict, SwitchEvent, local_frame, peer_frame,
};
use weave_types::{Instant, ShortId, TokenBucket};

pub use self::stats::Stats;
pub use self::tables::{Neighbour, Tables};
pub use self::watch::{Fate, FrameWatch};
pub use crate::select::Overlay;

use self::egress::{Egress, OutgoingFrame};
use crate::event::ForwarderEvent;
use crate::fastdp::SegmentedProbe;
use crate::io::Io;
use crate::udp::{ControlFrame, sender};

/// Packets of probes of fastdp that are reported: those of a few hundred neighbours that begin together, and one per millisecond.
const PROBE_BURST: u32 = 1000;
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// The data path of one thread.
#[derive(Debug)]
pub struct Forwarder {
    tables: Arc<Tables>,
    duplicates: DuplicateFilter,
    egress: Egress,
    /// For probes of fastdp, which nothing authenticates here.
    probes: TokenBucket,
}

impl Forwarder {
    /// Creates a forwarder. Those of one peer may share a lane of warp; with different lanes they do not wait for each other.
    pub fn new(tables: Arc<Tables>, lane: usize) -> Forwarder {
        let egress = Egress::new(tables.neighbours(), lane);
        Forwarder {
            tables,
            duplicates: DuplicateFilter::new(),
            egress,
            probes: TokenBucket::new(PROBE_BURST, PROBE_INTERVAL),
        }
    }

    /// Replaces the tables. Collected frames are flushed first.
    pub fn set_tables(&mut self, tables: Arc<Tables>, io: &mut impl Io) {
        self.egress.flush(io);
        self.egress.set_neighbours(tables.neighbours());
        self.tables = tables;
    }

    /// The tables in use.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.egress.stats
    }

    /// Handles a frame that was captured from the local bridge (docs/spec/data-plane.md 2.3). `offload` is the work that the
    /// sender's kernel left to its network device.
    pub fn handle_local(&mut self, frame: &[u8], offload: Offload, now: Instant, io: &mut impl Io) {
        let Forwarder { tables, duplicates, egress, .. } = self;
        let before = stats_if_watched(tables, egress, frame);
        egress.stats.local_frames += 1;
        let table = &tables.forwarding;
        let (verdict, event) = local_frame(table, frame, now);
        report(event, duplicates, now, io);
        match verdict {
            LocalVerdict::Drop(reason) => egress.stats.switch_drops[reason as usize] += 1,
            LocalVerdict::Unicast { dst, via } => {
                let outgoing = OutgoingFrame { src: table.own, dst, frame, offload, flood: false };
                egress.send(via, outgoing, table, now, io);
            }
            LocalVerdict::Flood(to) => {
                // The kernel has sent the copies of its neighbours: it passed the frame to user space for the others.
                for &via in to.iter().filter(|via| !tables.is_kernel_neighbour(**via)) {
                    let outgoing = OutgoingFrame { src: table.own, dst: via, frame, offload, flood: true };
                    egress.send(via, outgoing, table, now, io);
                }
            }
        }
        tell_watches(before, tables, egress, frame, false);
    }

    /// Handles a frame of another peer that the kernel has received and leaves to user space: a frame for another peer is relayed. Of
    /// a frame for this peer the kernel has delivered a copy and sent others; what is left are those of neighbours that the kernel does
    /// not reach. A probe is only reported.
    pub fn handle_relayed(
        &mut self,
        src: ShortId,
        dst: ShortId,
        frame: &[u8],
        now: Instant,
        io: &mut impl Io,
    ) {
        let Forwarder { tables, egress, probes, .. } = self;
        let table = &tables.forwarding;
        let name = |id| tables.kernel.as_ref().and_then(|kernel| kernel.peer(id));
        let (Some(src), Some(dst)) = (name(src), name(dst)) else {
            egress.stats.switch_drops[DropReason::UnknownPeer as usize] += 1;
            return;
        };
        if frame.starts_with(&[0; 12]) {
            match SegmentedProbe::parse(frame) {
                Some(_) if !probes.try_take(now) => egress.stats.drop_special_rate += 1,
                Some((probe, arrived)) if dst == table.own && src != dst => {
                    io.event(ForwarderEvent::SegmentedProbe { src, probe, arrived });
                }
                _ => egress.stats.drop_special += 1,
            }
            return;
        }
        let before = stats_if_watched(tables, egress, frame);
        let outgoing = OutgoingFrame { src, dst, frame, offload: Offload::NONE, flood: false };
        if src == table.own {
            egress.stats.switch_drops[DropReason::OwnPacket as usize] += 1;
        } else if !table.routes.knows(src) || !table.routes.knows(dst) {
            egress.stats.switch_drops[DropReason::UnknownPeer as usize] += 1;
        } else if dst == table.own {
            let flood = table.routes.broadcast(src).iter();
            for &via in flood.filter(|via| !tables.is_kernel_neighbour(**via)) {
                egress.send(via, OutgoingFrame { dst: via, flood: true, ..outgoing }, table, now, io);
            }
        } else if let Some(via) = table.routes.unicast(dst) {
            egress.send(via, outgoing, table, now, io);
        } else {
            egress.stats.switch_drops[DropReason::NoRoute as usize] += 1;
        }
        tell_watches(before, tables, egress, frame, true);
    }

    /// Handles a datagram that arrived at the sleeve port. It is decrypted in place.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant, io: &mut impl Io) {
        let Forwarder { tables, duplicates, egress, .. } = self;
        egress.stats.datagrams_in += 1;
        let Some(session) = egress.find_session(datagram) else {
            match sender(datagram) {
                Some(_) => egress.stats.drop_unknown_sender += 1,
                None => egress.stats.drop_short_datagram += 1,
            }
            return;
        };
        let name = egress.name(session);
        let (confirmed, records) = match egress.open_datagram(session, datagram) {
            Ok(opened) => opened,
            Err(error) => return egress.count_open_error(error),
        };
        let table = &tables.forwarding;
        let mut has_data = false;
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    egress.count_open_error(error);
                    break;
                }
            };
            egress.stats.frames_in += 1;
            let frame = record.frame;
            let control = ControlFrame::parse(frame);
            if !confirmed && !matches!(control, Some(ControlFrame::Heartbeat(_))) {
                egress.stats.drop_unconfirmed += 1;
                continue;
            }
            if let Some(control) = control {
                if record.src == name && record.dst == table.own {
                    egress.report_control_frame(session, control, from, now, io);
                } else {
                    egress.stats.drop_special += 1;
                }
                continue;
            }
            if frame.len() < ETHERNET_HEADER {
                egress.stats.drop_short_frame += 1;
                continue;
            }
            has_data = true;
            let before = stats_if_watched(tables, egress, frame);
            let (verdict, event) = peer_frame(table, record.src, record.dst, frame, now);
            report(event, duplicates, now, io);
            let outgoing = OutgoingFrame {
                src: record.src,
                dst: record.dst,
                frame,
                offload: Offload::NONE,
                flood: false,
            };
            match verdict {
                PeerVerdict::Drop(reason) => egress.stats.switch_drops[reason as usize] += 1,
                // Frames have no TTL: while routes differ, two peers could pass a frame back and forth.
                PeerVerdict::Relay { via } if via == name => egress.stats.drop_hairpin += 1,
                PeerVerdict::Relay { via } => egress.send(via, outgoing, table, now, io),
                PeerVerdict::Deliver { flood } => {
                    egress.deliver(outgoing, tables, now, io);
                    for &via in flood.iter().filter(|via| **via != name) {
                        egress.send(via, OutgoingFrame { dst: via, flood: true, ..outgoing }, table, now, io);
                    }
                }
            }
            tell_watches(before, tables, egress, frame, true);
        }
        egress.note_received(session, has_data, io);
    }

    /// Sends all collected frames. To be called at the end of each batch of frames or datagrams.
    pub fn flush(&mut self, io: &mut impl Io) {
        self.egress.flush(io);
    }
}

/// The counters, if somebody looks for the frame.
fn stats_if_watched(tables: &Tables, egress: &Egress, frame: &[u8]) -> Option<Stats> {
    tables.watches(frame).next().map(|_| egress.stats)
}

fn tell_watches(before: Option<Stats>, tables: &Tables, egress: &Egress, frame: &[u8], from_neighbour: bool) {
    let Some(before) = before else { return };
    let fate = Fate::between(&before, &egress.stats, from_neighbour);
    tables.watches(frame).for_each(|watch| watch.note(frame, &fate));
}

fn report(event: Option<SwitchEvent>, duplicates: &mut DuplicateFilter, now: Instant, io: &mut impl Io) {
    if let Some(event) = event
        && duplicates.admit(&event, now)
    {
        io.event(ForwarderEvent::Switch(event));
    }
}
