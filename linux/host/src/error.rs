use nix::errno::Errno;

/// Why an operation on the host failed, by who has to act. Every text names the operation and the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("{step}: {}{}", errno_text(*.errno), explanation(.detail))]
    Refused {
        /// The operation and its object.
        step: String,
        /// The error code of the kernel.
        errno: Errno,
        /// The text of the netlink extended acknowledgement, often empty.
        detail: String,
    },
    /// The kernel was built without a feature that is needed.
    #[error("{step}: this kernel lacks {feature}; load the module, or use a kernel that has it")]
    MissingFeature {
        /// The operation and its object.
        step: String,
        /// The name of the feature, with its configuration option or module.
        feature: &'static str,
    },
    /// This process lacks the privileges for the operation.
    #[error(
        "{step}: permission denied (this needs root, or the capabilities NET_ADMIN, NET_RAW and SYS_ADMIN)"
    )]
    Permission {
        /// The operation and its object.
        step: String,
    },
    /// An argument of the caller is invalid.
    #[error("{0}")]
    Argument(String),
    /// The state of the host does not allow the operation; the text says what to do.
    #[error("{0}")]
    State(String),
    /// An interface does not exist; the text is that of 2.8.1.
    #[error("Link not found")]
    LinkNotFound,
    /// A namespace does not exist (any more), nor does its process or file.
    #[error("{0}")]
    NamespaceGone(String),
    /// The reply of the kernel is malformed, which is a bug.
    #[error("{step}: unreadable answer from the kernel: {detail}")]
    Unreadable {
        /// The operation and its object.
        step: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A step failed, and undoing an earlier one failed as well.
    #[error("{cause} (and could not be undone: {})", join(.left))]
    Undo {
        /// Why the operation failed.
        cause: Box<Error>,
        /// Why changes could not be undone.
        left: Vec<Error>,
    },
}

impl Error {
    pub(crate) fn refused(step: impl ToString, errno: Errno, detail: impl Into<String>) -> Error {
        let step = step.to_string();
        match errno {
            Errno::EPERM | Errno::EACCES => Error::Permission { step },
            _ => Error::Refused { step, errno, detail: detail.into() },
        }
    }

    /// For the creation of a socket of a family that the kernel may not have.
    pub(crate) fn socket(step: impl ToString, errno: Errno, feature: &'static str) -> Error {
        match errno {
            Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
                Error::MissingFeature { step: step.to_string(), feature }
            }
            _ => Error::refused(step, errno, ""),
        }
    }

    pub(crate) fn io(step: impl ToString, error: &std::io::Error) -> Error {
        match error.raw_os_error() {
            Some(code) => Error::refused(step, Errno::from_raw(code), ""),
            None => Error::Unreadable { step: step.to_string(), detail: error.to_string() },
        }
    }

    /// The bridge of the container network does not exist.
    pub fn no_bridge(name: &str) -> Error {
        Error::State(format!("bridge {name:?} not present; did you launch weave?"))
    }

    /// The error code of the kernel, if the kernel refused the operation.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Refused { errno, .. } => Some(*errno),
            Error::Permission { .. } => Some(Errno::EPERM),
            Error::Undo { cause, .. } => cause.errno(),
            _ => None,
        }
    }
}

/// Makes the removal of a device that does not exist (any more) a success.
pub(crate) fn ignore_missing_device(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(()),
        other => other,
    }
}

/// The text of the C library, in lower case because it follows a colon.
fn errno_text(errno: Errno) -> String {
    if errno == Errno::UnknownErrno {
        return "unknown error".into();
    }
    let text = errno.desc();
    let mut chars = text.chars();
    match (chars.next(), text.chars().nth(1)) {
        (Some(first), Some(second)) if second.is_lowercase() || second == ' ' => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.into(),
    }
}

fn explanation(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({})", detail.trim_end_matches('.')) }
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_operation_object_and_reason() {
        let e = Error::refused("creating veth pair a-b", Errno::EEXIST, "");
        assert_eq!(e.to_string(), "creating veth pair a-b: file exists");
        assert_eq!(e.errno(), Some(Errno::EEXIST));
        let e = Error::refused("setting mtu of a", Errno::EINVAL, "mtu greater than device maximum.");
        assert_eq!(e.to_string(), "setting mtu of a: invalid argument (mtu greater than device maximum)");
        assert_eq!(Error::refused("x", Errno::EIO, "").to_string(), "x: I/O error");
        assert!(matches!(Error::refused("x", Errno::EPERM, ""), Error::Permission { .. }));
        let undo =
            Error::Undo { cause: Box::new(e), left: vec![Error::LinkNotFound, Error::State("y".into())] };
        assert_eq!(undo.errno(), Some(Errno::EINVAL));
        assert!(undo.to_string().ends_with("(and could not be undone: Link not found; y)"));
    }
}
