//! Checks that cargo does not do: `layout` (ARCHITECTURE.md against the real dependencies), `circles` (modules that import each
//! other), `references` (from the source to the specification) and `claims`.
#![forbid(unsafe_code)]

mod circles;
mod claims;
mod layout;
mod references;

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match std::env::args().nth(1).as_deref() {
        Some("layout") => layout::check(&root),
        Some("circles") => circles::report(&root),
        Some("references") => references::check(&root),
        Some("claims") => claims::report(&root),
        _ => anyhow::bail!("usage: xtask layout | circles | references | claims"),
    }
}
