//! `weave expose` and `weave hide` (docs/spec/cli.md 6).

use weave_api::ClientError;
use weave_api::host_requests::{ExposeRequest, HostResponse};
use weave_runtime::AddressRequest;

use crate::addresses::{self, looks_like_address, plain};
use crate::args::Parsed;
use crate::container::overlaps;
use crate::env::Env;
use crate::options;
use crate::waiting::Problem;
use crate::{Failure, dns, host_client, notice, print, query, require_root};

pub(crate) fn expose(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let addresses = arguments(parsed)?;
    require_root()?;
    let name = parsed.text("h").filter(|name| !name.is_empty());
    if let Some(name) = name {
        dns::check_name(name, &dns::domain(&query::client(parsed, env), parsed, env)?)?;
    }
    let bridge = &options::devices(parsed, env).bridge;
    overlaps(&addresses::fixed(&addresses), bridge)?.iter().for_each(notice);
    let masquerade = !parsed.flag("without-masquerade");
    print(&plain(&post("/expose", &addresses, masquerade, name, parsed, env)?))
}

pub(crate) fn hide(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let addresses = arguments(parsed)?;
    require_root()?;
    print(&plain(&post("/hide", &addresses, false, None, parsed, env)?))
}

/// Lets the daemon do it; the addresses in question.
fn post(
    path: &'static str,
    addresses: &[AddressRequest],
    masquerade: bool,
    name: Option<&str>,
    parsed: &Parsed,
    env: &dyn Env,
) -> Result<Vec<String>, Failure> {
    let client = query::client(parsed, env);
    let texts = addresses.iter().map(ToString::to_string).collect();
    let request = ExposeRequest { addresses: texts, masquerade, name: name.map(str::to_owned) };
    let answer = host_client::post(&client, path, request, None, &addresses::describe(addresses));
    let shown = |response: HostResponse| {
        host_client::warn(&response.warnings);
        response.addresses
    };
    answer.map(shown).map_err(|problem| match problem {
        Problem::Client(error @ ClientError::Connect { .. }) => query::explain(error, parsed, env),
        problem => host_client::failure(problem),
    })
}

fn arguments(parsed: &Parsed) -> Result<Vec<AddressRequest>, Failure> {
    if let Some(other) = parsed.rest.iter().find(|a| !looks_like_address(a)) {
        return Err(Failure::new(
            1,
            format_args!("'{other}' is no address, as 10.2.1.102/24 is; {}", parsed.usage),
        ));
    }
    Ok(addresses::leading(&parsed.rest)?.0)
}
