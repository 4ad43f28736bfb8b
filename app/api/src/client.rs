//! The client of the control API (docs/spec/cli.md 2.1). Calls block the thread; some wait for other peers without a limit.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use weave_http::{Error as HttpError, Request};

pub use weave_http::{Endpoint, encode};

use crate::network_view::NetworkView;
use crate::report::Report;

/// Largest answer; a report of a thousand peers is far below.
const MAX_BODY: usize = 256 << 20;
/// Control port when only a host is given.
pub const DEFAULT_PORT: u16 = 6784;
/// Where the control API listens on TCP unless another address is configured.
pub const DEFAULT_ADDR: &str = "127.0.0.1:6784";

/// Parses `WEAVE_HTTP_ADDR` or `--http-addr`: `/path`, `host:port`, `host`, `:port` or empty (docs/spec/cli.md 2.3).
pub fn parse_endpoint(text: &str) -> Endpoint {
    if text.starts_with('/') {
        return Endpoint::Unix(text.into());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
        _ => (text, ""), // also an IPv6 address without port
    };
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.into() };
    Endpoint::Tcp(if port.is_empty() { format!("{host}:{DEFAULT_PORT}") } else { format!("{host}:{port}") })
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon accepts connections there.
    #[error("no answer on {endpoint}: {source}")]
    Connect {
        /// The address that was tried last.
        endpoint: String,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The exchange failed after the connection was made.
    #[error("talking to {endpoint}: {source}")]
    Transport {
        /// The daemon's address.
        endpoint: String,
        /// What failed.
        source: HttpError,
    },
    /// The route does not exist there, or the service is off.
    #[error("not found")]
    NotFound,
    /// The daemon refused, with this text.
    #[error("{}", body.trim_end())]
    Refused {
        /// HTTP status.
        status: u16,
        /// The daemon's text.
        body: String,
    },
    /// The report, or another answer, cannot be read.
    #[error("cannot read the daemon's answer: {0}")]
    Report(#[from] serde_json::Error),
}

impl ClientError {
    /// Exit code of a command that ends with this error: 4 not found, 7 no daemon, 1 otherwise (docs/spec/cli.md 2.1).
    pub fn exit_code(&self) -> u8 {
        match self {
            ClientError::NotFound => 4,
            ClientError::Connect { .. } => 7,
            _ => 1,
        }
    }
}

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The body; bytes that are not UTF-8 are replaced.
    pub body: String,
}

impl Response {
    /// The body if the status is 2xx.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] or [`ClientError::Refused`].
    pub fn accept(self) -> Result<String, ClientError> {
        match self {
            Response { status: 200..=299, body } => Ok(body),
            Response { status: 404, .. } => Err(ClientError::NotFound),
            Response { status, body } => Err(ClientError::Refused { status, body }),
        }
    }
}

/// A daemon's control API.
#[derive(Clone, Debug)]
pub struct Client {
    endpoints: Vec<Endpoint>,
    timeout: Option<Duration>,
    trace: Option<fn(&str)>,
}

impl Client {
    /// Tries `endpoints` in order until one accepts the connection.
    pub fn new(endpoints: Vec<Endpoint>) -> Client {
        Client { endpoints, timeout: None, trace: None }
    }

    /// Limits the time of each exchange, for calls that do not wait for other peers.
    pub fn with_timeout(self, timeout: Duration) -> Client {
        Client { timeout: Some(timeout), ..self }
    }

    /// Reports each exchange in one line: method, path, endpoint and the status of the answer.
    pub fn traced(self, trace: fn(&str)) -> Client {
        Client { trace: Some(trace), ..self }
    }

    /// The daemon of this host: at the address that the user gave, else at the unix socket, else at the default TCP address.
    pub fn local(http_addr: Option<&str>, socket: &Path) -> Client {
        Client::new(match http_addr.filter(|addr| !addr.is_empty()) {
            Some(addr) => vec![parse_endpoint(addr)],
            None => vec![Endpoint::Unix(socket.to_owned()), Endpoint::Tcp(DEFAULT_ADDR.to_owned())],
        })
    }

    /// `GET`; any status but 2xx is an error.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get(&self, path: &str) -> Result<String, ClientError> {
        self.request("GET", path, &[], &[])?.accept()
    }

    /// The report.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn report(&self) -> Result<Report, ClientError> {
        Ok(Report::from_json(&self.report_json()?)?)
    }

    /// The report as the daemon's JSON.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn report_json(&self) -> Result<String, ClientError> {
        self.request("GET", "/report", &[("Accept", "application/json")], &[])?.accept()
    }

    /// The network as the daemon sees it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn network_view(&self) -> Result<NetworkView, ClientError> {
        Ok(NetworkView::from_json(&self.get("/picture.json")?)?)
    }

    /// The report rendered by a Go template.
    ///
    /// # Errors
    /// See [`ClientError`]; a bad template is [`ClientError::Refused`].
    pub fn report_format(&self, template: &str) -> Result<String, ClientError> {
        self.get(&format!("/report?format={}", encode(template)))
    }

    /// `POST` of a form; any status but 2xx is an error.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post(&self, path: &str, form: &[(&str, &str)]) -> Result<String, ClientError> {
        self.request("POST", path, &[], form)?.accept()
    }

    /// `DELETE`; any status but 2xx is an error.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<String, ClientError> {
        self.request("DELETE", path, &[], &[])?.accept()
    }

    /// Sends a request with a form, which `GET` does not have, and returns the answer.
    ///
    /// # Errors
    /// There is no answer.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Result<Response, ClientError> {
        let form: Vec<_> = form.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
        let form = form.join("&");
        let body = (method != "GET").then_some(("application/x-www-form-urlencoded", form.as_bytes()));
        self.exchange(Request { method, path, headers, body }, None)
    }

    /// `POST` of JSON, with a file descriptor of which the daemon receives a duplicate. Needs a unix socket.
    ///
    /// # Errors
    /// There is no answer.
    pub fn post_json<T: Serialize>(
        &self,
        path: &str,
        body: &T,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Response, ClientError> {
        let json = serde_json::to_vec(body)?;
        let body = Some(("application/json", json.as_slice()));
        self.exchange(Request { method: "POST", path, headers: &[], body }, fd)
    }

    fn exchange(&self, request: Request<'_>, fd: Option<BorrowedFd<'_>>) -> Result<Response, ClientError> {
        let mut failure = None;
        for endpoint in &self.endpoints {
            let mut client = weave_http::Client::new(endpoint.clone()).with_max_body(MAX_BODY);
            if let Some(timeout) = self.timeout {
                client = client.with_timeout(timeout);
            }
            let address = endpoint.address();
            match client.exchange_blocking(request, fd) {
                Ok(answer) => {
                    if let Some(trace) = self.trace {
                        let Request { method, path, .. } = request;
                        trace(&format!("{method} {path} to {address}: {}", answer.status));
                    }
                    let body = String::from_utf8_lossy(&answer.body).into_owned();
                    return Ok(Response { status: answer.status, body });
                }
                Err(HttpError::Connect(source)) => {
                    // That the user lacks rights says more than that the next endpoint does not exist.
                    let denied = matches!(&failure, Some(ClientError::Connect { source, .. })
                        if source.kind() == io::ErrorKind::PermissionDenied);
                    if !denied {
                        failure = Some(ClientError::Connect { endpoint: address, source });
                    }
                }
                Err(source) => return Err(ClientError::Transport { endpoint: address, source }),
            }
        }
        Err(failure.unwrap_or(ClientError::Connect {
            endpoint: DEFAULT_ADDR.to_owned(),
            source: io::ErrorKind::AddrNotAvailable.into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_users_write_them_are_parsed() {
        let tcp = |s: &str| Endpoint::Tcp(s.to_owned());
        for (text, endpoint) in [
            ("", tcp("127.0.0.1:6784")),
            (":7000", tcp("127.0.0.1:7000")),
            ("1.2.3.4", tcp("1.2.3.4:6784")),
            ("1.2.3.4:7", tcp("1.2.3.4:7")),
            ("host", tcp("host:6784")),
            ("[::1]:7", tcp("[::1]:7")),
            ("[::1]", tcp("[::1]:6784")),
            ("::1", tcp("[::1]:6784")),
            ("/run/w.sock", Endpoint::Unix("/run/w.sock".into())),
        ] {
            assert_eq!(parse_endpoint(text), endpoint, "{text}");
        }
    }

    #[test]
    fn exit_codes_are_those_of_2_8_1() {
        let body = |status| Response { status, body: "x\n".into() }.accept();
        assert_eq!(body(204).unwrap(), "x\n");
        assert_eq!(body(404).unwrap_err().exit_code(), 4);
        let refused = body(400).unwrap_err();
        assert_eq!((refused.exit_code(), refused.to_string()), (1, "x".to_owned()));
        let missing = Client::new(vec![Endpoint::Unix("/nonexistent/weave.sock".into())]).get("/status");
        assert_eq!(missing.unwrap_err().exit_code(), 7);
    }
}
