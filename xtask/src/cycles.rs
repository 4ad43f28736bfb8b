//! The modules of a crate must not import each other in a cycle.
//!
//! A module is a file together with its submodules: only imports between sibling modules count, wherever in their submodules they
//! occur. Imports are read from the text: `use` declarations, and paths that begin with `crate`, `super`, `self` or the
//! name of a child module. A name that a module re-exports counts as an import of the module that defines it. Re-exports of a child
//! (`pub use child::X`) and tests do not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Segments of a path below the crate root; empty for `lib.rs` or `main.rs`.
type ModulePath = Vec<String>;

#[derive(Debug, Default)]
struct Module {
    /// What it imports, as absolute paths.
    imports: BTreeSet<ModulePath>,
    /// What a name that was brought into scope stands for; `None` for names of other crates.
    aliases: BTreeMap<String, Option<ModulePath>>,
    /// Those of them that others can use.
    exports: BTreeSet<String>,
    globs: Vec<ModulePath>,
    definitions: BTreeSet<String>,
    children: BTreeSet<String>,
    test_children: BTreeSet<String>,
}

type Modules = BTreeMap<ModulePath, Module>;

/// Prints the cycles in the crates with these folders.
pub(crate) fn report<'a>(root: &Path, crates: impl Iterator<Item = &'a String>) -> Result<()> {
    let cycles = find(root, crates)?;
    cycles.iter().for_each(|(name, cycle)| println!("{name}: {cycle}"));
    println!("cycles: {}", cycles.len());
    Ok(())
}

/// The cycles of modules in these crates, each with the folder of its crate.
pub(crate) fn find<'a>(
    root: &Path,
    crates: impl Iterator<Item = &'a String>,
) -> Result<Vec<(String, String)>> {
    let mut cycles = Vec::new();
    for name in crates {
        let source = root.join(name).join("src");
        for main in ["lib.rs", "main.rs"].map(|file| source.join(file)).iter().filter(|file| file.exists()) {
            let mut modules = Modules::new();
            read(&source, main, ModulePath::new(), &mut modules)?;
            cycles.extend(cycles_of(&modules).into_iter().map(|cycle| (name.clone(), cycle)));
        }
    }
    Ok(cycles)
}

/// Reads a file and the files of its child modules, except those of tests.
fn read(folder: &Path, file: &Path, path: ModulePath, modules: &mut Modules) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let module = parse(&path, &text);
    for child in module.children.difference(&module.test_children) {
        let files: [PathBuf; 2] = [folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs")];
        // One with a `#[path]` is not found here; the workspace has none outside of tests.
        if let Some(file) = files.iter().find(|file| file.exists()) {
            read(&folder.join(child), file, [&path[..], std::slice::from_ref(child)].concat(), modules)?;
        }
    }
    modules.insert(path, module);
    Ok(())
}

/// Identifiers, `::`, and single characters of punctuation; no comments, no literals.
fn tokens(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut i = 0;
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let past = |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    while i < bytes.len() {
        let start = i;
        let rest = &text[i..];
        let raw = rest.trim_start_matches('b').strip_prefix('r').filter(|r| r.starts_with(['"', '#']));
        if rest.starts_with("//") {
            i = past(i, "\n");
        } else if rest.starts_with("/*") {
            i = past(i, "*/");
        } else if let Some(hashes) =
            raw.and_then(|r| r.find('"')).filter(|n| raw.is_some_and(|r| r[..*n].bytes().all(|b| b == b'#')))
        {
            i = past(past(i, "\""), &format!("\"{}", "#".repeat(hashes)));
        } else if bytes[i] == b'"' {
            i += 1;
            while i < bytes.len() && bytes[i] != b'"' {
                i += if bytes[i] == b'\\' { 2 } else { 1 };
            }
            i += 1;
        } else if rest.starts_with("'\\") {
            i = past(i + 3, "'");
        } else if bytes[i] == b'\'' && rest.chars().nth(2) == Some('\'') {
            i = past(i + 1, "'");
        } else if is_word(bytes[i]) {
            i += bytes[i..].iter().take_while(|b| is_word(**b)).count();
            tokens.push(&text[start..i]);
        } else if rest.starts_with("::") {
            i += 2;
            tokens.push("::");
        } else {
            i += rest.chars().next().map_or(1, char::len_utf8);
            if !bytes[start].is_ascii_whitespace() {
                tokens.push(&text[start..i]);
            }
        }
    }
    tokens
}

/// The index after the bracket that closes the one at `open`.
fn after_bracket(tokens: &[&str], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match *token {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// The index after the item that begins at `start`.
fn after_item(tokens: &[&str], start: usize) -> usize {
    let mut i = start;
    while i < tokens.len() {
        match tokens[i] {
            ";" => return i + 1,
            "{" => return after_bracket(tokens, i),
            "(" | "[" => i = after_bracket(tokens, i),
            "}" => return i,
            _ => i += 1,
        }
    }
    i
}

fn parse(path: &[String], text: &str) -> Module {
    let tokens = tokens(text);
    let at = |i: usize| tokens.get(i).copied().unwrap_or_default();
    let children = (0..tokens.len()).filter(|i| at(*i) == "mod" && at(i + 2) == ";");
    let mut module =
        Module { children: children.map(|i| at(i + 1).to_owned()).collect(), ..Module::default() };
    // Inner modules of this file that are open, by the index at which they end.
    let mut inner: Vec<usize> = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        inner.retain(|end| i < *end);
        match at(i) {
            "#" if at(i + 1) == "[" => {
                let end = after_bracket(&tokens, i + 1);
                let attribute = &tokens[i..end];
                i = end;
                if attribute.contains(&"cfg") && attribute.contains(&"test") && !attribute.contains(&"not") {
                    while at(i) == "#" {
                        i = after_bracket(&tokens, i + 1);
                    }
                    let end = after_item(&tokens, i);
                    if let [.., "mod", name, ";"] = tokens[i..end] {
                        module.test_children.insert(name.to_owned());
                    }
                    i = end;
                }
                continue;
            }
            "mod" if at(i + 2) == "{" => inner.push(after_bracket(&tokens, i + 2)),
            "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union" => {
                module.definitions.insert(at(i + 1).to_owned());
            }
            "use" => {
                let is_public = i > 0 && (at(i - 1) == "pub" || at(i - 1) == ")");
                let mut found = Vec::new();
                let end = use_tree(&tokens, i + 1, &[], &mut found);
                for (used, name) in found {
                    let absolute = absolute(path, inner.len(), &module.children, &used);
                    if let Some(target) = &absolute {
                        let of_child = target.len() > path.len() && target.starts_with(path);
                        if !(is_public && of_child) {
                            module.imports.insert(target.clone());
                        }
                        if name == "*" {
                            module.globs.push(target.clone());
                        }
                    }
                    if is_public {
                        module.exports.insert(name.clone());
                    }
                    module.aliases.insert(name, absolute);
                }
                i = end;
                continue;
            }
            _ if at(i + 1) == "::" && (i == 0 || at(i - 1) != "::") => {
                let mut used = vec![at(i).to_owned()];
                while at(i + 1) == "::" && at(i + 2).starts_with(|c: char| c.is_alphabetic() || c == '_') {
                    i += 2;
                    used.push(at(i).to_owned());
                }
                // A macro is exported at the root, wherever it is defined.
                if at(i + 1) != "!" {
                    module.imports.extend(absolute(path, inner.len(), &module.children, &used));
                }
            }
            _ => {}
        }
        i += 1;
    }
    module
}

/// Reads one tree of a `use` declaration: every path in it, with the name by which it is known. Returns the index after it.
fn use_tree(tokens: &[&str], mut i: usize, start: &[String], found: &mut Vec<(ModulePath, String)>) -> usize {
    let mut path = start.to_vec();
    while let Some(token) = tokens.get(i) {
        match *token {
            "::" => i += 1,
            "{" => {
                let end = after_bracket(tokens, i);
                i += 1;
                while i + 1 < end {
                    i = use_tree(tokens, i, &path, found);
                }
                return end;
            }
            "as" => {
                found.push((path, tokens.get(i + 1).copied().unwrap_or_default().to_owned()));
                return i + 3;
            }
            "," | ";" | "}" => {
                if let Some(name) = path.last().cloned() {
                    if matches!(name.as_str(), "*" | "self") && path.len() > 1 {
                        path.pop();
                    }
                    let name = if name == "self" { path.last().cloned().unwrap_or_default() } else { name };
                    found.push((path, name));
                }
                return i + 1;
            }
            segment => {
                path.push(segment.to_owned());
                i += 1;
            }
        }
    }
    i
}

/// A path below the crate root; `None` for one into another crate.
fn absolute(
    module: &[String],
    inner: usize,
    children: &BTreeSet<String>,
    path: &[String],
) -> Option<ModulePath> {
    let (first, mut rest) = path.split_first()?;
    let mut base = module.to_vec();
    let mut inner = inner;
    match first.as_str() {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            let mut up = |inner: &mut usize| if *inner > 0 { *inner -= 1 } else { drop(base.pop()) };
            up(&mut inner);
            while rest.first().is_some_and(|s| s == "super") {
                up(&mut inner);
                rest = &rest[1..];
            }
        }
        child if children.contains(child) => rest = path,
        _ => return None,
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// The module that a path leads to, through re-exports; `None` if that is another crate.
fn resolve(modules: &Modules, path: &[String], depth: usize) -> Option<ModulePath> {
    let mut here = ModulePath::new();
    for (n, segment) in path.iter().enumerate() {
        let next = [&here[..], std::slice::from_ref(segment)].concat();
        if modules.contains_key(&next) {
            here = next;
            continue;
        }
        let module = modules.get(&here)?;
        let follow = |target: &[String]| {
            let target = [target, &path[n + 1..]].concat();
            if depth == 0 { None } else { resolve(modules, &target, depth - 1) }
        };
        if let Some(alias) = module.aliases.get(segment) {
            return follow(alias.as_deref()?);
        }
        if !module.definitions.contains(segment) {
            for glob in &module.globs {
                let target = [&glob[..], std::slice::from_ref(segment)].concat();
                let named = resolve(modules, glob, depth.saturating_sub(1)).and_then(|m| modules.get(&m));
                if named.is_some_and(|m| m.definitions.contains(segment) || m.exports.contains(segment)) {
                    return follow(&target);
                }
            }
        }
        return Some(here);
    }
    Some(here)
}

/// The siblings above two modules, neither of which contains the other.
fn siblings(from: &[String], to: &[String]) -> Option<(ModulePath, ModulePath)> {
    let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
    (common < from.len().min(to.len())).then(|| (from[..=common].to_vec(), to[..=common].to_vec()))
}

/// For each module that is in a cycle with others not yet shown: one shortest cycle, with an import for each step.
fn cycles_of(modules: &Modules) -> Vec<String> {
    let mut imports: BTreeMap<ModulePath, BTreeMap<ModulePath, &ModulePath>> = BTreeMap::new();
    for (path, module) in modules {
        for import in &module.imports {
            let target = resolve(modules, import, 8);
            if let Some((from, to)) = target.and_then(|target| siblings(path, &target)) {
                imports.entry(from).or_default().insert(to, import);
            }
        }
    }
    let (mut cycles, mut shown) = (Vec::new(), BTreeSet::new());
    for start in imports.keys() {
        // Breadth first, so that the first way back is a shortest one.
        let mut before: BTreeMap<&ModulePath, &ModulePath> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(here) = queue.pop_front() {
            for next in imports.get(here).into_iter().flat_map(BTreeMap::keys) {
                if !before.contains_key(next) {
                    before.insert(next, here);
                    queue.push_back(next);
                }
            }
        }
        if !before.contains_key(start) || shown.contains(start) {
            continue;
        }
        let mut steps = VecDeque::new();
        let mut here = start;
        while steps.is_empty() || here != start {
            let from = before[here];
            steps.push_front(format!("{} uses {}", from.join("::"), imports[from][here].join("::")));
            shown.insert(from);
            here = from;
        }
        cycles.push(Vec::from(steps).join(", "));
    }
    cycles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycles(files: &[(&str, &str)]) -> Vec<String> {
        let path = |name: &str| name.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let modules = files.iter().map(|(name, text)| {
            let path: ModulePath = path(name);
            let module = parse(&path, text);
            (path, module)
        });
        cycles_of(&modules.collect())
    }

    const ROOT: (&str, &str) = ("", "mod a; mod b; pub use a::A; pub(crate) use b::{self, B as Second};");

    #[test]
    fn every_form_of_an_import_counts() {
        let a = ("a", "use crate::b::f; pub struct A;");
        for form in [
            "use crate::A;",
            "use super::{std::x, a::{self, A}};",
            "fn g() { crate::a::g() }",
            "fn g() -> super::A {}",
            "mod inner { use super::super::a::A; }",
            "use crate::a::*;",
            "pub use crate::a::A;",
            "#[cfg(not(test))] use crate::A;",
        ] {
            let found = cycles(&[ROOT, a, ("b", form)]);
            assert!(
                matches!(&found[..], [one] if one.starts_with("a uses b::f, b uses ")),
                "{form}: {found:?}"
            );
        }
        let a = ("a", "use crate::Second; pub struct A;");
        assert_eq!(
            cycles(&[ROOT, a, ("b", "use crate::A;")]),
            ["a uses Second, b uses A"],
            "by another name"
        );
    }

    #[test]
    fn tests_comments_and_other_crates_do_not_count() {
        let a = ("a", "use crate::b::f; pub struct A;");
        for form in [
            "#[cfg(test)] mod tests { use crate::a::A; }",
            "#[cfg(test)] #[path = \"x\"] use crate::A;",
            "// use crate::A;\n/* crate::A */ const X: &str = \"use crate::A\"; const Y: &str = r#\"\"crate::A\"#;",
            "use std::a::A; use a::A; pub(crate) fn f(self) { self.a; '\"'; b'\\''; other::a::A }",
            "fn g() { crate::a! {} }",
            "mod inner { use super::A; }",
        ] {
            assert_eq!(cycles(&[ROOT, a, ("b", form)]), [] as [&str; 0], "{form}");
        }
    }

    #[test]
    fn imports_between_a_module_and_its_submodules_do_not_count() {
        let child = ("a", "use super::Defined; pub struct A;");
        let root = "mod a; pub use a::A; pub struct Defined; fn f() { a::f() }";
        assert_eq!(cycles(&[("", root), child]), [] as [&str; 0]);
        // Siblings in a folder.
        let files = [
            ("x", "mod y; mod z; fn f() { y::f() }"),
            ("x::y", "use super::z::Z;"),
            ("x::z", "use super::y;"),
        ];
        assert_eq!(cycles(&[&[("", "mod x;")], &files[..]].concat()), ["x::y uses x::z::Z, x::z uses x::y"]);
        let files = [("a", "use crate::b::f;"), ("b", "mod c;"), ("b::c", "use crate::a;")];
        assert_eq!(cycles(&[&[("", "mod a; mod b;")], &files[..]].concat()), ["a uses b::f, b uses a"]);
    }
}
