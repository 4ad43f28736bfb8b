//! `weave expose` and `weave hide` (spec cli 6).

use weave_types::Cidr;

use crate::addresses::{self, Address, Book, looks_like_address, plain};
use crate::args::Parsed;
use crate::container::overlaps;
use crate::options::{self, Env};
use crate::query::{client, explain};
use crate::usage::Command;
use crate::{Failure, notice, print, require_root};

/// Whose addresses they are for the allocator.
const ID: &str = "weave:expose";

pub(crate) fn expose(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let addresses = arguments(command, parsed)?;
    require_root()?;
    let bridge = &options::devices(parsed, env).bridge;
    overlaps(&fixed(&addresses).collect::<Vec<_>>(), bridge)?.iter().for_each(notice);
    let query = if parsed.flag("without-masquerade") { "?skipNAT=true" } else { "" };
    let client = client(parsed, env);
    let mut book = Book::of(&client, ID, false);
    let cidrs = book.obtain(&addresses)?;
    let before = weave_host::bridge_addresses(bridge)?;
    for (i, cidr) in cidrs.iter().enumerate() {
        client.post(&format!("/expose/{cidr}{query}"), &[]).map_err(|e| {
            // All or none.
            for cidr in cidrs.iter().take(i).filter(|c| !before.contains(c)) {
                let _ = client.delete(&format!("/expose/{cidr}"));
            }
            book.give_back();
            explain(e, parsed, env)
        })?;
    }
    if let Some(name) = parsed.text("h") {
        notice(format_args!("Notice: this version does not do DNS yet; not registered: {name}"));
    }
    print(&plain(&cidrs))
}

pub(crate) fn hide(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let addresses = arguments(command, parsed)?;
    require_root()?;
    let client = client(parsed, env);
    let book = Book::of(&client, ID, false);
    let cidrs = book.look_up(&addresses)?;
    // One that cannot be hidden does not keep the others.
    let failures: Vec<Failure> = cidrs
        .iter()
        .filter_map(|cidr| client.delete(&format!("/expose/{cidr}")).err())
        .map(|e| explain(e, parsed, env))
        .collect();
    if let Some(first) = failures.into_iter().next() {
        return Err(first);
    }
    book.release(&cidrs)?;
    print(&plain(&cidrs))
}

fn arguments(command: &Command, parsed: &Parsed) -> Result<Vec<Address>, Failure> {
    if let Some(other) = parsed.rest.iter().find(|a| !looks_like_address(a)) {
        return Err(Failure::new(
            1,
            format_args!("'{other}' is no address, as 10.2.1.102/24 is; {}", command.synopsis()),
        ));
    }
    Ok(addresses::leading(&parsed.rest)?.0)
}

fn fixed(addresses: &[Address]) -> impl Iterator<Item = Cidr> {
    addresses.iter().filter_map(Address::fixed)
}
