//! Receiving messages, and sending and relaying gossip (docs/spec/mesh.md 5, 7).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use weave_types::{ConnectionId, Now, PeerName};

use crate::channel_digest;
use crate::connection::Connection;
use crate::connection_lifecycle::REFUSAL_TAG;
use crate::digest;
use crate::envelope::Envelope;
use crate::event::{ConnectionError, ConnectionEvent, Event};
use crate::gossip::{Channels, GossipKind, Item, PeerSelection};
use crate::mesh::Mesh;
use crate::output::{Output, OverlayControl};
use crate::restarts;
use crate::topology;
use crate::update::{decode_update, encode_update};
use crate::wire::Tag;

pub(crate) const TOPOLOGY: &str = "topology";

/// Gossip waits, and can be merged, while this number of bytes of a connection is not written yet.
const SEND_WINDOW: usize = 64 << 10;
/// Beyond this number of unwritten bytes, messages that cannot be merged are dropped.
const MAX_UNWRITTEN: usize = 16 << 20;
/// Minimum interval between two relays of new peer records in any mesh.
const RELAY_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum interval between two announcements, for each connection in our record and for any number: all peers receive it whole.
const ANNOUNCE_INTERVAL_PER_CONNECTION: Duration = Duration::from_millis(80);
const MAX_ANNOUNCE_INTERVAL: Duration = Duration::from_secs(10);
/// Approximate size of a topology message in bytes, since frames have a limit. The last record may exceed it, and
/// addresses may be longer than estimated.
const MAX_UPDATE_SIZE: usize = 2 << 20;
/// Approximate encoded size in bytes of a record without its connections, and of a connection.
const RECORD_SIZE: usize = 40;
const CONNECTION_SIZE: usize = 36;

/// Why a unicast could not be sent to the next hop.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnicastError {
    /// The destination is unknown or unreachable.
    #[error("unknown relay destination: {0}")]
    UnknownDestination(PeerName),
    /// The connection to the next hop has ended, and the routes have not been recomputed.
    #[error("unable to find connection to relay peer {0}")]
    NoConnection(PeerName),
    /// The next hop or this peer sent the message. Peers that have different topologies would relay it in a loop.
    #[error("the route to the relay destination leads back to {0}")]
    RoutingLoop(PeerName),
    /// The connection to the next hop has too many unwritten bytes.
    #[error("connection to relay peer {0} is congested")]
    Congested(PeerName),
}

impl Mesh {
    // ---- messages of this peer --------------------------------------------------------------------------------

    /// Sends a message to one peer, over other peers if necessary. It may be lost on the way.
    ///
    /// # Errors
    /// The message could not be sent to the next hop.
    pub fn unicast(
        &mut self,
        channel: &str,
        dst: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<(), UnicastError> {
        let (source, destination) = (self.config.name, Some(dst));
        let body = Envelope { channel: channel.into(), source, destination, payload }.encode();
        self.relay_unicast(dst, None, &body, now)
    }

    /// Sends a message to all peers.
    pub fn broadcast(&mut self, channel: &str, payload: &[u8], channels: &mut dyn Channels, now: Now) {
        self.relay_broadcast(self.config.name, None, &channel.into(), payload, channels, now);
    }

    /// Sends state to some neighbours, which relay the part that is new to them.
    pub fn gossip(&mut self, channel: &str, payload: &[u8], channels: &mut dyn Channels, now: Now) {
        self.gossip_to_neighbours(None, &channel.into(), payload, channels, now);
    }

    /// Sends a message to the overlay at the other end, in the form that it supports. `index` selects among the common
    /// overlays.
    pub fn send_overlay_control(&mut self, conn: ConnectionId, index: u8, tag: u8, body: &[u8], now: Now) {
        let Some(running) = self.connections.get(&conn).and_then(Connection::running) else { return };
        let message = if running.legacy_overlay {
            [&[tag], body].concat()
        } else {
            [&[Tag::OverlayControl.byte(), index, tag], body].concat()
        };
        self.send(conn, &message, now);
    }

    // ---- sending ----------------------------------------------------------------------------------------------

    /// Sends a message. Returns whether it was sent; otherwise the connection has too many unwritten bytes, or has ended.
    pub(crate) fn send(&mut self, conn: ConnectionId, message: &[u8], now: Now) -> bool {
        let Some(connection) = self.connections.get_mut(&conn) else { return false };
        if connection.unwritten > MAX_UNWRITTEN {
            return false;
        }
        let Some(running) = connection.running_mut() else { return false };
        match running.session.seal(message) {
            Ok(bytes) => {
                connection.on_write_queued(bytes.len(), now.mono);
                self.output(Output::Write { conn, bytes });
                self.rearm_timer(conn);
                true
            }
            Err(error) => {
                self.terminate(conn, ConnectionError::ProtocolViolation(error.to_string()), now);
                false
            }
        }
    }

    /// Sends a message that may be dropped if gossip is waiting. Returns whether it was sent.
    pub(crate) fn send_unless_busy(&mut self, conn: ConnectionId, message: &[u8], now: Now) -> bool {
        let idle = self.connections.get(&conn).is_some_and(|c| c.unwritten < SEND_WINDOW);
        if idle {
            self.send(conn, message, now);
        }
        idle
    }

    pub(crate) fn heartbeat(&mut self, conn: ConnectionId, now: Now) {
        self.send(conn, &[Tag::Heartbeat.byte()], now);
    }

    /// Sends queued gossip until the send window is full.
    pub(crate) fn flush_queue(&mut self, conn: ConnectionId, now: Now) {
        loop {
            let Some(connection) = self.connections.get_mut(&conn) else { return };
            if connection.unwritten >= SEND_WINDOW {
                return;
            }
            let Some(running) = connection.running_mut() else { return };
            let Some(item) = running.queue.pop() else { return };
            let (kind, channel, payload): (GossipKind, Arc<str>, Vec<u8>) = match item {
                Item::Channel(kind, channel, payload) => (kind, channel, payload),
                Item::Versions(names) => {
                    let message = self.versions_of(&names).encode();
                    self.send(conn, &message, now);
                    continue;
                }
                Item::Topology(kind, names) => {
                    let (payload, rest) = self.topology_update(names);
                    if let Some(rest) = rest {
                        self.with_running(conn, |running| running.queue.push_topology(kind, rest));
                    }
                    let Some(payload) = payload else { continue };
                    (kind, TOPOLOGY.into(), payload)
                }
            };
            let (tag, source) = match kind {
                GossipKind::Neighbour => (Tag::Gossip, self.config.name),
                GossipKind::Broadcast(source) => (Tag::GossipBroadcast, source),
            };
            let envelope =
                Envelope { channel: (&*channel).into(), source, destination: None, payload: &payload };
            self.send(conn, &tagged(tag, &envelope.encode()), now);
        }
    }

    /// Encodes the records of these peers. Returns the peers that do not fit one message as well.
    fn topology_update(&self, names: PeerSelection) -> (Option<Vec<u8>>, Option<PeerSelection>) {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut rest = BTreeSet::new();
        let mut take = |name, peer: &crate::peers::Peer| {
            if bytes > MAX_UPDATE_SIZE {
                rest.insert(name);
            } else {
                bytes += RECORD_SIZE + peer.nickname.len() + CONNECTION_SIZE * peer.connections.len();
                records.push(topology::record(name, peer));
            }
        };
        match names {
            PeerSelection::All => self.topology.peers().for_each(|(name, peer)| take(name, peer)),
            PeerSelection::Some(names) => {
                for name in names {
                    if let Some(peer) = self.topology.peer(name) {
                        take(name, peer);
                    }
                }
            }
        }
        let payload = (!records.is_empty()).then(|| encode_update(&records));
        (payload, (!rest.is_empty()).then_some(PeerSelection::Some(rest)))
    }

    /// Queues a message of a channel on a connection.
    pub(crate) fn queue(
        &mut self,
        conn: ConnectionId,
        kind: GossipKind,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
    ) {
        if channels.names().contains(&&**channel) {
            self.with_running(conn, |running| running.queue.push(kind, channel, payload, channels));
        } else if self.surrogate_bytes() < self.config.max_surrogate_bytes {
            self.with_running(conn, |running| running.queue.push_surrogate(kind, channel, payload));
        }
    }

    /// Bytes of messages that wait on all connections, of channels without a receiver here.
    pub(crate) fn surrogate_bytes(&self) -> usize {
        let running = self.connections.values().filter_map(Connection::running);
        running.map(|r| r.queue.surrogate_bytes()).sum()
    }

    pub(crate) fn queue_and_flush(
        &mut self,
        hop: PeerName,
        kind: GossipKind,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) {
        if let Some(&conn) = self.by_peer.get(&hop) {
            self.queue(conn, kind, channel, payload, channels);
            self.flush_queue(conn, now);
        }
    }

    /// Random neighbours, and all neighbours without a route. The latter are new and cannot be selected at random yet.
    pub(crate) fn gossip_hops(&mut self, except: Option<PeerName>) -> Vec<PeerName> {
        let mut hops = self.routes.random_neighbours(except, &mut self.rng);
        if self.timers.routes.is_some() {
            let new =
                self.by_peer.keys().filter(|&&n| self.routes.unicast_all(n).is_none() && Some(n) != except);
            hops.extend(new);
        }
        hops
    }

    fn gossip_to_neighbours(
        &mut self,
        except: Option<PeerName>,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) {
        for hop in self.gossip_hops(except) {
            self.queue_and_flush(hop, GossipKind::Neighbour, channel, payload, channels, now);
        }
    }

    /// Records that a neighbour has a record that we are about to relay.
    pub(crate) fn mark_as_known(&mut self, name: PeerName, peer: PeerName) {
        if let Some(known_by) = self.pending_news.get_mut(&name) {
            known_by.push(peer);
        }
    }

    pub(crate) fn push_topology(&mut self, hop: PeerName, kind: GossipKind, names: PeerSelection, now: Now) {
        if let Some(&conn) = self.by_peer.get(&hop) {
            self.with_running(conn, |running| running.queue.push_topology(kind, names));
            self.flush_queue(conn, now);
        }
    }

    /// Relays new records of peers to neighbours that do not have them. The first records are relayed immediately, those
    /// that arrive within the next [`RELAY_INTERVAL`] or more together. Records of peers to which nobody is connected wait until somebody is, or
    /// until they are removed here: they would be passed round for ever in a mesh that takes longer for it than to remove them.
    pub(crate) fn relay_news(&mut self, now: Now) {
        let reachable = self.topology.reachable();
        let mut news = std::mem::take(&mut self.pending_news);
        let waits = |name: &PeerName| !reachable.contains(name) && self.topology.peer(*name).is_some();
        self.pending_news = news.extract_if(.., |name, _| waits(name)).collect();
        if news
            .keys()
            .any(|&name| self.to_announce.contains(&name) && !self.topology.is_known_by_others(name))
        {
            // Without our connection to this new neighbour, receivers would find it unreachable.
            news.entry(self.config.name).or_default();
        }
        self.timers.next_relay = now.mono + self.interval().max(RELAY_INTERVAL);
        self.timers.relay = (!self.pending_news.is_empty()).then_some(self.timers.next_relay);
        let sources: BTreeSet<PeerName> = news.values().flatten().copied().collect();
        // As in 2.8.1, a neighbour that sent all of the records is not one of the random neighbours.
        let except = sources.first().copied().filter(|_| sources.len() == 1);
        for hop in self.gossip_hops(except) {
            let names = news.iter().filter(|(_, known_by)| !known_by.contains(&hop)).map(|(name, _)| *name);
            if let Some(&conn) = self.by_peer.get(&hop) {
                self.push_news(conn, names.collect(), now);
            }
        }
    }

    /// Gossips our record and those of new neighbours (docs/spec/mesh.md 8.5).
    pub(crate) fn announce(&mut self, now: Now) {
        let mut names = std::mem::take(&mut self.to_announce);
        names.insert(self.config.name);
        let connections = u32::try_from(self.topology.own_peer().connections.len()).unwrap_or(u32::MAX);
        self.timers.next_announce = now.mono
            + ANNOUNCE_INTERVAL_PER_CONNECTION.saturating_mul(connections).min(MAX_ANNOUNCE_INTERVAL);
        // The random selection includes only neighbours that have a route.
        self.refresh_routes(now);
        for hop in self.gossip_hops(None) {
            if let Some(&conn) = self.by_peer.get(&hop) {
                self.push_news(conn, names.clone(), now);
            }
        }
    }

    /// Gossips complete state periodically (docs/spec/mesh.md 7.6).
    pub(crate) fn gossip_all(&mut self, channels: &mut dyn Channels, now: Now) {
        self.sync_topology_with_random_neighbours(now);
        for name in channels.names().to_vec() {
            self.sync_channel(name, channels, now);
        }
    }

    pub(crate) fn sync_topology_with_random_neighbours(&mut self, now: Now) {
        for hop in self.gossip_hops(None) {
            if let Some(&conn) = self.by_peer.get(&hop) {
                self.sync_topology(conn, now);
            }
        }
    }

    fn relay_unicast(
        &mut self,
        dst: PeerName,
        from: Option<PeerName>,
        body: &[u8],
        now: Now,
    ) -> Result<(), UnicastError> {
        let mut hop = self.routes.unicast_all(dst);
        if hop.is_none_or(|hop| !self.by_peer.contains_key(&hop)) {
            self.refresh_routes(now);
            hop = self.routes.unicast_all(dst);
        }
        let hop = hop.ok_or(UnicastError::UnknownDestination(dst))?;
        if from == Some(hop) {
            return Err(UnicastError::RoutingLoop(hop));
        }
        let conn = *self.by_peer.get(&hop).ok_or(UnicastError::NoConnection(hop))?;
        if self.send(conn, &tagged(Tag::GossipUnicast, body), now) {
            Ok(())
        } else {
            Err(UnicastError::Congested(hop))
        }
    }

    /// Sends a neighbour a message with a forged source: a broadcast if there is no destination.
    #[cfg(test)]
    pub(crate) fn send_forged(
        &mut self,
        source: PeerName,
        destination: Option<PeerName>,
        hop: PeerName,
        now: Now,
    ) {
        let envelope = Envelope { channel: "set".into(), source, destination, payload: b"" };
        let tag = if destination.is_some() { Tag::GossipUnicast } else { Tag::GossipBroadcast };
        self.send(self.by_peer[&hop], &tagged(tag, &envelope.encode()), now);
    }

    /// Next hops of a broadcast, except the neighbour that sent it: while two peers have different topologies, each may
    /// be below the other in its broadcast tree, and the message would loop.
    fn broadcast_hops(&mut self, src: PeerName, from: Option<PeerName>, now: Now) -> Vec<PeerName> {
        // All peers have to use the same tree.
        self.refresh_routes(now);
        self.routes.broadcast_all(src).iter().copied().filter(|&hop| Some(hop) != from).collect()
    }

    fn relay_broadcast(
        &mut self,
        src: PeerName,
        from: Option<PeerName>,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) {
        for hop in self.broadcast_hops(src, from, now) {
            self.queue_and_flush(hop, GossipKind::Broadcast(src), channel, payload, channels, now);
        }
    }

    // ---- receiving --------------------------------------------------------------------------------------------

    /// Handles all complete messages.
    pub(crate) fn receive(&mut self, conn: ConnectionId, channels: &mut dyn Channels, now: Now) {
        loop {
            let Some(connection) = self.connections.get_mut(&conn) else { return };
            let Some(running) = connection.running_mut() else { return };
            let result = match running.session.next() {
                Ok(None) => return,
                Ok(Some(message)) => {
                    connection.on_message(now.mono);
                    self.handle_message(conn, &message, channels, now)
                }
                Err(error) => Err(ConnectionError::ProtocolViolation(error.to_string())),
            };
            if let Err(error) = result {
                return self.terminate(conn, error, now);
            }
        }
    }

    fn handle_message(
        &mut self,
        conn: ConnectionId,
        message: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        let Some((&tag, body)) = message.split_first() else {
            self.log_event(conn, ConnectionEvent::BlankMessage);
            return Ok(());
        };
        let Some(running) = self.connections.get(&conn).and_then(Connection::running) else { return Ok(()) };
        match Tag::from_byte(tag) {
            Some(Tag::Heartbeat) => {}
            Some(Tag::ConnectionEstablished | Tag::FragmentationReceived | Tag::PmtuVerified) => {
                let control = OverlayControl { index: None, tag, body: body.to_vec() };
                self.output(Output::OverlayControl { conn, control });
            }
            Some(Tag::OverlayControl) => {
                // 2.8.1 crashes on such a message (docs/spec/mesh.md 15.1).
                let [index, tag, body @ ..] = body else {
                    return Err(ConnectionError::ProtocolViolation(
                        "overlay control message too short".to_owned(),
                    ));
                };
                let control = OverlayControl { index: Some(*index), tag: *tag, body: body.to_vec() };
                self.output(Output::OverlayControl { conn, control });
            }
            Some(Tag::Gossip) => {
                // The envelope contains the neighbour's name as well, but that may be forged.
                let from = running.peer;
                self.handle_gossip(from, &envelope(body, false)?, channels, now)?;
            }
            Some(Tag::GossipUnicast) => {
                let from = running.peer;
                self.handle_unicast(from, body, channels, now)?;
            }
            Some(Tag::GossipBroadcast) => {
                let from = running.peer;
                self.handle_broadcast(from, &envelope(body, false)?, channels, now)?;
            }
            None if tag == digest::TAG && running.supports_digest => {
                let peer = running.peer;
                self.handle_digest(conn, peer, body, now)?;
            }
            None if tag == channel_digest::TAG && running.supports_channel_digest => {
                let peer = running.peer;
                self.handle_channel_digest(conn, peer, body, channels, now)?;
            }
            None if tag == restarts::TAG => self.handle_restart_message(conn, body, now)?,
            None if tag == REFUSAL_TAG => self.handle_refusal(running.peer, body)?,
            None => self.log_event(conn, ConnectionEvent::UnknownTag(tag)),
        }
        Ok(())
    }

    fn handle_unicast(
        &mut self,
        from: PeerName,
        body: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        let envelope = envelope(body, true)?;
        let dst = envelope.destination.unwrap_or(PeerName::UNKNOWN);
        if dst != self.config.name {
            let relayed = match envelope.source {
                source if source == self.config.name => Err(UnicastError::RoutingLoop(source)),
                _ => self.relay_unicast(dst, Some(from), body, now),
            };
            if let Err(error) = relayed {
                let event = Event::Gossip(envelope.channel.into_owned(), error.to_string());
                self.output(Output::Event(event));
            }
            return Ok(());
        }
        let channel = &*envelope.channel;
        if channel == TOPOLOGY {
            let excerpt = &envelope.payload[..envelope.payload.len().min(64)];
            let text = format!("unexpected topology gossip unicast: {excerpt:?}");
            return Err(ConnectionError::Receiver(text));
        }
        if channels.names().contains(&channel) {
            let result = channels.on_unicast(channel, envelope.source, envelope.payload, now);
            result.map_err(ConnectionError::Receiver)?;
        }
        Ok(())
    }

    fn handle_broadcast(
        &mut self,
        from: PeerName,
        envelope: &Envelope<'_>,
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        let (channel, source) = (&*envelope.channel, envelope.source);
        if channel == TOPOLOGY {
            let named = self.merge_update(from, envelope.payload, now)?.named;
            for hop in self.broadcast_hops(source, Some(from), now) {
                self.push_topology(
                    hop,
                    GossipKind::Broadcast(source),
                    PeerSelection::Some(named.clone()),
                    now,
                );
            }
        } else if channels.names().contains(&channel) {
            let relayed = channels.on_broadcast(channel, source, envelope.payload, now);
            if let Some(relayed) = relayed.map_err(ConnectionError::Receiver)? {
                self.relay_broadcast(source, Some(from), &channel.into(), &relayed, channels, now);
            }
        } else if let Some(name) = self.surrogate(channel) {
            self.relay_broadcast(source, Some(from), &name, envelope.payload, channels, now);
        }
        Ok(())
    }

    fn handle_gossip(
        &mut self,
        source: PeerName,
        envelope: &Envelope<'_>,
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        let channel = &*envelope.channel;
        if channel == TOPOLOGY {
            let merged = self.merge_update(source, envelope.payload, now)?;
            for name in &merged.same {
                self.mark_as_known(*name, source);
            }
            self.request_mentioned(source, &merged.mentioned, now);
            if !merged.new.is_empty() {
                self.pending_news.extend(merged.new.into_iter().map(|name| (name, vec![source])));
                if self.timers.next_relay <= now.mono {
                    self.relay_news(now);
                } else {
                    self.timers.relay = Some(self.timers.next_relay);
                }
            }
        } else if channels.names().contains(&channel) {
            let delta = channels.on_gossip(channel, envelope.payload, now);
            if let Some(delta) = delta.map_err(ConnectionError::Receiver)? {
                self.gossip_to_neighbours(Some(source), &channel.into(), &delta, channels, now);
            }
        } else if let Some(name) = self.surrogate(channel)
            && self.surrogates.is_new(channel, envelope.payload, self.config.gossip_interval, now.mono)
        {
            self.gossip_to_neighbours(Some(source), &name, envelope.payload, channels, now);
        }
        Ok(())
    }

    fn merge_update(
        &mut self,
        from: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<topology::MergeResult, ConnectionError> {
        let update = decode_update(payload).map_err(|e| ConnectionError::ProtocolViolation(e.to_string()))?;
        let max_version = topology::max_version(now.wall);
        let merged = self.topology.merge(update.records, max_version, &mut self.rng);
        if let (Some((peer, version)), Some(&conn)) = (merged.forged, self.by_peer.get(&from)) {
            let mut is_first = false;
            self.with_running(conn, |running| {
                is_first = !std::mem::replace(&mut running.forged_version_reported, true);
            });
            if is_first {
                self.log_event(conn, ConnectionEvent::ForgedVersion(self.topology.label(peer), version));
            }
        }
        self.schedule_collection(now);
        self.apply_topology_changes(now);
        for &peer in &merged.new {
            self.review_neighbour(peer);
        }
        Ok(merged)
    }

    fn surrogate(&mut self, channel: &str) -> Option<Arc<str>> {
        let (name, new) = self.surrogates.open(channel)?;
        if new {
            self.output(Output::Event(Event::SurrogateCreated(channel.to_owned())));
        }
        Some(name)
    }
}

fn envelope(body: &[u8], unicast: bool) -> Result<Envelope<'_>, ConnectionError> {
    Envelope::decode(body, unicast).map_err(|e| ConnectionError::ProtocolViolation(e.to_string()))
}

fn tagged(tag: Tag, body: &[u8]) -> Vec<u8> {
    [&[tag.byte()], body].concat()
}
