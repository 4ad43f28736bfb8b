//! Connections whose data path has failed for now (docs/spec/mesh.md 18.5).
//!
//! While another route to the peer exists, such a connection is withdrawn from our record: all peers, 2.8.1 included, then route data
//! and gossip around it. The connection itself goes on, and is added again once its path works. If the other route ends before, the
//! connection is added as well, because it is the last chance and the peer must not be forgotten. It is then withdrawn again only after
//! its path has worked, since peers that judge each other's routes at the same time would otherwise go on for ever.

use weave_types::{ConnectionId, Now, PeerName};

use crate::connection::{Connection, PathState};
use crate::event::ConnectionEvent;
use crate::mesh::Mesh;
use crate::output::Output;
use crate::peers::{Peer, PeerConnection};

impl Mesh {
    /// The data path of an established connection has failed, but the connection goes on.
    pub fn handle_path_down(&mut self, conn: ConnectionId, now: Now) {
        let Some(running) = self.connections.get_mut(&conn).and_then(Connection::running_mut) else { return };
        if running.path == PathState::Works && running.added && running.established {
            running.path = PathState::Failed;
            self.failed_paths.insert(conn);
            self.log_event(conn, ConnectionEvent::PathFailed);
            self.review_paths(now);
            self.finish_input(now);
        }
    }

    /// The data path works again.
    pub fn handle_path_up(&mut self, conn: ConnectionId, now: Now) {
        if self.failed_paths.remove(&conn) {
            let before = self.set_path(conn, PathState::Works);
            self.log_event(conn, ConnectionEvent::PathWorks);
            if before == PathState::Withdrawn {
                self.restore(conn, now);
            }
            self.finish_input(now);
        }
    }

    /// Withdraws and restores connections with a failed path, as the routes of others require.
    pub(crate) fn review_paths(&mut self, now: Now) {
        for conn in self.failed_paths.clone() {
            let Some(running) = self.connections.get(&conn).and_then(Connection::running) else { continue };
            let (peer, path) = (running.peer, running.path);
            match (path, self.topology.has_other_route(peer)) {
                (PathState::Failed, true) => {
                    self.set_path(conn, PathState::Withdrawn);
                    self.topology.disconnect(peer);
                    self.log_event(conn, ConnectionEvent::Withdrawn);
                    self.publish_paths(now);
                }
                (PathState::Withdrawn, false) => {
                    self.set_path(conn, PathState::LastRoute);
                    self.log_event(conn, ConnectionEvent::LastRoute);
                    self.restore(conn, now);
                }
                _ => {}
            }
        }
    }

    /// A peer's record has changed. If it does not list its connection to us, it may have noticed a failure before us.
    pub(crate) fn review_neighbour(&mut self, peer: PeerName) {
        let Some(&conn) = self.by_peer.get(&peer) else { return };
        let running = self.connections.get(&conn).and_then(Connection::running);
        let in_use = running.is_some_and(|running| running.established && running.path == PathState::Works);
        let own = self.topology.own();
        let listed = |record: &Peer| record.connections.iter().any(|c| c.peer == own);
        if in_use && self.topology.peer(peer).is_some_and(|record| !listed(record)) {
            self.output(Output::TestPath { conn });
        }
    }

    fn restore(&mut self, conn: ConnectionId, now: Now) {
        let Some(connection) = self.connections.get(&conn) else { return };
        let Some(running) = connection.running() else { return };
        let (address, outbound) = (connection.remote.into(), connection.outbound());
        self.topology.connect(PeerConnection {
            peer: running.peer,
            address,
            outbound,
            established: running.established,
        });
        self.publish_paths(now);
    }

    fn set_path(&mut self, conn: ConnectionId, path: PathState) -> PathState {
        let running = self.connections.get_mut(&conn).and_then(Connection::running_mut);
        running.map_or(path, |running| std::mem::replace(&mut running.path, path))
    }

    /// Routes change at once, here and elsewhere.
    pub(crate) fn publish_paths(&mut self, now: Now) {
        self.apply_topology_changes(now);
        self.timers.announce = Some(now.mono);
        self.refresh_routes(now);
        self.targets_stale = true;
    }
}
