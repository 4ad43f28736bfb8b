//! References from the source to the specification: `docs/spec/mesh.md 4.8` must lead to a heading `4.8` of that file, or to
//! item 8 of a numbered list under heading `4`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const FOLDER: &str = "docs/spec/";

pub(crate) fn check(root: &Path) -> Result<()> {
    let mut documents = BTreeMap::new();
    for entry in std::fs::read_dir(root.join(FOLDER)).context("reading docs/spec")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        documents.insert(name, sections(&std::fs::read_to_string(&path)?));
    }
    let files = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root).output()?;
    ensure!(files.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&files.stderr));
    let (mut count, mut problems) = (0, Vec::new());
    for file in String::from_utf8_lossy(&files.stdout).lines() {
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        for (document, section) in references(&text) {
            count += 1;
            match documents.get(&document) {
                None => problems.push(format!("{file} refers to {FOLDER}{document}, which does not exist")),
                Some(known) if section.is_empty() || known.contains(&section) => {}
                Some(_) => problems.push(format!("{file}: {FOLDER}{document} has no section {section}")),
            }
        }
    }
    if problems.is_empty() {
        println!("references: {count} to the specification, all resolved");
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

/// The numbers of all headings, and of the items of numbered lists below them.
fn sections(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut heading = String::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix('#') {
            heading = leading_number(title.trim_start_matches('#').trim());
            found.insert(heading.clone());
        } else if let Some((item, _)) = line.split_once(". ")
            && item.parse::<u32>().is_ok()
        {
            found.insert(format!("{heading}.{item}"));
        }
    }
    found
}

/// `4.8` of `4.8 From handshake to running`, `A.1` of `A.1 Options`; empty if there is none.
fn leading_number(text: &str) -> String {
    let word = text.split_whitespace().next().unwrap_or_default().trim_end_matches(['.', ',', ';', ':', ')']);
    let is_number = |part: &str| part.parse::<u32>().is_ok();
    let mut parts = word.split('.');
    let first = parts.next().unwrap_or_default();
    let is_letter = first.len() == 1 && first.bytes().all(|b| b.is_ascii_uppercase());
    if (is_number(first) || is_letter) && parts.all(is_number) { word.to_owned() } else { String::new() }
}

/// Documents and sections that a source file refers to; `4.2 to 4.4`, `5 and 7` and `2.2, 3.1` are two references each.
fn references(source: &str) -> Vec<(String, String)> {
    // A reference may continue on the next line of a comment.
    let text = source.lines().map(|l| l.trim().trim_start_matches(['/', '!'])).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for rest in text.split(FOLDER).skip(1) {
        let Some((name, rest)) = rest.split_once(".md") else { continue };
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
            continue;
        }
        let mut words = rest.split_whitespace();
        let document = format!("{name}.md");
        let first = rest.starts_with(char::is_whitespace).then(|| words.next()).flatten().unwrap_or_default();
        found.push((document.clone(), leading_number(first)));
        let mut before = first;
        while let Some(word) = words.next() {
            let next = match word {
                "and" | "to" => words.next().unwrap_or_default(),
                word if before.ends_with(',') => word,
                _ => break,
            };
            let section = leading_number(next);
            if section.is_empty() {
                break;
            }
            found.push((document.clone(), section));
            before = next;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_headings_and_list_items() {
        let found = sections(
            "# Mesh\n## 15. Weaknesses\n1. one\n12. twelve\n### 4.8 Steps\n# A. Proxy\n## A.1 Options\n",
        );
        for section in ["15", "15.12", "4.8", "A", "A.1"] {
            assert!(found.contains(section), "{section} in {found:?}");
        }
    }

    #[test]
    fn references_are_found_across_lines_and_in_lists() {
        let list = |text| references(text).into_iter().map(|(d, s)| format!("{d} {s}")).collect::<Vec<_>>();
        assert_eq!(list("//! See (docs/spec/mesh.md\n//! 15.12)."), ["mesh.md 15.12"]);
        assert_eq!(list("(docs/spec/cli.md 2.2, 3.1)"), ["cli.md 2.2", "cli.md 3.1"]);
        assert_eq!(list("(docs/spec/ipam.md 5 and 7, S3)"), ["ipam.md 5", "ipam.md 7"]);
        assert_eq!(list("docs/spec/ipam.md, which says"), ["ipam.md "]);
        assert_eq!(list("docs/spec/cli.md 9, docs/spec/mesh.md 13"), ["cli.md 9", "mesh.md 13"]);
    }
}
