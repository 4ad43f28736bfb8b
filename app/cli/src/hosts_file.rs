//! `--rewrite-hosts`: a container's `/etc/hosts` gets its weave addresses (docs/spec/containers.md A.10).

use weave_runtime::{Kind, Target, etc_hosts};
use weave_types::Cidr;

use crate::Failure;

/// What was written, to be taken back if what follows fails.
#[derive(Debug)]
pub(crate) struct Rewritten {
    path: std::path::PathBuf,
    before: String,
}

impl Rewritten {
    /// Puts the former text back; the failure that made it necessary is what is told.
    pub(crate) fn undo(self) {
        let _ = etc_hosts::rewrite(&self.path, &self.before);
    }
}

pub(crate) fn not_docker() -> Failure {
    Failure::new(1, "--rewrite-hosts needs a Docker container; others have no /etc/hosts of their own")
}

/// Writes it.
pub(crate) fn rewrite(
    target: &Target,
    cidrs: &[Cidr],
    extra: &[(String, std::net::IpAddr)],
) -> Result<Rewritten, Failure> {
    let Kind::Docker(info) = &target.kind else { return Err(not_docker()) };
    let path = info.hosts_path.clone().ok_or_else(not_docker)?;
    let addresses: Vec<_> = cidrs.iter().map(Cidr::addr).collect();
    let fqdn = format!("{}.{}", info.hostname, info.domainname);
    let before = etc_hosts::rewrite(&path, &etc_hosts::contents(&fqdn, &addresses, extra))?;
    Ok(Rewritten { path, before })
}
