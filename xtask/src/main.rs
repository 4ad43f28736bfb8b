//! Checks that cargo does not do: `layout` (ARCHITECTURE.md against the real dependencies, no import cycles), `references` (from the source to the specification), `claims`, and `mutants` (mutation tests).
#![forbid(unsafe_code)]

mod claims;
mod cycles;
mod layout;
mod mutants;
mod references;

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("layout") => layout::check(&root),
        Some("references") => references::check(&root),
        Some("claims") => claims::report(&root, &arguments[1..]),
        Some("mutants") => mutants::run(&root, &arguments[1..]),
        _ => anyhow::bail!(
            "usage: xtask layout | references | claims CARGO-TEST-ARGUMENT... | mutants [NAME...]"
        ),
    }
}
