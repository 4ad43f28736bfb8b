//! Lets the resolver of this host ask a server about the names of one domain: systemd-resolved, where it runs. It keeps such settings by link,
//! and forgets them with the link.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Error, Netlink};

/// Exists while systemd-resolved runs.
const RESOLVED: &str = "/run/systemd/resolve";
const PROGRAM: &str = "resolvectl";

/// Whether this host's names are resolved by systemd-resolved.
pub fn is_managed() -> bool {
    Path::new(RESOLVED).is_dir()
}

/// Lets systemd-resolved ask `server` about names of `domain`, and about no others, by way of `link`.
///
/// # Errors
/// systemd-resolved refuses, or its program is not installed. What was set before stays.
pub fn set(link: &str, server: SocketAddr, domain: &str) -> Result<(), Error> {
    // Before version 246 it accepts no port.
    let server = if server.port() == 53 { server.ip().to_string() } else { server.to_string() };
    run(&["dns", link, &server])?;
    // Settings that are not complete would have it ask for other names.
    run(&["domain", link, &format!("~{}", domain.trim_end_matches('.'))]).inspect_err(|_| drop(revert(link)))
}

/// Takes back what [`set`] did. It is no error if the link is gone, and the settings with it.
///
/// # Errors
/// systemd-resolved refuses.
pub fn revert(link: &str) -> Result<(), Error> {
    if !is_managed() || Netlink::open()?.link(link)?.is_none() {
        return Ok(());
    }
    run(&["revert", link])
}

fn run(args: &[&str]) -> Result<(), Error> {
    let step = format!("running {PROGRAM} {}", args.join(" "));
    let output = Command::new(PROGRAM).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Error::State(format!("{step}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let reason = complaint.lines().map(str::trim).find(|line| !line.is_empty());
    Err(Error::State(format!("{step}: {}", reason.map_or_else(|| output.status.to_string(), str::to_owned))))
}
