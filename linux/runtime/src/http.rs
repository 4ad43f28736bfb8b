//! One request at a time, over a unix socket or TCP: what asking a container engine a question takes. Everything is
//! bounded: time, the head, the body.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Most bytes of status line and headers.
const HEAD_LIMIT: usize = 64 << 10;
/// Most bytes of body; the description of a container takes some ten kilobytes.
const BODY_LIMIT: usize = 8 << 20;
/// Longest line that announces a chunk.
const CHUNK_LINE_LIMIT: usize = 1 << 10;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody is there, or we are not let in.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Io(io::Error),
    /// No complete answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The answer is not HTTP.
    #[error("unreadable answer: {0}")]
    Malformed(&'static str),
    /// The answer is larger than any sensible one.
    #[error("answer too large: more than {0} bytes")]
    TooLarge(usize),
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

trait Stream: Read + Write {
    fn set_timeouts(&self, left: Duration) -> io::Result<()>;
}

impl Stream for UnixStream {
    fn set_timeouts(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

impl Stream for TcpStream {
    fn set_timeouts(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

/// What is sent with a question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body<'a> {
    pub(crate) content_type: &'a str,
    pub(crate) bytes: &'a [u8],
}

/// Bytes that are there already.
impl Stream for io::Cursor<Vec<u8>> {
    fn set_timeouts(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// Asks for `path`, which must be percent-encoded. The whole exchange takes at most `patience`.
pub(crate) fn get(endpoint: &Endpoint, path: &str, patience: Duration) -> Result<Response, HttpError> {
    request(endpoint, "GET", path, None, patience)
}

/// The same with any method and a body.
pub(crate) fn request(
    endpoint: &Endpoint,
    method: &str,
    path: &str,
    body: Option<Body<'_>>,
    patience: Duration,
) -> Result<Response, HttpError> {
    weave_host::fault_injection::io_fail_point(&format_args!("asking Docker: {method} {path}"))
        .map_err(HttpError::Io)?;
    let deadline = Instant::now() + patience;
    let stream: Box<dyn Stream> = match endpoint {
        Endpoint::Unix(path) => Box::new(UnixStream::connect(path).map_err(HttpError::Connect)?),
        Endpoint::Tcp(address) => Box::new(connect(address, deadline, patience)?),
    };
    let mut exchange = Exchange { stream, deadline, patience, buffer: Vec::new(), ended: false };
    let host = match endpoint {
        Endpoint::Unix(_) => "docker",
        Endpoint::Tcp(address) => address,
    };
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\nConnection: close\r\n"
    );
    match body {
        Some(Body { content_type, bytes }) => {
            head.push_str(&format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", bytes.len()));
        }
        None if method != "GET" => head.push_str("Content-Length: 0\r\n"),
        None => {}
    }
    head.push_str("\r\n");
    exchange.send(head.as_bytes())?;
    if let Some(body) = body {
        exchange.send(body.bytes)?;
    }
    exchange.response()
}

/// The response that these bytes are, as if a server had sent them and closed the connection.
pub(crate) fn read(answer: &[u8]) -> Result<Response, HttpError> {
    let patience = Duration::from_secs(1);
    let deadline = Instant::now() + patience;
    let stream = Box::new(io::Cursor::new(answer.to_vec()));
    Exchange { stream, deadline, patience, buffer: Vec::new(), ended: false }.response()
}

fn connect(address: &str, deadline: Instant, patience: Duration) -> Result<TcpStream, HttpError> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for addr in address.to_socket_addrs().map_err(HttpError::Connect)? {
        let left = left_until(deadline).ok_or(HttpError::Timeout(patience))?;
        match TcpStream::connect_timeout(&addr, left) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(HttpError::Connect(last))
}

fn left_until(deadline: Instant) -> Option<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
}

struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
}

struct Exchange {
    stream: Box<dyn Stream>,
    deadline: Instant,
    patience: Duration,
    /// Received and not yet consumed.
    buffer: Vec<u8>,
    ended: bool,
}

impl Exchange {
    fn response(&mut self) -> Result<Response, HttpError> {
        loop {
            let head = self.head()?;
            // 1xx: the real answer follows.
            if !(100..200).contains(&head.status) {
                let body = self.body(&head)?;
                return Ok(Response { status: head.status, body });
            }
        }
    }

    fn arm(&self) -> Result<(), HttpError> {
        let left = left_until(self.deadline).ok_or(HttpError::Timeout(self.patience))?;
        self.stream.set_timeouts(left).map_err(HttpError::Io)
    }

    fn failed(&self, error: io::Error) -> HttpError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => HttpError::Timeout(self.patience),
            _ => HttpError::Io(error),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        self.arm()?;
        self.stream.write_all(bytes).map_err(|e| self.failed(e))
    }

    /// Receives some more. `false` at the end.
    fn fill(&mut self) -> Result<bool, HttpError> {
        let mut chunk = [0; 16 << 10];
        while !self.ended {
            self.arm()?;
            match self.stream.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(false)
    }

    /// Consumes up to and including `mark`; gives what is before it.
    fn until(&mut self, mark: &[u8], limit: usize) -> Result<Vec<u8>, HttpError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].windows(mark.len()).position(|w| w == mark) {
                let mut taken: Vec<u8> = self.buffer.drain(..searched + at + mark.len()).collect();
                taken.truncate(searched + at);
                return Ok(taken);
            }
            searched = self.buffer.len().saturating_sub(mark.len() - 1);
            if self.buffer.len() > limit {
                return Err(HttpError::TooLarge(limit));
            }
            if !self.fill()? {
                return Err(HttpError::Malformed("it ends in the middle"));
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Result<Vec<u8>, HttpError> {
        while self.buffer.len() < length {
            if !self.fill()? {
                return Err(HttpError::Malformed("it ends in the middle"));
            }
        }
        Ok(self.buffer.drain(..length).collect())
    }

    fn head(&mut self) -> Result<Head, HttpError> {
        let bytes = self.until(b"\r\n\r\n", HEAD_LIMIT)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
        let version = first.next().unwrap_or_default();
        let status = first.next().and_then(|s| s.parse().ok());
        let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else {
            return Err(HttpError::Malformed("no HTTP status line"));
        };
        let mut head = Head { status, length: None, chunked: false };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else {
                return Err(HttpError::Malformed("a header without a colon"));
            };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                let length = value.parse().map_err(|_| HttpError::Malformed("a bad content length"))?;
                head.length = Some(length);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if !value.eq_ignore_ascii_case("chunked") {
                    return Err(HttpError::Malformed("an unknown transfer encoding"));
                }
                head.chunked = true;
            }
        }
        Ok(head)
    }

    fn body(&mut self, head: &Head) -> Result<Vec<u8>, HttpError> {
        if head.status == 204 || head.status == 304 {
            return Ok(Vec::new());
        }
        if head.chunked {
            return self.chunks();
        }
        match head.length {
            Some(length) if length > BODY_LIMIT => Err(HttpError::TooLarge(BODY_LIMIT)),
            Some(length) => self.exactly(length),
            None => {
                while self.fill()? {
                    if self.buffer.len() > BODY_LIMIT {
                        return Err(HttpError::TooLarge(BODY_LIMIT));
                    }
                }
                Ok(std::mem::take(&mut self.buffer))
            }
        }
    }

    fn chunks(&mut self) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n", CHUNK_LINE_LIMIT)?;
            let size = std::str::from_utf8(&line).ok().and_then(|l| l.split(';').next());
            let digits = size.map(str::trim).filter(|s| s.bytes().all(|b| b.is_ascii_hexdigit()));
            let size = digits
                .and_then(|s| usize::from_str_radix(s, 16).ok())
                .ok_or(HttpError::Malformed("a bad chunk size"))?;
            // Trailers may follow; the connection is closed anyway.
            if size == 0 {
                return Ok(body);
            }
            if size > BODY_LIMIT - body.len() {
                return Err(HttpError::TooLarge(BODY_LIMIT));
            }
            body.extend(self.exactly(size)?);
            if self.exactly(2)? != b"\r\n" {
                return Err(HttpError::Malformed("a chunk that does not end where it said"));
            }
        }
    }
}

/// Everything but unreserved characters as `%XX`.
pub(crate) fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// What the client makes of `answer`, sent in pieces of `piece` bytes.
    fn exchange(answer: &[u8], piece: usize) -> Result<Response, HttpError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                assert!(request.starts_with(b"GET /x HTTP/1.1\r\nHost: docker\r\n"));
                for piece in answer.chunks(piece) {
                    // The client may have given up already.
                    let _ = stream.write_all(piece);
                }
            });
            get(&Endpoint::Unix(path), "/x", PATIENCE)
        })
    }

    #[test]
    fn bodies() {
        let cases: [(&[u8], u16, &[u8]); 6] = [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, ignored", 200, b"hello"),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
                200,
                b"hello",
            ),
            (b"HTTP/1.0 404 Not Found\r\n\r\nhello", 404, b"hello"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x"),
            (b"HTTP/1.1 500\r\nContent-Length: 0\r\n\r\n", 500, b""),
        ];
        for (answer, status, body) in cases {
            for piece in [1, 3, 1000] {
                let response = exchange(answer, piece).unwrap();
                assert_eq!((response.status, &response.body[..]), (status, body));
            }
        }
    }

    #[test]
    fn bad_answers() {
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\nContent-Len",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 yes\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
        ] {
            let result = exchange(answer, 1000);
            assert!(matches!(result, Err(HttpError::Malformed(_))), "{result:?}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let big = vec![b'x'; HEAD_LIMIT + 100_000];
        for answer in [
            [b"HTTP/1.1 200 OK\r\nA: ", &big[..]].concat(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n".to_vec(),
            [&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"[..], &big].concat(),
            [b"HTTP/1.1 200 OK\r\n\r\n", &vec![0; BODY_LIMIT + 1][..]].concat(),
        ] {
            let result = exchange(&answer, 1 << 20);
            assert!(matches!(result, Err(HttpError::TooLarge(_))), "{:?}", result.map(|r| r.status));
        }
    }

    #[test]
    fn nobody_there_and_nobody_answering() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let result = get(&Endpoint::Unix(path.clone()), "/x", PATIENCE);
        assert!(matches!(result, Err(HttpError::Connect(_))), "{result:?}");
        // Bound, never accepted: the kernel completes the connection, nobody answers.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let result = get(&Endpoint::Unix(path), "/x", Duration::from_millis(50));
        assert!(matches!(result, Err(HttpError::Timeout(_))), "{result:?}");
    }

    #[test]
    fn segments() {
        assert_eq!(encode_segment("a-b_c.d~9"), "a-b_c.d~9");
        assert_eq!(encode_segment("../x y?\r\n/é"), "..%2Fx%20y%3F%0D%0A%2F%C3%A9");
    }
}
