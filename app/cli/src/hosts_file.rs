//! `--rewrite-hosts`: a container's `/etc/hosts` gets its weave addresses (docs/spec/containers.md A.10).

use std::net::IpAddr;

use weave_api::host_requests::HostsFile;
use weave_runtime::{Kind, Target};

use crate::Failure;

/// The hosts file of a Docker container, with further names for it.
pub(crate) fn of(target: &Target, extra: Vec<(String, IpAddr)>) -> Result<HostsFile, Failure> {
    let not_docker = || {
        Failure::new(1, "--rewrite-hosts needs a Docker container; others have no /etc/hosts of their own")
    };
    let Kind::Docker(info) = &target.kind else { return Err(not_docker()) };
    let path = info.hosts_path.clone().ok_or_else(not_docker)?;
    Ok(HostsFile { path, fqdn: format!("{}.{}", info.hostname, info.domainname), extra })
}

/// The same for this process.
pub(crate) fn local(HostsFile { path, fqdn, extra }: HostsFile) -> weave_runtime::HostsFile {
    weave_runtime::HostsFile { path, fqdn, extra }
}
