use std::io;
use std::time::Duration;

/// Why there is no complete response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The TLS handshake failed, for example because a certificate was not accepted.
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    /// The connection was closed or reset.
    #[error("connection lost: {0}")]
    Io(io::Error),
    /// There was no complete response within the timeout.
    #[error("no response within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The response is not valid HTTP.
    #[error("malformed response: {0}")]
    Malformed(String),
    /// The body is larger than allowed.
    #[error("response too large: more than {0} bytes")]
    TooLarge(usize),
    /// The caller's method, path or header cannot be sent.
    #[error("invalid request: {0}")]
    Request(#[from] hyper::http::Error),
}

impl From<hyper::Error> for Error {
    fn from(error: hyper::Error) -> Error {
        if error.is_parse() || error.is_incomplete_message() {
            return Error::Malformed(error.to_string());
        }
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            if let Some(cause) = cause.downcast_ref::<io::Error>() {
                return match cause.kind() {
                    io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidData
                    | io::ErrorKind::InvalidInput => Error::Malformed(cause.to_string()),
                    kind => Error::Io(io::Error::new(kind, cause.to_string())),
                };
            }
            source = cause.source();
        }
        Error::Malformed(error.to_string())
    }
}
