//! `weave expose` and `weave hide` (docs/spec/cli.md 6).

use weave_host::fault_injection;
use weave_types::Cidr;

use crate::addresses::{self, Address, Book, looks_like_address, plain};
use crate::args::Parsed;
use crate::container::overlaps;
use crate::options::{self, Env};
use crate::query::{client, explain};
use crate::{Failure, notice, print, require_root};

/// Whose addresses they are for the allocator.
const ID: &str = "weave:expose";

pub(crate) fn expose(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let addresses = arguments(parsed)?;
    require_root()?;
    let bridge = &options::devices(parsed, env).bridge;
    overlaps(&fixed(&addresses).collect::<Vec<_>>(), bridge)?.iter().for_each(notice);
    let without_masquerade: &[_] = if parsed.flag("without-masquerade") { &["skipNAT=true"] } else { &[] };
    let client = client(parsed, env);
    let mut book = Book::of(&client, ID, false);
    let cidrs = book.obtain(&addresses)?;
    if let Some(path) = path(&cidrs, without_masquerade) {
        let asked = fault_injection::io_fail_point(&"asking the daemon to expose").map_err(Failure::from);
        let asked = asked.and_then(|()| client.post(&path, &[]).map_err(|e| explain(e, parsed, env)));
        asked.inspect_err(|_| book.give_back())?;
    }
    if let Some(name) = parsed.text("h") {
        notice(format_args!("Notice: this version does not do DNS yet; not registered: {name}"));
    }
    print(&plain(&cidrs))
}

pub(crate) fn hide(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let addresses = arguments(parsed)?;
    require_root()?;
    let client = client(parsed, env);
    let book = Book::of(&client, ID, false);
    let cidrs = book.look_up(&addresses)?;
    if let Some(path) = path(&cidrs, &[]) {
        fault_injection::io_fail_point(&"asking the daemon to hide")?;
        client.delete(&path).map_err(|e| explain(e, parsed, env))?;
    }
    book.release(&cidrs)?;
    print(&plain(&cidrs))
}

/// All addresses in one question, so that all or none is done, also if this process ends meanwhile.
fn path(cidrs: &[Cidr], options: &[&str]) -> Option<String> {
    let (first, others) = cidrs.split_first()?;
    let also = others.iter().map(|cidr| format!("also={cidr}"));
    let query: Vec<String> = options.iter().map(ToString::to_string).chain(also).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    Some(format!("/expose/{first}{mark}{}", query.join("&")))
}

fn arguments(parsed: &Parsed) -> Result<Vec<Address>, Failure> {
    if let Some(other) = parsed.rest.iter().find(|a| !looks_like_address(a)) {
        return Err(Failure::new(
            1,
            format_args!("'{other}' is no address, as 10.2.1.102/24 is; {}", parsed.usage),
        ));
    }
    Ok(addresses::leading(&parsed.rest)?.0)
}

fn fixed(addresses: &[Address]) -> impl Iterator<Item = Cidr> {
    addresses.iter().filter_map(Address::fixed)
}
