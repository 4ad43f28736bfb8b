use std::io;

use weave_host::fault_injection::io_fail_point;

/// Why the kernel path does not work, by who has to act. Every text names the operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel lacks what the path needs: another overlay has to do. To be said once.
    #[error("{step}: this kernel lacks {feature}")]
    Unsupported {
        /// The operation.
        step: String,
        /// What is missing, with the release or the option of the kernel that has it.
        feature: String,
    },
    /// This process lacks the privileges for the operation.
    #[error("{step}: permission denied (this needs root, or the capabilities BPF and NET_ADMIN)")]
    Permission {
        /// The operation.
        step: String,
    },
    /// Another program uses the UDP port, or has a VXLAN device on it.
    #[error("UDP port {0} for VXLAN is in use by another program or device")]
    PortInUse(u16),
    /// A table refers to a port for which there is no device: see [`Fastdp::ensure_port`](crate::Fastdp::ensure_port).
    #[error("there is no VXLAN device for port {0}")]
    NoPort(u16),
    /// The topology exceeds what the programs can hold.
    #[error("the kernel path holds at most {limit} {what}, and {number} are needed")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        number: usize,
        /// How much there can be.
        limit: usize,
    },
    /// The kernel refused an operation.
    #[error("{step}: {error}")]
    System {
        /// The operation.
        step: String,
        /// The error of the kernel.
        error: io::Error,
    },
    /// An operation on devices failed.
    #[error(transparent)]
    Host(weave_host::Error),
}

impl Error {
    /// Runs a system call. Its error names `step`.
    pub(crate) fn at<T>(step: &str, call: impl FnOnce() -> io::Result<T>) -> Result<T, Error> {
        io_fail_point(&step).and_then(|()| call()).map_err(|error| Error::new(step, error))
    }

    pub(crate) fn new(step: impl Into<String>, error: io::Error) -> Error {
        let step = step.into();
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Error::Permission { step },
            _ => Error::System { step, error },
        }
    }

    /// The error code of the kernel, if the kernel refused an operation.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::System { error, .. } => error.raw_os_error(),
            Error::Permission { .. } => Some(libc::EPERM),
            Error::Host(error) => error.errno().map(|errno| errno as i32),
            _ => None,
        }
    }

    /// Takes these error codes as the lack of a feature.
    pub(crate) fn lacking(self, codes: &[i32], feature: &str) -> Error {
        match self {
            Error::System { step, error }
                if error.raw_os_error().is_some_and(|code| codes.contains(&code)) =>
            {
                Error::Unsupported { step, feature: feature.into() }
            }
            other => other,
        }
    }
}

impl From<weave_host::Error> for Error {
    fn from(error: weave_host::Error) -> Error {
        match error {
            weave_host::Error::MissingFeature { step, feature } => {
                Error::Unsupported { step, feature: feature.into() }
            }
            weave_host::Error::Permission { step } => Error::Permission { step },
            other => Error::Host(other),
        }
    }
}
