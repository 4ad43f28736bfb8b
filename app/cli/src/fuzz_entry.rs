//! Entry for the fuzz target, and for the test that replays its corpus: any arguments, parsed and not acted upon.

use crate::args::{self, Parsed};
use crate::env::NoEnv;
use crate::options;
use crate::{commands, container};

/// Arguments, separated by zero bytes. Nothing panics, and the canonical form of what was parsed means the same.
pub fn fuzz_entry(data: &[u8]) {
    let arguments: Vec<String> =
        data.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    let Some((name, rest)) = arguments.split_first() else { return };
    let Some(command) = commands::find(name) else { return };
    let Ok(parsed) = args::parse(command.clone(), rest) else { return };
    if parsed.help {
        return;
    }
    let mut canonical = parsed.canonical();
    canonical.push("--".to_owned());
    canonical.extend(parsed.rest.iter().cloned());
    let again = args::parse(command, &canonical);
    let same = |p: &Parsed| p.canonical() == parsed.canonical() && p.rest == parsed.rest;
    assert!(again.as_ref().is_ok_and(|p| same(p) && p.warnings.is_empty()), "{canonical:?}: {again:?}");
    match name.as_str() {
        // A password file that is named would be read.
        "launch" | "daemon" if parsed.text("password-file").is_none_or(str::is_empty) => {
            let _ = options::config(&parsed, &NoEnv, "h1");
        }
        "attach" | "detach" => drop(container::call(&parsed)),
        _ => {}
    }
    parsed.notices();
}
