//! Messages that come, and gossip that goes (docs/spec/mesh.md 5 and 7).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use weave_types::{ConnectionId, Now, PeerName};

use crate::connection::Connection;
use crate::digest;
use crate::envelope::Envelope;
use crate::event::{ConnectionError, ConnectionEvent, Event};
use crate::gossip::{Channels, Item, Names, Route};
use crate::mesh::Mesh;
use crate::output::{Output, OverlayControl};
use crate::topology;
use crate::update::{decode_update, encode_update};
use crate::wire::Tag;

pub(crate) const TOPOLOGY: &str = "topology";

/// Gossip waits while the kernel has so many bytes of a connection to send: what waits can still be merged.
const WINDOW: usize = 64 << 10;
/// Beyond it, messages that cannot wait are dropped. The connection will end soon if nothing moves.
const MAX_UNWRITTEN: usize = 16 << 20;
/// Pause between two rounds of passing on what was news about peers.
const RELAY_PAUSE: Duration = Duration::from_millis(100);
/// A topology message is ended after about so many bytes: frames have a limit. The last record may go beyond it, and
/// addresses may be longer than reckoned; see the limits of [`decode_update`].
const MAX_UPDATE: usize = 2 << 20;
/// What a record and a connection take.
const RECORD: usize = 40;
const LINK: usize = 36;

/// Why a unicast could not be sent. It may be lost without an error, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnicastError {
    /// There is no way to the peer.
    UnknownDestination(PeerName),
    /// There was a way a moment ago.
    NoConnection(PeerName),
    /// It came from the next hop, or from ourself: peers do not agree on the topology yet, and would send it round and round.
    GoesRound(PeerName),
    /// The next hop does not keep up.
    Congested(PeerName),
}

impl fmt::Display for UnicastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnicastError::UnknownDestination(peer) => write!(f, "unknown relay destination: {peer}"),
            UnicastError::NoConnection(hop) => write!(f, "unable to find connection to relay peer {hop}"),
            UnicastError::GoesRound(hop) => write!(f, "the way to the relay destination leads back to {hop}"),
            UnicastError::Congested(hop) => write!(f, "connection to relay peer {hop} is congested"),
        }
    }
}

impl std::error::Error for UnicastError {}

impl Mesh {
    // ---- originating ------------------------------------------------------------------------------------------

    /// Sends a message to one peer over whatever hops there are.
    ///
    /// # Errors
    /// There is no way. Without an error it may be lost all the same.
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

    /// Sends state to some neighbours, who pass on what is news to them.
    pub fn gossip(&mut self, channel: &str, payload: &[u8], channels: &mut dyn Channels, now: Now) {
        self.gossip_to_some(None, &channel.into(), payload, channels, now);
    }

    /// Says something to the overlay at the other end, in the form that it understands. `index`: which of the common
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

    /// Hands a message to the driver; false if there is too much before it.
    fn send(&mut self, conn: ConnectionId, message: &[u8], now: Now) -> bool {
        let Some(connection) = self.connections.get_mut(&conn) else { return false };
        if connection.unwritten > MAX_UNWRITTEN {
            return false;
        }
        let Some(running) = connection.running_mut() else { return false };
        match running.session.seal(message) {
            Ok(bytes) => {
                connection.wrote(bytes.len(), now.mono);
                self.output(Output::Write { conn, bytes });
                self.watch(conn);
                true
            }
            Err(error) => {
                self.terminate(conn, ConnectionError::Misbehaved(error.to_string()), now);
                false
            }
        }
    }

    /// The same for what can be repeated as well later.
    pub(crate) fn send_if_idle(&mut self, conn: ConnectionId, message: &[u8], now: Now) -> bool {
        let idle = self.connections.get(&conn).is_some_and(|c| c.unwritten < WINDOW);
        if idle {
            self.send(conn, message, now);
        }
        idle
    }

    pub(crate) fn heartbeat(&mut self, conn: ConnectionId, now: Now) {
        self.send(conn, &[Tag::Heartbeat.byte()], now);
    }

    /// Sends what waits, as long as the connection takes it.
    pub(crate) fn pump(&mut self, conn: ConnectionId, now: Now) {
        loop {
            let Some(connection) = self.connections.get_mut(&conn) else { return };
            if connection.unwritten >= WINDOW {
                return;
            }
            let Some(running) = connection.running_mut() else { return };
            let Some(item) = running.queue.pop() else { return };
            let (route, channel, payload): (Route, Arc<str>, Vec<u8>) = match item {
                Item::Channel(route, channel, payload) => (route, channel, payload),
                Item::Ages(names) => {
                    let message = self.ages_of(&names).encode();
                    self.send(conn, &message, now);
                    continue;
                }
                Item::Topology(route, names) => {
                    let (payload, rest) = self.topology_update(names);
                    if let Some(rest) = rest {
                        self.with_running(conn, |running| running.queue.push_topology(route, rest));
                    }
                    let Some(payload) = payload else { continue };
                    (route, TOPOLOGY.into(), payload)
                }
            };
            let (tag, source) = match route {
                Route::Gossip => (Tag::Gossip, self.config.name),
                Route::Broadcast(source) => (Tag::GossipBroadcast, source),
            };
            let envelope =
                Envelope { channel: (&*channel).into(), source, destination: None, payload: &payload };
            self.send(conn, &tagged(tag, &envelope.encode()), now);
        }
    }

    /// The records of these peers as they are, and those that are too many for one message.
    fn topology_update(&self, names: Names) -> (Option<Vec<u8>>, Option<Names>) {
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut rest = BTreeSet::new();
        let mut take = |name, peer: &crate::peers::Peer| {
            if bytes > MAX_UPDATE {
                rest.insert(name);
            } else {
                bytes += RECORD + peer.nickname.len() + LINK * peer.links.len();
                records.push(topology::record(name, peer));
            }
        };
        match names {
            Names::All => self.topology.peers().for_each(|(name, peer)| take(name, peer)),
            Names::Some(names) => {
                for name in names {
                    if let Some(peer) = self.topology.peer(name) {
                        take(name, peer);
                    }
                }
            }
        }
        let payload = (!records.is_empty()).then(|| encode_update(&records));
        (payload, (!rest.is_empty()).then_some(Names::Some(rest)))
    }

    /// Lets a message of a channel wait for its turn on a connection.
    pub(crate) fn queue(
        &mut self,
        conn: ConnectionId,
        route: Route,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
    ) {
        let served = channels.names().contains(&&**channel);
        self.with_running(conn, |running| {
            if served {
                running.queue.push(route, channel, payload, channels);
            } else {
                running.queue.push_surrogate(route, channel, payload);
            }
        });
    }

    fn queue_and_pump(
        &mut self,
        hop: PeerName,
        route: Route,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) {
        if let Some(&conn) = self.by_peer.get(&hop) {
            self.queue(conn, route, channel, payload, channels);
            self.pump(conn, now);
        }
    }

    /// Some neighbours by chance, and all those to whom there are no routes yet: they would miss the news.
    fn gossip_hops(&mut self, except: Option<PeerName>) -> Vec<PeerName> {
        let mut hops = self.routes.random_neighbours(except, &mut self.rng);
        if self.timers.routes.is_some() {
            let new =
                self.by_peer.keys().filter(|&&n| self.routes.unicast_all(n).is_none() && Some(n) != except);
            hops.extend(new);
        }
        hops
    }

    fn gossip_to_some(
        &mut self,
        except: Option<PeerName>,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) {
        for hop in self.gossip_hops(except) {
            self.queue_and_pump(hop, Route::Gossip, channel, payload, channels, now);
        }
    }

    /// Somebody need not be told what we are about to pass on.
    pub(crate) fn knows_too(&mut self, name: PeerName, peer: PeerName) {
        if let Some(told_by) = self.news.get_mut(&name) {
            told_by.push(peer);
        }
    }

    pub(crate) fn push_topology(&mut self, hop: PeerName, route: Route, names: Names, now: Now) {
        if let Some(&conn) = self.by_peer.get(&hop) {
            self.with_running(conn, |running| running.queue.push_topology(route, names));
            self.pump(conn, now);
        }
    }

    /// Passes news about peers on, but not to those who know it already. The first news goes at once; what comes in the next
    /// moments, when there usually is more about the same peers, goes together.
    pub(crate) fn relay_news(&mut self, now: Now) {
        let mut news = std::mem::take(&mut self.news);
        if self.timers.announce.is_some() {
            // The news may be about a new neighbour: who hears of it must hear of the link to it as well, or takes it for
            // unreachable.
            news.entry(self.config.name).or_default();
        }
        self.timers.relay = None;
        self.timers.relay_free = now.mono + RELAY_PAUSE;
        let sources: BTreeSet<PeerName> = news.values().flatten().copied().collect();
        // As in the original, the only source of all news does not count among the neighbours.
        let except = sources.first().copied().filter(|_| sources.len() == 1);
        for hop in self.gossip_hops(except) {
            let names = news.iter().filter(|(_, told_by)| !told_by.contains(&hop)).map(|(name, _)| *name);
            self.push_news(hop, names.collect(), now);
        }
    }

    /// Our own record has changed, or we have new neighbours (docs/spec/mesh.md 8.5).
    pub(crate) fn announce(&mut self, now: Now) {
        let mut names = std::mem::take(&mut self.announced);
        names.insert(self.config.name);
        // Whoever is new must be among the neighbours.
        self.refresh_routes();
        for hop in self.gossip_hops(None) {
            self.push_topology(hop, Route::Gossip, Names::Some(names.clone()), now);
        }
    }

    /// The periodic round (docs/spec/mesh.md 7.6).
    pub(crate) fn gossip_all(&mut self, channels: &mut dyn Channels, now: Now) {
        self.offer_topology_to_some(now);
        for name in channels.names().to_vec() {
            if let Some(state) = channels.state(name, now) {
                self.gossip_to_some(None, &name.into(), &state, channels, now);
            }
        }
    }

    pub(crate) fn offer_topology_to_some(&mut self, now: Now) {
        for hop in self.gossip_hops(None) {
            if let Some(&conn) = self.by_peer.get(&hop) {
                self.offer_topology(conn, now);
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
            self.refresh_routes();
            hop = self.routes.unicast_all(dst);
        }
        let hop = hop.ok_or(UnicastError::UnknownDestination(dst))?;
        if from == Some(hop) {
            return Err(UnicastError::GoesRound(hop));
        }
        let conn = *self.by_peer.get(&hop).ok_or(UnicastError::NoConnection(hop))?;
        if self.send(conn, &tagged(Tag::GossipUnicast, body), now) {
            Ok(())
        } else {
            Err(UnicastError::Congested(hop))
        }
    }

    /// Passes on to a neighbour what another is said to have sent, to all if there is no destination. For tests.
    #[cfg(test)]
    pub(crate) fn relay_as(
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

    /// To whom a broadcast goes on. Not back to the neighbour that it came from: while peers do not agree on the topology, each
    /// may have the other below itself in the tree of the source, and they would send it to and fro.
    fn broadcast_hops(&mut self, src: PeerName, from: Option<PeerName>) -> Vec<PeerName> {
        // Everybody has to see the same tree.
        self.refresh_routes();
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
        for hop in self.broadcast_hops(src, from) {
            self.queue_and_pump(hop, Route::Broadcast(src), channel, payload, channels, now);
        }
    }

    // ---- receiving --------------------------------------------------------------------------------------------

    /// Takes up all messages that are complete.
    pub(crate) fn receive(&mut self, conn: ConnectionId, channels: &mut dyn Channels, now: Now) {
        loop {
            let Some(connection) = self.connections.get_mut(&conn) else { return };
            let Some(running) = connection.running_mut() else { return };
            let result = match running.session.next() {
                Ok(None) => return,
                Ok(Some(message)) => {
                    connection.heard(now.mono);
                    self.handle_message(conn, &message, channels, now)
                }
                Err(error) => Err(ConnectionError::Misbehaved(error.to_string())),
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
            self.log(conn, ConnectionEvent::BlankMessage);
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
                // 2.8.1 would crash here (docs/spec/mesh.md 15.1).
                let [index, tag, body @ ..] = body else {
                    return Err(ConnectionError::Misbehaved("overlay control message too short".to_owned()));
                };
                let control = OverlayControl { index: Some(*index), tag: *tag, body: body.to_vec() };
                self.output(Output::OverlayControl { conn, control });
            }
            Some(Tag::Gossip) => {
                // The envelope names the neighbour as well; this is where it really came from.
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
            None if tag == digest::TAG && running.digests => {
                let peer = running.peer;
                self.handle_digest(conn, peer, body, now)?;
            }
            None => self.log(conn, ConnectionEvent::UnknownTag(tag)),
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
                source if source == self.config.name => Err(UnicastError::GoesRound(source)),
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
            let some = &envelope.payload[..envelope.payload.len().min(64)];
            let text = format!("unexpected topology gossip unicast: {some:?}");
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
            let named = self.merge(envelope.payload, now)?.named;
            for hop in self.broadcast_hops(source, Some(from)) {
                self.push_topology(hop, Route::Broadcast(source), Names::Some(named.clone()), now);
            }
        } else if channels.names().contains(&channel) {
            let onward = channels.on_broadcast(channel, source, envelope.payload, now);
            if let Some(onward) = onward.map_err(ConnectionError::Receiver)? {
                self.relay_broadcast(source, Some(from), &channel.into(), &onward, channels, now);
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
            let merged = self.merge(envelope.payload, now)?;
            for name in &merged.same {
                self.knows_too(*name, source);
            }
            self.ask_for_mentioned(source, &merged.mentioned, now);
            if !merged.new.is_empty() {
                self.news.extend(merged.new.into_iter().map(|name| (name, vec![source])));
                if self.timers.relay_free <= now.mono {
                    self.relay_news(now);
                } else {
                    self.timers.relay = Some(self.timers.relay_free);
                }
            }
        } else if channels.names().contains(&channel) {
            let delta = channels.on_gossip(channel, envelope.payload, now);
            if let Some(delta) = delta.map_err(ConnectionError::Receiver)? {
                self.gossip_to_some(Some(source), &channel.into(), &delta, channels, now);
            }
        } else if let Some(name) = self.surrogate(channel)
            && self.surrogates.is_news(channel, envelope.payload, self.config.gossip_interval, now.mono)
        {
            self.gossip_to_some(Some(source), &name, envelope.payload, channels, now);
        }
        Ok(())
    }

    fn merge(&mut self, payload: &[u8], now: Now) -> Result<topology::Merged, ConnectionError> {
        let update = decode_update(payload).map_err(|e| ConnectionError::Misbehaved(e.to_string()))?;
        let merged = self.topology.merge(update.records, &mut self.rng);
        self.schedule_collection(now);
        self.absorb(now);
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
    Envelope::decode(body, unicast).map_err(|e| ConnectionError::Misbehaved(e.to_string()))
}

fn tagged(tag: Tag, body: &[u8]) -> Vec<u8> {
    [&[tag.byte()], body].concat()
}
