//! Runs the tests that show rows of docs/claims.md and prints each row's state.
//!
//! A test names its rows with `claims!("F-2", "F-5")`, which prints `claim F-2 shown` once all assertions before it have passed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

pub(crate) fn report(root: &Path, selection: &[String]) -> Result<()> {
    let text = std::fs::read_to_string(root.join("docs/claims.md")).context("reading docs/claims.md")?;
    let rows: Vec<(String, String)> = text.lines().filter_map(parse_row).collect();
    let tested = named_in_tests(root)?;
    let known: BTreeSet<&str> = rows.iter().map(|(id, _)| id.as_str()).collect();
    if let Some(unknown) = tested.keys().find(|id| !known.contains(id.as_str())) {
        bail!("{} names {unknown}, which is not in docs/claims.md", tested[unknown].display());
    }
    let shown = run_tests(root, selection)?;
    let (mut ok, mut failed, mut none) = (0, 0, 0);
    for (id, claim) in &rows {
        let state = match (shown.contains(id), tested.contains_key(id)) {
            (true, _) => {
                ok += 1;
                "shown"
            }
            (false, true) => {
                failed += 1;
                "FAILED"
            }
            (false, false) => {
                none += 1;
                "no test yet"
            }
        };
        println!("{id:<6}{state:<13}{}", claim.chars().take(100).collect::<String>());
    }
    println!("\n{ok} shown, {failed} failed, {none} without a test, {} rows", rows.len());
    if failed > 0 { bail!("{failed} claims failed") } else { Ok(()) }
}

/// `| F-2 | claim | …` gives the id and the claim.
fn parse_row(line: &str) -> Option<(String, String)> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let (id, claim) = (cells.next()?, cells.next()?);
    let (letter, number) = id.split_once('-')?;
    let is_id = matches!(letter, "S" | "A" | "I" | "F" | "P") && number.parse::<u32>().is_ok();
    is_id.then(|| (id.to_owned(), claim.to_owned()))
}

/// Every id in a `claims!(...)` of the test sources, with one file that names it.
fn named_in_tests(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join("tests/lab/tests"), root.join("tests/sim/tests")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path)?;
                for call in text.split("claims!(").skip(1) {
                    let list = call.split(')').next().unwrap_or_default();
                    for id in list.split('"').skip(1).step_by(2) {
                        found.insert(id.to_owned(), path.clone());
                    }
                }
            }
        }
    }
    Ok(found)
}

fn run_tests(root: &Path, selection: &[String]) -> Result<BTreeSet<String>> {
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .arg("test")
        .args(selection)
        .args(["--no-fail-fast", "--", "--nocapture", "--test-threads", "4"])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("running cargo test")?;
    let stdout = child.stdout.take().context("no output of cargo test")?;
    let mut shown = BTreeSet::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("claim ")
            && let Some((id, _)) = rest.split_once(" shown")
        {
            shown.insert(id.to_owned());
        }
        eprintln!("{line}");
    }
    child.wait()?;
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_rows_are_parsed() {
        assert_eq!(parse_row("| F-12 | a claim | check | open |").unwrap().0, "F-12");
        assert_eq!(parse_row("| id | claim | how |"), None);
        assert_eq!(parse_row("| S-x | claim | how |"), None);
    }
}
