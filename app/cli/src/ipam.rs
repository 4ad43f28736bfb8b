//! `weave prime`, `consense` and `rmpeer`: commands about the whole address range.

use weave_api::{ClientError, encode};

use crate::args::Parsed;
use crate::env::Env;
use crate::waiting::{self, Waiter};
use crate::{Failure, notice, print, query, require_root};

/// Waits until this peer has the ring.
pub(crate) fn prime(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let client = query::client(parsed, env);
    let what = "this peer to know who owns which addresses";
    match waiting::call(&Waiter::new(&client, what), "GET /ring", |c| c.request("GET", "/ring", &[], &[])) {
        Ok(_) => Ok(()),
        Err(waiting::Problem::Client(ClientError::NotFound)) => {
            Err(Failure::new(4, "IP address allocation is off on this peer; there is nothing to wait for"))
        }
        Err(waiting::Problem::Client(error)) => Err(query::explain(error, parsed, env)),
        Err(waiting::Problem::Interrupted(failure)) => Err(failure),
    }
}

/// Takes over the ranges of peers that are gone for good.
pub(crate) fn rmpeer(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    require_root()?;
    let client = query::client(parsed, env);
    let force = if parsed.flag("force") { "?force=true" } else { "" };
    let mut failed = false;
    for peer in &parsed.rest {
        let path = format!("/peer/{}{force}", encode(peer));
        match client.request("DELETE", &path, &[], &[]) {
            Ok(answer) if (200..300).contains(&answer.status) => {
                // The first line is what 2.8.1 prints; what follows is for people.
                let mut lines = answer.body.lines();
                print(&format!("{}\n", lines.next().unwrap_or_default()))?;
                lines.for_each(notice);
            }
            Ok(answer) => {
                notice(answer.body.trim_end());
                failed = true;
            }
            Err(error) => return Err(query::explain(error, parsed, env)),
        }
    }
    if failed { Err(Failure::new(1, "")) } else { Ok(()) }
}
