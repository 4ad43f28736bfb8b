//! An HTTP/1.1 client over unix sockets, TCP and TLS: for the daemon's control API and for container engines.
//!
//! * [`Client::send`] returns a response whose body can be read as a stream (events of an engine);
//! * [`Client::exchange`] reads the whole body, with a limit on time and size;
//! * [`Client::exchange_blocking`] and [`Client::stream_blocking`] do the same for callers without an async runtime.
//!
//! A client keeps one idle connection and uses it again. Requests are not retried.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod connect;
mod error;
mod server_tls;
mod stream;
mod tls;

use std::fmt::Write;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;

pub use connect::Endpoint;
pub use error::Error;
pub use server_tls::{ServerTls, ServerTlsFiles};
pub use stream::Stream;
pub use tls::{Tls, TlsError};

/// Largest status line with headers.
const MAX_HEAD: usize = 64 << 10;
/// Default of [`Client::with_max_body`].
const DEFAULT_MAX_BODY: usize = 8 << 20;

/// A request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// `GET`, `POST`, ...
    pub method: &'a str,
    /// Path and query, percent-encoded (see [`encode`]).
    pub path: &'a str,
    /// Further headers, besides `Host`, `Content-Type` and `Content-Length`.
    pub headers: &'a [(&'a str, &'a str)],
    /// Media type and bytes of the body.
    pub body: Option<(&'a str, &'a [u8])>,
}

/// A complete response with any status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

/// A client of one server, with limits for its exchanges.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    timeout: Option<Duration>,
    max_body: usize,
    idle: Arc<Mutex<Option<SendRequest<Full<Bytes>>>>>,
}

impl Client {
    /// Creates a client. It connects with the first request.
    pub fn new(endpoint: Endpoint) -> Client {
        Client { endpoint, timeout: None, max_body: DEFAULT_MAX_BODY, idle: Arc::default() }
    }

    /// Limits the time of a whole exchange, connecting included. Without it, only connecting is limited, to three seconds.
    pub fn with_timeout(self, timeout: Duration) -> Client {
        Client { timeout: Some(timeout), ..self }
    }

    /// Limits the size of a body, in bytes; 8 MiB by default.
    pub fn with_max_body(self, max_body: usize) -> Client {
        Client { max_body, ..self }
    }

    /// Where the server listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends a request and returns the response when its head has arrived. The body is a stream without limits on its time or
    /// size; while it is read, further requests use other connections.
    ///
    /// # Errors
    /// There is no response; see [`Error`].
    pub async fn send(&self, request: Request<'_>) -> Result<hyper::Response<Incoming>, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut sender = match idle.filter(SendRequest::is_ready) {
            Some(sender) => sender,
            None => self.connect(None).await?,
        };
        let response = sender.send_request(self.build(request)?).await?;
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        Ok(response)
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// There is no complete response; see [`Error`].
    pub async fn exchange(&self, request: Request<'_>) -> Result<Response, Error> {
        self.within_timeout(async { self.complete(self.send(request).await?).await }).await
    }

    /// [`Client::exchange`] for a caller that may block, from any thread. With `fd`, the server receives a duplicate of this
    /// file descriptor with the request; only a unix socket carries it.
    ///
    /// # Errors
    /// There is no complete response; see [`Error`].
    pub fn exchange_blocking(
        &self,
        request: Request<'_>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Response, Error> {
        let exchange = async {
            let mut sender = self.connect(fd).await?;
            self.complete(sender.send_request(self.build(request)?).await?).await
        };
        // The thread of an async runtime must not block on another runtime, so the exchange then runs on a separate thread.
        std::thread::scope(|scope| {
            let run = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(Error::Io)?.block_on(self.within_timeout(exchange))
            };
            match tokio::runtime::Handle::try_current() {
                Err(_) => run(),
                Ok(_) => scope
                    .spawn(run)
                    .join()
                    .unwrap_or_else(|_| Err(Error::Io(io::Error::other("the exchange panicked")))),
            }
        })
    }

    /// Sends a request and passes on the parts of the body of a response as they arrive, for a caller that may block. `part` is first
    /// called without bytes, when the head has arrived. Only connecting is limited in time.
    ///
    /// # Errors
    /// There is no response, or its body is cut off; see [`Error`].
    pub fn stream_blocking(
        &self,
        request: Request<'_>,
        mut part: impl FnMut(u16, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Io)?;
        let mut response = runtime.block_on(async {
            Ok::<_, Error>(self.connect(None).await?.send_request(self.build(request)?).await?)
        })?;
        let status = response.status().as_u16();
        // Outside of the runtime, so that `part` may block.
        let mut next = part(status, &[]);
        while next.is_continue()
            && let Some(frame) = runtime.block_on(response.body_mut().frame())
        {
            if let Some(bytes) = frame?.data_ref() {
                next = part(status, bytes);
            }
        }
        Ok(())
    }

    async fn within_timeout<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.timeout {
            None => work.await,
            Some(timeout) => {
                tokio::time::timeout(timeout, work).await.unwrap_or(Err(Error::Timeout(timeout)))
            }
        }
    }

    async fn connect(&self, fd: Option<BorrowedFd<'_>>) -> Result<SendRequest<Full<Bytes>>, Error> {
        let stream = connect::connect(&self.endpoint, fd).await?;
        let mut builder = hyper::client::conn::http1::Builder::new();
        let (sender, connection) = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await?;
        // Errors are reported to the sender as well.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn build(&self, request: Request<'_>) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let mut builder = hyper::Request::builder().method(request.method).uri(request.path);
        builder = builder.header(HOST, self.endpoint.host());
        for (name, value) in request.headers {
            builder = builder.header(*name, *value);
        }
        let body = match request.body {
            Some((media_type, bytes)) => {
                builder = builder.header(CONTENT_TYPE, media_type);
                Bytes::copy_from_slice(bytes)
            }
            None => Bytes::new(),
        };
        Ok(builder.body(Full::new(body))?)
    }

    async fn complete(&self, response: hyper::Response<Incoming>) -> Result<Response, Error> {
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), self.max_body).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => Error::from(*error),
            Err(_) => Error::TooLarge(self.max_body),
        })?;
        Ok(Response { status, body: body.to_bytes().into() })
    }
}

/// Percent-encodes everything but unreserved characters (RFC 3986 2.3).
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
