//! The programs that run in hosts: `weave`, `lab`, and the static `weave` of containers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};

/// The program whose `init` and `probe` commands the library uses: this one, or `lab` beside the test.
pub(crate) fn lab_binary() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program")?;
    if exe.file_name().is_some_and(|n| n == "lab") {
        return Ok(exe);
    }
    // target/<profile>/deps/<test>-<hash> -> target/<profile>/lab
    let mut candidates = exe.ancestors().skip(1).take(2).map(|dir| dir.join("lab"));
    candidates.find(|p| p.is_file()).with_context(|| {
        format!("no `lab` program near {}: build it with `cargo build -p weave-lab`", exe.display())
    })
}

/// The program under test: `WEAVE_BIN`, else the newest program that cargo built.
#[track_caller]
pub fn weave_binary() -> &'static str {
    match weave_candidates() {
        Some(path) => path,
        None => panic!("no `weave` program: build it (`cargo build -p weave-cli`) or set WEAVE_BIN"),
    }
}

/// The folders of all programs that run in hosts.
pub(crate) fn program_folders() -> BTreeSet<PathBuf> {
    let programs = [lab_binary().ok(), weave_candidates().map(PathBuf::from), newest_static_binary()];
    programs
        .iter()
        .flatten()
        .filter_map(|path| Some(path.canonicalize().ok()?.parent()?.to_owned()))
        .collect()
}

pub(crate) fn weave_candidates() -> Option<&'static str> {
    static WEAVE: OnceLock<Option<String>> = OnceLock::new();
    WEAVE
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("WEAVE_BIN") {
                return Some(path.to_string_lossy().into_owned());
            }
            let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
            let newest = ["lab", "release", "debug"]
                .iter()
                .map(|profile| root.join(profile).join("weave"))
                .chain(lab_binary().ok().as_deref().and_then(Path::parent).map(|dir| dir.join("weave")))
                .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
                .max_by_key(|(time, _)| *time)?;
            Some(newest.1.canonicalize().ok()?.to_string_lossy().into_owned())
        })
        .as_deref()
}

pub(crate) fn newest_static_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("WEAVE_STATIC_BIN") {
        return Some(path.into());
    }
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
    let targets = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let newest = targets
        .flat_map(|t| ["debug", "release"].map(|profile| t.path().join(profile).join("weave")))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max_by_key(|(time, _)| *time);
    newest.and_then(|(_, path)| path.canonicalize().ok())
}
