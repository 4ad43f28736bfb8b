//! Any arguments, taken apart and not acted upon: for the fuzz target and the test that replays its corpus.

use crate::args::{self, Parsed};
use crate::options::{self, Env};
use crate::{container, usage};

/// An empty environment.
struct Nothing;

impl Env for Nothing {
    fn var(&self, _: &str) -> Option<String> {
        None
    }
}

/// Arguments, separated by zero bytes. Never panics; what was understood can be written down in the canonical form, which
/// means the same.
pub fn exercise(data: &[u8]) {
    let arguments: Vec<String> =
        data.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    let Some((name, rest)) = arguments.split_first() else { return };
    let Some(command) = usage::find(name) else { return };
    let Ok(parsed) = args::parse(command.table(), rest) else { return };
    let mut canonical = parsed.canonical();
    canonical.push("--".to_owned());
    canonical.extend(parsed.rest.iter().cloned());
    let again = args::parse(command.table(), &canonical);
    let same = |p: &Parsed| p.canonical() == parsed.canonical() && p.rest == parsed.rest;
    assert!(again.as_ref().is_ok_and(|p| same(p) && p.warnings.is_empty()), "{canonical:?}: {again:?}");
    match command.name {
        // A file that is named is read.
        "launch" | "daemon" if parsed.text("password-file").is_none_or(str::is_empty) => {
            let _ = options::config(&parsed, &Nothing, "h1");
        }
        "attach" | "detach" => drop(container::call(command, &parsed.rest)),
        _ => {}
    }
    parsed.notices(command.table());
}
