//! `lab demo`: the network in a minute.

use anyhow::Result;

/// Placeholder.
pub fn demo(_check: bool) -> Result<()> {
    anyhow::bail!("not yet")
}

/// Placeholder.
pub fn down() -> Result<()> {
    Ok(())
}
