use std::time::Duration;

use weave_types::Instant;

use super::tables::KernelTables;

/// How long the tables of the last process are used, at most.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Whether a process that has taken over programs holds its own tables back: those of the last process stay in use until as many
/// peers are reached by the kernel again, by broadcasts as well, or for five seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returning(Option<(usize, Instant)>);

impl Returning {
    /// The programs that were taken over reach so much, as [`KernelTables::reached`].
    pub fn new(reached: usize, now: Instant) -> Returning {
        Returning((reached > 0).then_some((reached, now + TIMEOUT)))
    }

    /// Whether these tables are not to be published yet. Once `false` it remains so.
    pub fn holds(&mut self, tables: &KernelTables) -> bool {
        self.0 = self.0.filter(|(count, _)| tables.reached() < *count);
        self.0.is_some()
    }

    /// When to call [`handle_timeout`](Returning::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.0.map(|(_, until)| until)
    }

    /// `true` if the process's own tables are to be published now, whatever they are.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        self.0.take_if(|(_, until)| now >= *until).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use weave_switch::MacMap;
    use weave_types::{PeerName, ShortId};

    use super::*;
    use crate::fastdp::{FastdpPath, KernelNeighbour, KernelPeer, KernelRoute};

    /// Peer 1 of three, with neighbour 2 and these routes to peers 2 and 3.
    fn tables(routes: [KernelRoute; 2]) -> KernelTables {
        let name = |n: u8| PeerName::from_bytes([0, 0, 0, 0, 0, n]);
        let id = |n: u8| ShortId::new(u16::from(n)).unwrap();
        let peer = |(n, route)| KernelPeer {
            short_id: id(n),
            name: name(n),
            route,
            broadcast: Vec::new(),
            broadcast_user: false,
        };
        let [second, third] = routes;
        let path = FastdpPath { local: Ipv4Addr::LOCALHOST, remote: Ipv4Addr::LOCALHOST, port: 6784 };
        KernelTables {
            own: name(1),
            own_id: id(1),
            peers: [(1, KernelRoute::None), (2, second), (3, third)].map(peer).into(),
            neighbours: vec![KernelNeighbour {
                name: name(2),
                short_id: id(2),
                path,
                traffic: Default::default(),
            }],
            ports: vec![6784],
            macs: MacMap::empty(),
        }
    }

    #[test]
    fn tables_are_held_until_all_peers_are_reached_again() {
        use KernelRoute::{Kernel, None as Nothing, User};
        let start = Instant::ORIGIN;
        let mut returning = Returning::new(2, start);
        // The neighbour is there before the routes are.
        for routes in [[Nothing, Nothing], [Kernel(0), Nothing], [Kernel(0), User]] {
            assert!(returning.holds(&tables(routes)), "{routes:?}");
        }
        assert!(!returning.holds(&tables([Kernel(0), Kernel(0)])));
        assert!(!returning.holds(&tables([Nothing, Nothing])), "once only");
        assert_eq!(returning.poll_timeout(), None);
    }

    #[test]
    fn tables_are_held_until_broadcasts_go_out_again() {
        let mut returning = Returning::new(3, Instant::ORIGIN);
        let mut tables = tables([KernelRoute::Kernel(0); 2]);
        assert!(returning.holds(&tables));
        tables.peers[0].broadcast = vec![0];
        assert!(!returning.holds(&tables));
    }

    #[test]
    fn tables_are_not_held_for_ever_and_not_without_earlier_ones() {
        let start = Instant::ORIGIN;
        let mut returning = Returning::new(1, start);
        let due = returning.poll_timeout().unwrap();
        assert!(!returning.handle_timeout(start) && returning.handle_timeout(due));
        assert!(!returning.holds(&tables([KernelRoute::None; 2])));
        assert!(!Returning::new(0, start).holds(&tables([KernelRoute::None; 2])));
    }
}
