//! Scenarios with their recorded output. `UPDATE_TRANSCRIPTS=1` records it again.

use std::fs;
use std::path::Path;

use weave_sim::transcript;

#[test]
fn output_of_transcripts_is_as_recorded() {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/transcripts"));
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    assert!(!paths.is_empty(), "no transcripts in {}", dir.display());
    let mut different = Vec::new();
    for path in paths {
        let recorded = fs::read_to_string(&path).unwrap();
        let shown = transcript::run(&recorded);
        if shown == recorded {
            continue;
        }
        if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            fs::write(&path, shown).unwrap();
        } else {
            different.push(format!("{}:\n{shown}", path.display()));
        }
    }
    assert!(different.is_empty(), "the output differs from the recorded one:\n{}", different.join("\n"));
}
