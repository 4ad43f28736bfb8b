//! What connections of every kind have in common.

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection over a unix socket, TCP or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
