//! The modules of a crate must not import each other in a cycle.
//!
//! A module is a file together with its submodules: only imports between sibling modules count, wherever in their submodules they
//! occur. Imports are `use` declarations, and paths that begin with `crate`, `super`, `self` or the name of a child module. A name that
//! a module re-exports counts as an import of the module that defines it, unless it is re-exported by `*`. Re-exports of a child
//! (`pub use child::X`) and tests do not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use anyhow::{Context, Result};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ItemUse, Meta, Token, UseTree, Visibility};

/// Segments of a path below the crate root; empty for `lib.rs` or `main.rs`.
type ModulePath = Vec<String>;

#[derive(Debug, Default)]
struct Module {
    path: ModulePath,
    /// How many inner modules of this file are open.
    depth: usize,
    /// What it imports, as absolute paths.
    imports: BTreeSet<ModulePath>,
    /// What a name that was brought into scope stands for; `None` for names of other crates.
    aliases: BTreeMap<String, Option<ModulePath>>,
    children: BTreeSet<String>,
}

type Modules = BTreeMap<ModulePath, Module>;

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
    let module = parse(&path, &text).with_context(|| format!("parsing {}", file.display()))?;
    for child in &module.children {
        let files = [folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs")];
        // One with a `#[path]` is not found here; the workspace has none outside of tests.
        if let Some(file) = files.iter().find(|file| file.exists()) {
            read(&folder.join(child), file, [&path[..], std::slice::from_ref(child)].concat(), modules)?;
        }
    }
    modules.insert(path, module);
    Ok(())
}

fn parse(path: &[String], text: &str) -> syn::Result<Module> {
    let file = syn::parse_file(text)?;
    let mut module = Module { path: path.to_vec(), ..Module::default() };
    // Before everything else: a path can begin with the name of a child.
    for item in &file.items {
        match item {
            syn::Item::Mod(child) if child.content.is_none() && !is_test(&child.attrs) => {
                module.children.insert(child.ident.to_string());
            }
            _ => {}
        }
    }
    module.visit_file(&file);
    Ok(module)
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        meta => meta.path().is_ident("test"),
    })
}

impl Visit<'_> for Module {
    fn visit_item(&mut self, item: &syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &syn::ItemMod) {
        self.depth += 1;
        visit::visit_item_mod(self, item);
        self.depth -= 1;
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        self.use_tree(&item.tree, ModulePath::new(), is_public);
    }

    fn visit_path(&mut self, path: &syn::Path) {
        if path.segments.len() > 1 {
            let path: ModulePath = path.segments.iter().map(|s| s.ident.to_string()).collect();
            self.imports.extend(self.absolute(&path));
        }
        visit::visit_path(self, path);
    }

    /// The path of a macro is left out, since it is exported at the root wherever it is defined.
    fn visit_macro(&mut self, call: &syn::Macro) {
        if let Ok(arguments) = Punctuated::<Expr, Token![,]>::parse_terminated.parse2(call.tokens.clone()) {
            arguments.iter().for_each(|argument| self.visit_expr(argument));
        }
    }
}

impl Module {
    fn use_tree(&mut self, tree: &UseTree, mut path: ModulePath, is_public: bool) {
        let name = match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                return self.use_tree(&tree.tree, path, is_public);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.use_tree(tree, path.clone(), is_public));
            }
            UseTree::Glob(_) => "*".to_owned(),
            UseTree::Name(tree) if tree.ident == "self" => path.last().cloned().unwrap_or_default(),
            UseTree::Name(tree) => {
                path.push(tree.ident.to_string());
                tree.ident.to_string()
            }
            UseTree::Rename(tree) => {
                path.push(tree.ident.to_string());
                tree.rename.to_string()
            }
        };
        let target = self.absolute(&path);
        if let Some(target) = &target {
            let of_child = target.len() > self.path.len() && target.starts_with(&self.path);
            if !(is_public && of_child) {
                self.imports.insert(target.clone());
            }
        }
        self.aliases.insert(name, target);
    }

    /// A path below the crate root; `None` for one into another crate.
    fn absolute(&self, path: &[String]) -> Option<ModulePath> {
        let mut base = self.path.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                let ups = path.iter().take_while(|segment| *segment == "super").count();
                base.truncate((base.len() + self.depth).saturating_sub(ups).min(base.len()));
                rest = &rest[ups..];
            }
            child if self.children.contains(child) => {}
            _ => return None,
        }
        base.extend_from_slice(rest);
        Some(base)
    }
}

/// The module that a path leads to, through re-exports; `None` if that is another crate.
fn resolve(modules: &Modules, path: &[String], depth: usize) -> Option<ModulePath> {
    let mut here = ModulePath::new();
    for (n, segment) in path.iter().enumerate() {
        let next = [&here[..], std::slice::from_ref(segment)].concat();
        if modules.contains_key(&next) {
            here = next;
        } else if let Some(alias) = modules.get(&here)?.aliases.get(segment) {
            let target = [alias.as_deref()?, &path[n + 1..]].concat();
            return depth.checked_sub(1).and_then(|depth| resolve(modules, &target, depth));
        } else {
            break;
        }
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
            let module = parse(&path, text).expect("valid Rust");
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
