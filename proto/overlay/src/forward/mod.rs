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

use std::net::SocketAddr;
use std::sync::Arc;

use weave_switch::frame::ETHERNET_HEADER;
use weave_switch::{
    DuplicateFilter, LocalVerdict, Offload, PeerVerdict, SwitchEvent, local_frame, peer_frame,
};
use weave_types::Instant;

pub use self::stats::Stats;
pub use self::tables::{Neighbour, Overlay, Tables};

use self::egress::{Egress, OutgoingFrame};
use crate::event::ForwarderEvent;
use crate::io::Io;
use crate::sleeve::{ControlFrame, sender};

/// The data path of one thread.
#[derive(Debug)]
pub struct Forwarder {
    tables: Arc<Tables>,
    duplicates: DuplicateFilter,
    egress: Egress,
}

impl Forwarder {
    /// Creates a forwarder. The forwarder that handles datagrams holds the replay windows: there must be exactly one, and
    /// it must live as long as the process.
    pub fn new(tables: Arc<Tables>) -> Forwarder {
        let egress = Egress::new(tables.neighbours());
        Forwarder { tables, duplicates: DuplicateFilter::new(), egress }
    }

    /// Replaces the tables. Collected frames are flushed first; connections that remain keep their replay windows.
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
        let Forwarder { tables, duplicates, egress } = self;
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
                for &via in to {
                    let outgoing = OutgoingFrame { src: table.own, dst: via, frame, offload, flood: true };
                    egress.send(via, outgoing, table, now, io);
                }
            }
        }
    }

    /// Handles a datagram that arrived at the sleeve port. It is decrypted in place.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant, io: &mut impl Io) {
        let Forwarder { tables, duplicates, egress } = self;
        egress.stats.datagrams_in += 1;
        let Some(name) = sender(datagram) else {
            egress.stats.drop_short_datagram += 1;
            return;
        };
        let Some(index) = egress.find(name) else {
            egress.stats.drop_unknown_sender += 1;
            return;
        };
        let (confirmed, records) = match egress.open_datagram(index, datagram) {
            Ok(opened) => opened,
            Err(error) => return egress.count_open_error(error),
        };
        let table = &tables.forwarding;
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => return egress.count_open_error(error),
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
                    egress.report_control_frame(index, control, from, now, io);
                } else {
                    egress.stats.drop_special += 1;
                }
                continue;
            }
            if frame.len() < ETHERNET_HEADER {
                egress.stats.drop_short_frame += 1;
                continue;
            }
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
        }
    }

    /// Sends all collected frames. To be called at the end of each batch of frames or datagrams.
    pub fn flush(&mut self, io: &mut impl Io) {
        self.egress.flush(io);
    }
}

fn report(event: Option<SwitchEvent>, duplicates: &mut DuplicateFilter, now: Instant, io: &mut impl Io) {
    if let Some(event) = event
        && duplicates.admit(&event, now)
    {
        io.event(ForwarderEvent::Switch(event));
    }
}
