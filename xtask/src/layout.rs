//! Checks that ARCHITECTURE.md lists every crate, that crates depend on no more than its table allows, and that the modules of a crate
//! do not import each other in a cycle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cycles;

/// Lower layers never depend on higher ones.
const LAYERS: [&str; 4] = ["proto/", "linux/", "app/", "tests/"];

pub(crate) fn check(root: &Path) -> Result<()> {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("reading ARCHITECTURE.md")?;
    let table = parse_table(&text);
    ensure!(!table.is_empty(), "ARCHITECTURE.md has no crate table");
    let actual = dependencies(root)?;
    let mut problems = Vec::new();
    for (crate_path, deps) in &actual {
        let Some(allowed) = table.get(crate_path) else {
            problems.push(format!("{crate_path} is missing in the table of ARCHITECTURE.md"));
            continue;
        };
        for dep in deps.difference(allowed) {
            problems.push(format!("{crate_path} depends on {dep}, which the table does not allow"));
        }
        for dep in deps {
            if layer(dep) > layer(crate_path) {
                problems.push(format!("{crate_path} depends on {dep}, which is in a higher layer"));
            }
        }
    }
    for crate_path in table.keys().filter(|path| !actual.contains_key(*path)) {
        problems.push(format!("{crate_path} is in the table of ARCHITECTURE.md but is not a crate"));
    }
    for (crate_path, cycle) in cycles::find(root, actual.keys())? {
        problems.push(format!("{crate_path}: modules form an import cycle: {cycle}"));
    }
    if problems.is_empty() {
        println!("layout: {} crates as ARCHITECTURE.md says", actual.len());
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

fn layer(path: &str) -> usize {
    LAYERS.iter().position(|s| path.starts_with(s)).unwrap_or(LAYERS.len())
}

/// Rows of the form ``| `proto/mesh` | … | `proto/types` `proto/gob` | … |``.
fn parse_table(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    text.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
            let path = cells.first()?.strip_prefix('`')?.strip_suffix('`')?;
            let deps = cells.get(2)?.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            path.contains('/').then(|| (path.to_owned(), deps))
        })
        .collect()
}

/// For each workspace crate, by its folder: the workspace crates that it is built from (not those only its tests use).
pub(crate) fn dependencies(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let folder = |path: &str| {
        Path::new(path)
            .strip_prefix(root)
            .ok()
            .map(|p| p.to_string_lossy().trim_end_matches("/Cargo.toml").to_owned())
    };
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    Ok(packages
        .iter()
        .filter_map(|package| {
            let path = folder(package["manifest_path"].as_str()?)?;
            let deps = package["dependencies"]
                .as_array()?
                .iter()
                .filter(|dep| dep["kind"].is_null())
                .filter_map(|dep| folder(dep["path"].as_str()?))
                .collect();
            path.contains('/').then_some((path, deps))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_table_is_parsed() {
        let table = parse_table(
            "| Crate | x |\n| --- | --- |\n| `proto/gob` | words | `proto/types`, `proto/x` | pure |\n",
        );
        assert_eq!(table["proto/gob"], BTreeSet::from(["proto/types".to_owned(), "proto/x".to_owned()]));
        assert_eq!(table.len(), 1);
    }
}
