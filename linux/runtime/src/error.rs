/// Why a container could not be found or may not be attached. The texts are 2.8.1's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container exists (or existed) but has no processes.
    #[error("container {0} not running")]
    NotRunning(String),
    /// Docker does not know it.
    #[error("No such container: {0}")]
    Unknown(String),
    /// The container shares the network of the host.
    #[error(
        "Container is running in the host network namespace, and therefore cannot be\nconnected to weave - perhaps the \
         container was started with --net=host"
    )]
    HostNetwork,
    /// A process or a namespace that was named directly is the host's.
    #[error("{0} is the host's own network namespace, and therefore cannot be connected to weave")]
    HostNamespace(String),
    /// It ended while it was looked at.
    #[error("Container {0} died")]
    Died(String),
    /// What was written is no reference to a container.
    #[error("{0}")]
    Reference(String),
    /// An address cannot be obtained or released. The text is the allocator's.
    #[error("{0}")]
    Address(String),
    /// Another process changes the containers of this host.
    #[error("another process has been changing the containers of this host for {0} seconds")]
    Busy(u64),
    /// The file of an operation.
    #[error("cannot {step} {}: {source}", path.display())]
    PendingFile {
        /// What was tried.
        step: &'static str,
        /// The file, or the directory it is in.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A container's `/etc/hosts` cannot be read or written.
    #[error("{0}")]
    Hosts(String),
    /// Docker did not answer, or not sensibly.
    #[error("{0}")]
    Docker(String),
    /// The conversation with Docker failed.
    #[error(
        "docker at {endpoint}: {source}; without docker, name a container by netns:<name> or pid:<number>"
    )]
    Http {
        /// Where Docker was looked for.
        endpoint: String,
        /// What went wrong.
        source: weave_http::Error,
    },
    /// What runs on this host cannot be seen.
    #[error("{0}")]
    Processes(String),
    /// The namespace is gone or cannot be opened.
    #[error(transparent)]
    Host(#[from] weave_host::Error),
}
