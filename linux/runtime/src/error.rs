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
    /// It ended during the lookup.
    #[error("Container {0} died")]
    Died(String),
    /// The text is not a reference to a container.
    #[error("{0}")]
    Reference(String),
    /// An address cannot be obtained or released. The text is the allocator's.
    #[error("{0}")]
    Address(String),
    /// Another process changes the containers of this host.
    #[error("another process has been changing the containers of this host for {0} seconds")]
    Busy(u64),
    /// The file of a pending operation cannot be read or written.
    #[error("cannot {step} {}: {source}", path.display())]
    PendingFile {
        /// The step that failed.
        step: &'static str,
        /// The file, or the directory it is in.
        path: std::path::PathBuf,
        /// The error of the kernel.
        source: std::io::Error,
    },
    /// A container's `/etc/hosts` cannot be read or written.
    #[error("{0}")]
    Hosts(String),
    /// Docker refused, or its response cannot be read.
    #[error("{0}")]
    Docker(String),
    /// The request to Docker failed.
    #[error("docker at {endpoint}: {source}")]
    Http {
        /// Docker's address.
        endpoint: String,
        /// The cause.
        source: weave_http::Error,
    },
    /// The processes of this host cannot be listed.
    #[error("{0}")]
    Processes(String),
    /// The namespace is gone or cannot be opened.
    #[error(transparent)]
    Host(#[from] weave_host::Error),
}
