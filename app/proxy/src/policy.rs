//! Which containers are attached, and with what (docs/spec/containers.md A.5).

use std::fmt;
use std::path::PathBuf;

use crate::json::Object;
use crate::{Error, HostnameRule};

/// The program that waits inside of a container until its interface works, and then becomes the container's own program.
pub const WAIT_PROGRAM: &str = "/w/w";
/// Where a container sees the directory of the wait program.
pub const WAIT_DIRECTORY: &str = "/w";
/// The variable of a container that lists its addresses.
const VARIABLE: &str = "WEAVE_CIDR=";
/// Longest name of a host, in bytes.
const MAX_HOSTNAME: usize = 64;

/// Directories of the host that contain the wait program as `w`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitDirectories {
    /// The program that waits.
    pub wait: PathBuf,
    /// A program that does not wait, for containers without a network of their own.
    pub no_wait: PathBuf,
}

/// Name service of containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Address of the name server; `None` while it has none.
    pub server: Option<String>,
    /// The domain, with or without the final dot.
    pub domain: String,
}

/// How containers are attached.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The wait program.
    pub wait: WaitDirectories,
    /// `None`: containers keep their DNS settings and host names.
    pub dns: Option<Dns>,
    /// Whether containers without `WEAVE_CIDR` are attached.
    pub attach_by_default: bool,
    /// Whether containers on Docker's user-defined networks are attached, too.
    pub user_networks: bool,
    /// How a host name is made.
    pub hostname: HostnameRule,
}

/// Why a container is not attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaveAlone {
    /// It shares the network of the host or of another container, or is on a network of Docker.
    Network(String),
    /// `WEAVE_CIDR=none`
    NotWanted,
    /// It has no `WEAVE_CIDR`, and only containers with one are attached.
    NotRequested,
}

impl fmt::Display for LeaveAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeaveAlone::Network(mode) => write!(f, "the container has '--net={mode}'"),
            LeaveAlone::NotWanted => f.write_str("it has WEAVE_CIDR=none"),
            LeaveAlone::NotRequested => {
                f.write_str("it has no WEAVE_CIDR, and --no-default-ipalloc is given")
            }
        }
    }
}

/// The addresses in `WEAVE_CIDR` of a container's environment, as written; `None` if it is not set.
///
/// # Errors
/// [`LeaveAlone::NotWanted`].
pub fn requested<'a>(env: impl IntoIterator<Item = &'a str>) -> Result<Option<Vec<String>>, LeaveAlone> {
    match env.into_iter().find_map(|variable| variable.strip_prefix(VARIABLE)) {
        Some("none") => Err(LeaveAlone::NotWanted),
        list => Ok(list.map(|list| list.split_whitespace().map(str::to_owned).collect())),
    }
}

impl Policy {
    /// The addresses that a container asks for, as written; an empty list is one of the default subnet.
    ///
    /// # Errors
    /// The container is not to be attached.
    pub fn addresses(&self, network_mode: &str, env: &[String]) -> Result<Vec<String>, LeaveAlone> {
        let own_network = match network_mode {
            "" | "none" | "default" | "bridge" => true,
            "host" => false,
            mode => self.user_networks && !mode.starts_with("container:"),
        };
        if !own_network {
            return Err(LeaveAlone::Network(network_mode.to_owned()));
        }
        match requested(env.iter().map(String::as_str))? {
            Some(addresses) => Ok(addresses),
            None if self.attach_by_default => Ok(Vec::new()),
            None => Err(LeaveAlone::NotRequested),
        }
    }

    /// Binds the directory of the wait program into a container, in place of what was there.
    pub(crate) fn bind(&self, host_config: &mut Object, waits: bool) -> Result<(), Error> {
        let directory = if waits { &self.wait.wait } else { &self.wait.no_wait };
        let mut binds = host_config.strings("Binds")?;
        binds.retain(|bind| bind.split(':').nth(1) != Some(WAIT_DIRECTORY));
        binds.push(format!("{}:{WAIT_DIRECTORY}:ro", directory.display()));
        host_config.set("Binds", &binds);
        Ok(())
    }

    /// Lets a container ask our name server. `hostname` is what names it.
    pub(crate) fn set_dns(&self, host_config: &mut Object, hostname: &str) -> Result<(), Error> {
        let Some(dns) = &self.dns else { return Ok(()) };
        let mut servers = host_config.strings("Dns")?;
        servers.extend(dns.server.clone());
        host_config.set("Dns", &servers);
        if host_config.strings("DnsSearch")?.is_empty() {
            // With a host name in the domain, the resolver searches there anyway.
            let search = if hostname.is_empty() { dns.domain.as_str() } else { "." };
            host_config.set("DnsSearch", &[search]);
        }
        Ok(())
    }
}

impl Dns {
    /// Gives a container the host name `hostname` in our domain if it has none. Returns a warning if that is too long.
    pub(crate) fn set_hostname(
        &self,
        container: &mut Object,
        hostname: &str,
    ) -> Result<Option<String>, Error> {
        if hostname.is_empty() || !container.string("Hostname")?.is_empty() {
            return Ok(None);
        }
        let domain = self.domain.trim_end_matches('.');
        if hostname.len() + 1 + domain.len() > MAX_HOSTNAME {
            return Ok(Some(format!("container name {hostname} is too long to be used as a host name")));
        }
        container.set("Hostname", hostname);
        container.set("Domainname", domain);
        Ok(None)
    }
}
