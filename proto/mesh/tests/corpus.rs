//! Replays the corpora of the fuzz targets, and mutations of them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod exercise;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn replay_and_mutate(target: &str, exercise: fn(&[u8])) {
    let seeds = corpus(target);
    seeds.iter().for_each(|data| exercise(data));
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6);
    TestRunner::new(ProptestConfig { cases: 3000, ..ProptestConfig::default() })
        .run(&(prop::sample::select(seeds), changes), |(mut data, changes)| {
            for (at, byte, how) in changes {
                if data.is_empty() {
                    break;
                }
                let at = at.index(data.len());
                match how {
                    0 => data[at] = byte,
                    1 => data[at] ^= 1 << (byte % 8),
                    2 => drop(data.remove(at)),
                    _ => data.insert(at, byte),
                }
            }
            exercise(&data);
            Ok(())
        })
        .unwrap();
}

#[test]
fn handshake() {
    replay_and_mutate("handshake", exercise::handshake);
}

#[test]
fn session_frames() {
    replay_and_mutate("session_frames", exercise::session_frames);
}

#[test]
fn topology_update() {
    replay_and_mutate("topology_update", exercise::topology_update);
}

#[test]
fn envelope() {
    replay_and_mutate("envelope", exercise::envelope);
}

#[test]
fn feature_map() {
    replay_and_mutate("feature_map", exercise::feature_map);
}
