use nix::errno::Errno;

/// Why a host operation failed, split by who has to act. Every text names the step and the object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request that it understands.
    #[error("{step}: {}{}", errno_text(*.errno), explanation(.detail))]
    Refused {
        /// What was tried on what.
        step: String,
        /// The kernel's reason.
        errno: Errno,
        /// The kernel's own words (netlink extended acknowledgement), often empty.
        detail: String,
    },
    /// The kernel was built without something that is needed.
    #[error("{step}: this kernel lacks {feature}; load the module, or use a kernel that has it")]
    MissingFeature {
        /// What was tried on what.
        step: String,
        /// What is missing, as a person would look for it.
        feature: &'static str,
    },
    /// This process may not do that.
    #[error(
        "{step}: permission denied (this needs root, or the capabilities NET_ADMIN, NET_RAW and SYS_ADMIN)"
    )]
    Permission {
        /// What was tried on what.
        step: String,
    },
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Argument(String),
    /// The host is in a state in which this cannot be done; the text says what to do.
    #[error("{0}")]
    State(String),
    /// A named interface does not exist; the words of 2.8.1.
    #[error("Link not found")]
    LinkNotFound,
    /// A namespace cannot be entered because its process or file is gone.
    #[error("{0}")]
    NamespaceGone(String),
    /// The kernel's answer could not be read. A bug, here or there.
    #[error("{step}: unreadable answer from the kernel: {detail}")]
    Unreadable {
        /// What was tried on what.
        step: String,
        /// What was wrong with it.
        detail: String,
    },
    /// A step failed, and then undoing an earlier one failed as well.
    #[error("{cause} (and could not be undone: {})", join(.left))]
    Undo {
        /// The first failure.
        cause: Box<Error>,
        /// What remains to be cleaned up.
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

    /// A socket of a family that the kernel may lack.
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

    pub(crate) fn no_bridge(name: &str) -> Error {
        Error::State(format!("bridge {name:?} not present; did you launch weave?"))
    }

    /// The kernel's reason, if it was the kernel that refused.
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

/// The C library's words in lower case, as they follow a colon.
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
    fn texts_name_step_object_and_reason() {
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
