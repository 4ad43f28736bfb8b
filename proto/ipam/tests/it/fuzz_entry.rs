//! Handles arbitrary bytes as messages of a peer, or as a database. The fuzz targets and the tests that replay their
//! corpora share this module.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::{Allocator, Config, Database, Init, Loaded, Output, RequestId, Subnet};
use weave_types::{Instant, Now, PeerName, PeerUid};

fn now() -> Now {
    Now { mono: Instant::ORIGIN, wall: Duration::from_secs(1_700_000_000) }
}

/// The allocation range of most vectors.
fn range() -> Subnet {
    let Ok(range) = "10.2.0.0/24".parse() else { panic!("invalid subnet") };
    range
}

fn names() -> Vec<PeerName> {
    [0x0100_0000_000a, 0x0200_0000_000b].into_iter().filter_map(PeerName::from_number).collect()
}

/// Peers in several states: an elector with a request, an observer, one with a ring, and one that is leaving.
fn peers() -> Vec<Allocator> {
    let inits = [Init::Consensus(Some(2)), Init::Observer, Init::Seed(names()), Init::Seed(names())];
    let mut peers = Vec::new();
    for (index, init) in inits.into_iter().enumerate() {
        let mut config = Config::new(names()[0], PeerUid(1), "host-a", range());
        config.init = init;
        let mut peer = Allocator::new(config, ChaCha12Rng::seed_from_u64(1), Loaded::default(), now());
        let reachable: BTreeMap<PeerName, String> = names().into_iter().map(|n| (n, String::new())).collect();
        peer.handle_topology_change(&reachable, now());
        peer.allocate(RequestId(1), "c1".to_owned(), range(), true, now());
        let Ok(cidr) = "10.2.0.200/24".parse() else { panic!("invalid CIDR") };
        peer.claim(RequestId(2), "c2".to_owned(), cidr, true, false, now());
        if index == 3 {
            peer.leave(now());
        }
        drain(&mut peer);
        peers.push(peer);
    }
    peers
}

/// Checks that the outputs of an input are bounded, and the invariants of the allocator.
fn drain(peer: &mut Allocator) {
    let mut bytes = 0;
    let mut outputs = 0;
    while let Some(output) = peer.poll_output() {
        outputs += 1;
        if let Output::Broadcast(payload) | Output::Unicast { payload, .. } = output {
            bytes += payload.len();
        }
    }
    assert!(outputs < 100 && bytes < 32 << 20, "{outputs} outputs, {bytes} bytes");
    if let Err(error) = peer.check_invariants() {
        panic!("{error}");
    }
}

/// Handles a state message as gossip and as a broadcast. Decoding, encoding and decoding again must give the same message.
pub(crate) fn ipam_state(data: &[u8]) {
    let decoded = StateMessage::decode(data);
    if let Ok(state) = &decoded {
        assert_eq!(StateMessage::decode(&state.encode()).as_ref(), Ok(state));
    }
    for mut peer in peers() {
        let before = peer.ring().clone();
        let mut other = peer.clone();
        let gossiped = peer.handle_gossip(data, now());
        assert!(decoded.is_ok() || gossiped.is_err());
        if gossiped.is_err() {
            assert_eq!(*peer.ring(), before, "an error changes nothing");
        }
        drain(&mut peer);
        let broadcast = other.handle_broadcast(names()[1], data, now());
        assert_eq!(broadcast.is_ok(), gossiped.is_ok());
        drain(&mut other);
        // A second merge changes nothing.
        let ring = peer.ring().clone();
        if gossiped.is_ok() && peer.handle_gossip(data, now()).is_ok() {
            assert_eq!(peer.ring().ranges_owned_by(names()[0]), ring.ranges_owned_by(names()[0]));
        }
        drain(&mut peer);
    }
}

/// Handles a unicast message.
pub(crate) fn ipam_unicast(data: &[u8]) {
    if let Ok(Some(message)) = Unicast::decode(data) {
        assert_eq!(Unicast::decode(&message.encode()), Ok(Some(message)));
    }
    for mut peer in peers() {
        let _ = peer.handle_unicast(names()[1], data, now());
        drain(&mut peer);
        peer.handle_timeout(Now { mono: Instant::ORIGIN + Duration::from_secs(6), ..now() });
        drain(&mut peer);
    }
}

/// Reads a database file, as it is and with corrected checksums. A peer must start with any state that can be read.
pub(crate) fn ipam_database(data: &[u8]) {
    let mut repaired = data.to_vec();
    for page in [0, 4096] {
        repair(&mut repaired, page);
    }
    for file in [data, &repaired] {
        let Ok(database) = Database::read(file) else { continue };
        let name = database.peer_name.unwrap_or(names()[0]);
        let config = Config::new(name, PeerUid(1), "host-a", range());
        let rng = ChaCha12Rng::seed_from_u64(1);
        let mut peer = Allocator::new(config, rng, database.loaded(), now());
        while peer.poll_output().is_some() {}
        if let Err(error) = peer.check_invariants() {
            panic!("{error}");
        }
    }
}

/// Corrects the checksum of a meta page.
fn repair(file: &mut [u8], page: usize) {
    let Some(meta) = file.get_mut(page + 16..page + 80) else { return };
    let (content, sum) = meta.split_at_mut(56);
    let hash = content.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    sum.copy_from_slice(&hash.to_le_bytes());
}
