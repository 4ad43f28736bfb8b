//! Scenarios with what they show. `UPDATE_TRANSCRIPTS=1` writes down what they show now.

use std::fs;
use std::path::Path;

use weave_sim::transcript;

#[test]
fn transcripts_show_what_they_did() {
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
    assert!(different.is_empty(), "these show something else now:\n{}", different.join("\n"));
}
