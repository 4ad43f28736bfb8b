//! Replays the corpora of the fuzz targets, and mutations of them.

use proptest::prelude::*;

use crate::exercise;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn replay() {
    corpus("sleeve_datagram").iter().for_each(|data| exercise::datagram(data));
    corpus("overlay_control").iter().for_each(|data| exercise::control(data));
}

fn mutated(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..8);
    (prop::sample::select(corpus(target)), changes).prop_map(|(mut data, changes)| {
        for (at, byte, how) in changes {
            let at = at.index(data.len() + 1).min(data.len().saturating_sub(1));
            match how {
                _ if data.is_empty() => data.push(byte),
                0 => data[at] = byte,
                1 => data[at] ^= 1 << (byte % 8),
                2 => drop(data.remove(at)),
                _ => data.insert(at, byte),
            }
        }
        data
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn mutated_datagrams(data in mutated("sleeve_datagram")) {
        exercise::datagram(&data);
    }

    #[test]
    fn mutated_control(data in mutated("overlay_control")) {
        exercise::control(&data);
    }
}
