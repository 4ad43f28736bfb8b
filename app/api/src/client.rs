//! A small blocking HTTP/1.1 client for the control API.
//!
//! One request per connection. There is a limit on the time to connect, none on the answer: some calls wait by design
//! (docs/spec/cli.md 2.1).

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;

use crate::report::Report;

/// Largest answer that is read; a report of a thousand peers stays well below.
const MAX_ANSWER: u64 = 256 << 20;
/// Time to connect, as in 2.8.1.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Control port when only a host is given.
pub const DEFAULT_PORT: u16 = 6784;
/// Where the control API listens on TCP unless told otherwise.
pub const DEFAULT_ADDR: &str = "127.0.0.1:6784";

/// Where a daemon is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Endpoint {
    /// From `WEAVE_HTTP_ADDR` or `--http-addr`: `/path`, `host:port`, `host`, `:port` or empty (docs/spec/cli.md 2.3).
    pub fn parse(text: &str) -> Endpoint {
        if text.starts_with('/') {
            return Endpoint::Unix(text.into());
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port),
            _ => (text, ""), // also an IPv6 address without port
        };
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        let host =
            if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.into() };
        if port.is_empty() {
            Endpoint::Tcp(format!("{host}:{DEFAULT_PORT}"))
        } else {
            Endpoint::Tcp(format!("{host}:{port}"))
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => path.display().fmt(f),
            Endpoint::Tcp(addr) => addr.fmt(f),
        }
    }
}

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no answer on {endpoint}: {source}")]
    Connect {
        /// The address tried last.
        endpoint: Endpoint,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("talking to {endpoint}: {source}")]
    Transport {
        /// With whom.
        endpoint: Endpoint,
        /// What the kernel said.
        source: io::Error,
    },
    /// What came back is not HTTP.
    #[error("{endpoint} does not answer as a weave daemon: {what}")]
    NotHttp {
        /// Who.
        endpoint: Endpoint,
        /// What is wrong.
        what: &'static str,
    },
    /// The route does not exist there, or the service is off.
    #[error("not found")]
    NotFound,
    /// The daemon refused; its own words.
    #[error("{}", body.trim_end())]
    Refused {
        /// HTTP status.
        status: u16,
        /// The answer.
        body: String,
    },
    /// The report, or another answer, cannot be read.
    #[error("cannot read the daemon's report: {0}")]
    Report(#[from] serde_json::Error),
}

impl ClientError {
    /// Exit code of a command that ends with this: 4 not found, 7 nobody there, 1 otherwise (docs/spec/cli.md 2.1).
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
    /// Reads a complete answer.
    ///
    /// # Errors
    /// What is wrong with it: it is cut off, or not HTTP.
    pub fn from_bytes(raw: &[u8]) -> Result<Response, &'static str> {
        parse(raw)
    }

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
    patience: Option<Duration>,
    trace: Option<fn(&str)>,
}

impl Client {
    /// Tries `endpoints` in order until one accepts the connection.
    pub fn new(endpoints: Vec<Endpoint>) -> Client {
        Client { endpoints, patience: None, trace: None }
    }

    /// Waits no longer than this for each part of an answer, for calls that have no reason to wait.
    pub fn impatient(self, patience: Duration) -> Client {
        Client { patience: Some(patience), ..self }
    }

    /// Tells of each exchange in one line: what was asked whom, and the status of the answer.
    pub fn traced(self, trace: fn(&str)) -> Client {
        Client { trace: Some(trace), ..self }
    }

    /// Where this host's daemon is: the address that the user gave, else the unix socket, else the usual TCP address.
    pub fn local(http_addr: Option<&str>, socket: &Path) -> Client {
        match http_addr.filter(|addr| !addr.is_empty()) {
            Some(addr) => Client::new(vec![Endpoint::parse(addr)]),
            None => {
                Client::new(vec![Endpoint::Unix(socket.to_owned()), Endpoint::Tcp(DEFAULT_ADDR.to_owned())])
            }
        }
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

    /// The report through a Go template.
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

    /// One exchange.
    ///
    /// # Errors
    /// Only if no answer arrived.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Result<Response, ClientError> {
        let body =
            form.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect::<Vec<_>>().join("&");
        let content = (method != "GET").then_some(("application/x-www-form-urlencoded", body));
        self.exchange(method, path, headers, content, None)
    }

    /// `POST` of JSON, with a file descriptor of which the daemon receives a duplicate. Needs a unix socket.
    ///
    /// # Errors
    /// Only if no answer arrived.
    pub fn post_json<T: Serialize>(
        &self,
        path: &str,
        body: &T,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Response, ClientError> {
        let content = Some(("application/json", serde_json::to_string(body)?));
        self.exchange("POST", path, &[], content, fd)
    }

    /// `content` is the type of the body and the body.
    fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        content: Option<(&str, String)>,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Response, ClientError> {
        let mut failure = None;
        for endpoint in &self.endpoints {
            let stream = match connect(endpoint, self.patience) {
                Ok(stream) => stream,
                Err(source) => {
                    // Lack of rights says more than the absence of a second way.
                    let telling = matches!(&failure, Some(ClientError::Connect { source, .. })
                        if source.kind() == io::ErrorKind::PermissionDenied);
                    if !telling {
                        failure = Some(ClientError::Connect { endpoint: endpoint.clone(), source });
                    }
                    continue;
                }
            };
            let host = match endpoint {
                Endpoint::Unix(_) => "localhost",
                Endpoint::Tcp(addr) => addr,
            };
            let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            if let Some((content_type, body)) = &content {
                head.push_str(&format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len()));
            }
            head.push_str("\r\n");
            head.push_str(content.as_ref().map_or("", |(_, body)| body));
            let raw = exchange(stream, head.as_bytes(), fd)
                .map_err(|source| ClientError::Transport { endpoint: endpoint.clone(), source })?;
            let answer =
                parse(&raw).map_err(|what| ClientError::NotHttp { endpoint: endpoint.clone(), what });
            if let (Some(trace), Ok(answer)) = (self.trace, &answer) {
                trace(&format!("{method} {path} to {endpoint}: {}", answer.status));
            }
            return answer;
        }
        Err(failure.unwrap_or(ClientError::Connect {
            endpoint: Endpoint::Tcp(DEFAULT_ADDR.to_owned()),
            source: io::ErrorKind::AddrNotAvailable.into(),
        }))
    }
}

trait Stream: Read + Write {
    /// Writes a part of `bytes` together with a file descriptor.
    fn write_with_fd(&mut self, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize>;
}

impl Stream for TcpStream {
    fn write_with_fd(&mut self, _: &[u8], _: BorrowedFd<'_>) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "only a unix socket passes file descriptors"))
    }
}

impl Stream for UnixStream {
    fn write_with_fd(&mut self, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
        let fds = [fd.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        Ok(sendmsg::<()>(
            self.as_raw_fd(),
            &[io::IoSlice::new(bytes)],
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?)
    }
}

fn connect(endpoint: &Endpoint, patience: Option<Duration>) -> io::Result<Box<dyn Stream>> {
    match endpoint {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(patience)?;
            Ok(Box::new(stream))
        }
        Endpoint::Tcp(addr) => {
            let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for addr in addr.to_socket_addrs()? {
                match TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT) {
                    Ok(stream) => {
                        stream.set_read_timeout(patience)?;
                        return Ok(Box::new(stream));
                    }
                    Err(e) => failure = e,
                }
            }
            Err(failure)
        }
    }
}

fn exchange(mut stream: Box<dyn Stream>, request: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<Vec<u8>> {
    let sent = fd.map_or(Ok(0), |fd| stream.write_with_fd(request, fd))?;
    stream.write_all(&request[sent..])?;
    stream.flush()?;
    let mut raw = Vec::new();
    let mut chunk = [0; 16 << 10];
    // The end is where the answer says it is; a peer that keeps the connection open is not waited for.
    while !complete(&raw) {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => raw.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if raw.len() as u64 > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer too large"));
        }
    }
    Ok(raw)
}

/// How the body is delimited.
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

fn split_head(raw: &[u8]) -> Option<(&str, &[u8])> {
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&raw[..end]).ok()?, &raw[end + 4..]))
}

fn framing(head: &str) -> Framing {
    let mut framing = Framing::UntilClose;
    for line in head.lines().skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            return Framing::Chunked;
        }
        if name.eq_ignore_ascii_case("content-length")
            && let Ok(n) = value.parse()
        {
            framing = Framing::Length(n);
        }
    }
    framing
}

fn complete(raw: &[u8]) -> bool {
    match split_head(raw) {
        None => false,
        Some((head, body)) => match framing(head) {
            _ if status(head) == Some(204) => true,
            Framing::Length(n) => body.len() >= n,
            Framing::Chunked => dechunk(body).is_some(),
            Framing::UntilClose => false,
        },
    }
}

fn status(head: &str) -> Option<u16> {
    let mut words = head.lines().next()?.split(' ');
    words.next()?.starts_with("HTTP/1.").then_some(())?;
    words.next()?.parse().ok()
}

fn parse(raw: &[u8]) -> Result<Response, &'static str> {
    let (head, body) = split_head(raw).ok_or("the answer has no complete header")?;
    let status = status(head).ok_or("the answer has no status line")?;
    let body = match framing(head) {
        Framing::Length(n) => body.get(..n).ok_or("the answer was cut off")?.to_vec(),
        Framing::Chunked => dechunk(body).ok_or("the answer was cut off")?,
        Framing::UntilClose => body.to_vec(),
    };
    Ok(Response { status, body: String::from_utf8_lossy(&body).into_owned() })
}

/// The content of a chunked body; `None` while its end has not arrived.
fn dechunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&body[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        body = &body[end + 2..];
        if size == 0 {
            return Some(content);
        }
        content.extend_from_slice(body.get(..size)?);
        body = body.get(size.checked_add(2)?..)?;
    }
}

/// Percent-encoding of everything but unreserved characters.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
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
            assert_eq!(Endpoint::parse(text), endpoint, "{text}");
        }
    }

    #[test]
    fn answers() {
        let ok = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap();
        assert_eq!(ok, Response { status: 200, body: "hello".into() });
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().body, "hello!");
        for n in 0..chunked.len() - 2 {
            assert!(!complete(&chunked[..n]), "{n}");
        }
        assert!(complete(chunked));
        assert_eq!(parse(b"HTTP/1.0 500 Oops\r\n\r\nall of it").unwrap().body, "all of it");
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello").is_err());
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_err());
        assert!(parse(b"garbage").is_err());
        assert!(
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx").is_err()
        );
    }

    #[test]
    fn exit_codes() {
        let body = |status| Response { status, body: "x\n".into() }.accept();
        assert_eq!(body(204).unwrap(), "x\n");
        assert_eq!(body(404).unwrap_err().exit_code(), 4);
        let refused = body(400).unwrap_err();
        assert_eq!((refused.exit_code(), refused.to_string()), (1, "x".to_owned()));
        let nobody = Client::new(vec![Endpoint::Unix("/nonexistent/weave.sock".into())]).get("/status");
        assert_eq!(nobody.unwrap_err().exit_code(), 7);
    }

    #[test]
    fn percent() {
        assert_eq!(encode("{{.Router.Name}} \"\n\u{e4}"), "%7B%7B.Router.Name%7D%7D%20%22%0A%C3%A4");
    }
}
