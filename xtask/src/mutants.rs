//! Planted bugs: each patch in `tests/mutants` is applied to a copy of the repository, and the commands that it names must then
//! fail. Without a patch they must pass.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

/// Begins the lines of a patch that name a command.
const FOUND_BY: &str = "Found by: cargo ";

struct Mutant {
    name: String,
    patch: PathBuf,
    /// Arguments of cargo.
    commands: Vec<String>,
}

/// Tests the patches with the given names, or all.
pub(crate) fn run(root: &Path, names: &[String]) -> Result<()> {
    let mutants = read(root)?;
    let unknown: Vec<_> = names.iter().filter(|name| !mutants.iter().any(|m| m.name == **name)).collect();
    ensure!(unknown.is_empty(), "no such patch in tests/mutants: {unknown:?}");
    let chosen = || mutants.iter().filter(|mutant| names.is_empty() || names.contains(&mutant.name));
    let copy = Copy::new(root)?;
    for command in chosen().flat_map(|mutant| &mutant.commands).collect::<BTreeSet<_>>() {
        if let Some(failure) = copy.failure(command)? {
            bail!("cargo {command} fails without a patch: {failure}");
        }
    }
    let mut missed = Vec::new();
    for mutant in chosen() {
        copy.apply(mutant)?;
        for command in &mutant.commands {
            match copy.failure(command).with_context(|| mutant.name.clone())? {
                Some(failure) => println!("{}: {command}: {failure}", mutant.name),
                None => missed.push(format!("{}: cargo {command}", mutant.name)),
            }
        }
    }
    ensure!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
    println!("all {} planted bugs are found", chosen().count());
    Ok(())
}

fn read(root: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for entry in fs::read_dir(root.join("tests/mutants"))? {
        let patch = entry?.path();
        let text = fs::read_to_string(&patch)?;
        let commands: Vec<String> =
            text.lines().filter_map(|line| line.strip_prefix(FOUND_BY)).map(str::to_owned).collect();
        ensure!(!commands.is_empty(), "{}: no line begins with {FOUND_BY:?}", patch.display());
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        mutants.push(Mutant { name, patch, commands });
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

/// A clone of the repository, uncommitted changes of tracked files included, with a target directory of its own.
struct Copy {
    tree: PathBuf,
    target: PathBuf,
}

impl Copy {
    fn new(root: &Path) -> Result<Copy> {
        let tree = root.join("target/mutants/tree");
        if tree.exists() {
            fs::remove_dir_all(&tree)?;
        }
        // Writes a commit of the changes if there are any, and changes nothing else.
        let changes = git(root, &["stash", "create"])?;
        let commit = if changes.is_empty() { git(root, &["rev-parse", "HEAD"])? } else { changes };
        let to = tree.to_string_lossy();
        git(root, &["clone", "--quiet", "--shared", "--no-checkout", ".", &to])?;
        git(&tree, &["checkout", "--quiet", "--detach", &commit])?;
        Ok(Copy { tree, target: root.join("target/mutants/build") })
    }

    fn apply(&self, mutant: &Mutant) -> Result<()> {
        git(&self.tree, &["reset", "--quiet", "--hard"])?;
        let patch = mutant.patch.to_string_lossy();
        git(&self.tree, &["apply", &patch]).with_context(|| format!("{} does not apply", patch))?;
        Ok(())
    }

    /// Builds and runs a command; what failed, if it fails.
    fn failure(&self, command: &str) -> Result<Option<String>> {
        let words: Vec<&str> = command.split(' ').collect();
        let build: Vec<&str> = match words.split_first() {
            Some((&"run", rest)) => {
                ["build"].into_iter().chain(rest.iter().copied().take_while(|word| *word != "--")).collect()
            }
            Some((&"test", rest)) => ["test", "--no-run"].into_iter().chain(rest.iter().copied()).collect(),
            _ => bail!("neither cargo run nor cargo test: {command}"),
        };
        let built = self.cargo(&build)?;
        ensure!(built.status.success(), "does not build: {}", String::from_utf8_lossy(&built.stderr));
        let output = self.cargo(&words)?;
        if output.status.success() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let failed: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("run ") || line.ends_with("... FAILED"))
            .map(|line| line.trim_start_matches("test ").trim_end_matches(" ... FAILED"))
            .collect();
        Ok(Some(failed.join(", ").chars().take(160).collect()))
    }

    fn cargo(&self, arguments: &[&str]) -> Result<Output> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(arguments).current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        cargo.output().context("cargo")
    }
}

/// What git prints.
fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().context("git")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {}: {}", arguments.join(" "), error.trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
