use std::io;

use crate::udp::OpenUdpError;

/// The data threads could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The UDP sockets could not be opened; usually the port is in use.
    #[error(transparent)]
    Udp(#[from] OpenUdpError),
    /// A kernel feature is missing or not permitted.
    #[error("{step}: {why}")]
    Feature {
        /// The failed step.
        step: &'static str,
        /// What is missing, and what to do.
        why: &'static str,
    },
    /// The process is out of descriptors or threads.
    #[error("{step}: {error}")]
    System {
        /// The failed step.
        step: &'static str,
        /// Error of the kernel.
        error: io::Error,
    },
}
