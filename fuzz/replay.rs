//! Runs the function of a fuzz target on its corpus and on mutations of it. The tests of the crates include this file by path,
//! as the fuzz targets include the `fuzz_entry` modules of the crates.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Every input of `fuzz/corpus/<target>` as it is, then `cases` of them changed in a few bytes.
pub(crate) fn replay(target: &str, cases: u32, run: fn(&[u8])) {
    let seeds = corpus(target);
    seeds.iter().for_each(|data| run(data));
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..8);
    // What fails is kept as an input in the corpus, not in a file beside the test.
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&(prop::sample::select(seeds), changes), |(mut data, changes)| {
            for (at, byte, how) in changes {
                let Some(last) = data.len().checked_sub(1) else {
                    data.push(byte);
                    continue;
                };
                let at = at.index(data.len()).min(last);
                match how {
                    0 => data[at] = byte,
                    1 => data[at] ^= 1 << (byte % 8),
                    2 => drop(data.remove(at)),
                    _ => data.insert(at, byte),
                }
            }
            run(&data);
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{target}: {e}"));
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{path} is empty");
    paths.iter().map(|path| std::fs::read(path).unwrap_or_else(|e| panic!("{path:?}: {e}"))).collect()
}
