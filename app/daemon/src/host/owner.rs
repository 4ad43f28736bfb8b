//! What owners of addresses are called: `netns:<name>`, `pid:<number>`, `port:<interface>`, or the id of a container of Docker.

use weave_host::{Error, NetNs};

/// The id of a container of Docker.
pub(crate) fn is_docker_id(container: &str) -> bool {
    container.len() == 64 && container.bytes().all(|b| b.is_ascii_hexdigit())
}

#[derive(Clone, Copy)]
pub(crate) enum NamespaceRef<'a> {
    Named(&'a str),
    Pid(u32),
    /// A namespace of which only the bridge port is known.
    Port,
}

impl NamespaceRef<'_> {
    pub(crate) fn of(container: &str) -> Option<NamespaceRef<'_>> {
        if let Some(name) = container.strip_prefix("netns:") {
            return Some(NamespaceRef::Named(name));
        }
        if container.starts_with(PORT) {
            return Some(NamespaceRef::Port);
        }
        container.strip_prefix("pid:")?.parse().ok().map(NamespaceRef::Pid)
    }

    pub(crate) fn open(self) -> Result<NetNs, Error> {
        match self {
            NamespaceRef::Named(name) => NetNs::named(name),
            NamespaceRef::Pid(pid) => NetNs::of_process(pid),
            NamespaceRef::Port => Err(Error::NamespaceGone("a namespace without a name".to_owned())),
        }
    }
}

/// Begins the name of a container of which only the bridge port is known.
pub(crate) const PORT: &str = "port:";
