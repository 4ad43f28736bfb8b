//! Replays the corpus of the fuzz target, and mutations of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod exercise;

use proptest::prelude::*;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn replay() {
    corpus("gob_stream").iter().for_each(|data| exercise::stream(data));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn mutated(
        mut data in prop::sample::select(corpus("gob_stream")),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6),
    ) {
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
        exercise::stream(&data);
    }
}
