//! HTTP/1.1 messages: heads, of which all but a few headers pass as they are, and the bodies that are read as a whole.

use std::fmt::Write;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head, in bytes.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 256;
/// Longest body that is read as a whole, in bytes.
const MAX_BODY: usize = 8 << 20;
/// Longest line with the size of a chunk, in bytes.
const MAX_CHUNK_LINE: usize = 4 << 10;
const READ_SIZE: usize = 16 << 10;

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("unexpected EOF")]
    Incomplete,
    #[error("malformed HTTP message: {0}")]
    Malformed(String),
    #[error("HTTP/2 is not supported here; use HTTP/1.1")]
    Http2,
    #[error("the {0} is longer than {1} bytes")]
    TooLarge(&'static str, usize),
}

/// The first line of a message, and its headers.
#[derive(Clone, Debug)]
pub(super) struct Head {
    first_line: String,
    headers: Vec<(String, Vec<u8>)>,
}

#[derive(Debug)]
pub(super) struct RequestHead {
    /// As in the first line: a path with a query, usually.
    pub(super) target: String,
    pub(super) head: Head,
}

#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) status: u16,
    pub(super) head: Head,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    /// At the end of the connection, or nowhere.
    Unknown,
}

impl Head {
    /// The value of the only header of a name, if it is text.
    pub(super) fn header<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let mut values = self.values(name);
        let value = values.next()?;
        values.next().is_none().then_some(value)?.ok()
    }

    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Result<&'a str, MessageError>> {
        let named = self.headers.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(key, value)| {
            let text = std::str::from_utf8(value).map(str::trim);
            text.map_err(|_| MessageError::Malformed(format!("header {key} is not text")))
        })
    }

    pub(super) fn remove(&mut self, names: &[&str]) {
        self.headers.retain(|(key, _)| !names.iter().any(|name| key.eq_ignore_ascii_case(name)));
    }

    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.headers.push((name.to_owned(), value.as_bytes().to_vec()));
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}\r\n", self.first_line).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    /// Whether the sender waits for `100 Continue` before it sends the body.
    pub(super) fn expects_continue(&self) -> bool {
        self.header("Expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
    }

    /// Describes a body of known length.
    pub(super) fn set_length(&mut self, length: usize) {
        self.remove(&["Content-Length", "Transfer-Encoding", "Trailer", "Expect"]);
        self.add("Content-Length", &length.to_string());
    }

    /// A message whose end could be understood in two ways is refused.
    fn framing(&self) -> Result<Framing, MessageError> {
        let malformed = |what: &str| MessageError::Malformed(what.to_owned());
        let mut lengths = self.values("Content-Length");
        let length = lengths.next().transpose()?;
        if lengths.any(|other| other.ok() != length) {
            return Err(malformed("it has several lengths"));
        }
        let mut encodings = self.values("Transfer-Encoding");
        match (encodings.next().transpose()?, length) {
            (None, None) => Ok(Framing::Unknown),
            (None, Some(length)) => {
                let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
                let number = length.parse().ok().filter(|_| digits);
                number.map(Framing::Length).ok_or_else(|| malformed("its length is not a number"))
            }
            (Some(encoding), None)
                if encoding.eq_ignore_ascii_case("chunked") && encodings.next().is_none() =>
            {
                Ok(Framing::Chunked)
            }
            (Some(_), None) => Err(malformed("its transfer encoding is not supported")),
            (Some(_), Some(_)) => Err(malformed("it has both a length and a transfer encoding")),
        }
    }
}

/// A stream with what was read from it ahead.
#[derive(Debug)]
pub(super) struct Reader<S> {
    pub(super) stream: S,
    /// Bytes behind what was returned.
    pub(super) ahead: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(super) fn new(stream: S) -> Reader<S> {
        Reader { stream, ahead: Vec::new() }
    }

    /// `false` at the end of the stream.
    async fn read_more(&mut self) -> io::Result<bool> {
        self.ahead.reserve(READ_SIZE);
        Ok(self.stream.read_buf(&mut self.ahead).await? > 0)
    }

    /// Reads the head of a request; `None` if the client closes the connection without one.
    pub(super) async fn request_head(&mut self) -> Result<Option<RequestHead>, MessageError> {
        loop {
            // Empty lines before a request are skipped (RFC 9112 2.2), and may come with a file descriptor.
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut request = httparse::Request::new(&mut headers);
            match request.parse(&self.ahead) {
                Ok(httparse::Status::Complete(length)) => {
                    let method = request.method.unwrap_or_default();
                    let target = request.path.unwrap_or_default().to_owned();
                    let first_line = format!("{method} {target} HTTP/1.{}", request.version.unwrap_or(1));
                    let head = Head { first_line, headers: copied(request.headers) };
                    self.ahead.drain(..length);
                    return Ok(Some(RequestHead { target, head }));
                }
                Ok(httparse::Status::Partial) => {}
                Err(_) if self.ahead.starts_with(b"PRI * HTTP/2.0") => return Err(MessageError::Http2),
                Err(e) => return Err(MessageError::Malformed(e.to_string())),
            }
            if self.ahead.len() > MAX_HEAD {
                return Err(MessageError::TooLarge("head of the request", MAX_HEAD));
            }
            if !self.read_more().await? {
                return if self.ahead.is_empty() { Ok(None) } else { Err(MessageError::Incomplete) };
            }
        }
    }

    /// Reads the head of a response, after those of intermediate responses.
    pub(super) async fn response_head(&mut self) -> Result<ResponseHead, MessageError> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            let parsed = response.parse(&self.ahead).map_err(|e| MessageError::Malformed(e.to_string()))?;
            if let httparse::Status::Complete(length) = parsed {
                let status = response.code.unwrap_or_default();
                let mut first_line = format!("HTTP/1.{} {status} ", response.version.unwrap_or(1));
                let _ = write!(first_line, "{}", response.reason.unwrap_or_default());
                let head = Head { first_line, headers: copied(response.headers) };
                self.ahead.drain(..length);
                if (100..200).contains(&status) && status != 101 {
                    continue;
                }
                return Ok(ResponseHead { status, head });
            }
            if self.ahead.len() > MAX_HEAD {
                return Err(MessageError::TooLarge("head of the response", MAX_HEAD));
            }
            if !self.read_more().await? {
                return Err(MessageError::Incomplete);
            }
        }
    }

    /// Reads the whole body of a request. Without a length there is none.
    pub(super) async fn request_body(&mut self, head: &Head) -> Result<Vec<u8>, MessageError> {
        match head.framing()? {
            Framing::Unknown => Ok(Vec::new()),
            framing => self.body(framing).await,
        }
    }

    /// Reads the whole body of a response that has one.
    pub(super) async fn response_body(&mut self, head: &Head) -> Result<Vec<u8>, MessageError> {
        let framing = head.framing()?;
        self.body(framing).await
    }

    async fn body(&mut self, framing: Framing) -> Result<Vec<u8>, MessageError> {
        let too_large = || MessageError::TooLarge("body", MAX_BODY);
        match framing {
            Framing::Length(length) if length > MAX_BODY => Err(too_large()),
            Framing::Length(length) => self.take(length).await,
            Framing::Unknown => {
                while self.read_more().await? {
                    if self.ahead.len() > MAX_BODY {
                        return Err(too_large());
                    }
                }
                Ok(std::mem::take(&mut self.ahead))
            }
            Framing::Chunked => {
                let mut body = Vec::new();
                loop {
                    let size = self.chunk_size().await?;
                    if size == 0 {
                        break;
                    }
                    if body.len().saturating_add(size) > MAX_BODY {
                        return Err(too_large());
                    }
                    body.extend(self.take(size).await?);
                    if self.take(2).await? != b"\r\n" {
                        return Err(MessageError::Malformed("a chunk is longer than it says".to_owned()));
                    }
                }
                // Trailers end with an empty line.
                while !self.line().await?.is_empty() {}
                Ok(body)
            }
        }
    }

    async fn chunk_size(&mut self) -> Result<usize, MessageError> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let hex = !size.is_empty() && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = usize::from_str_radix(size, 16).ok().filter(|_| hex);
        size.ok_or_else(|| MessageError::Malformed("the size of a chunk is not a number".to_owned()))
    }

    async fn line(&mut self) -> Result<String, MessageError> {
        loop {
            if let Some(end) = self.ahead.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.ahead.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            if self.ahead.len() > MAX_CHUNK_LINE {
                return Err(MessageError::TooLarge("line of a chunk", MAX_CHUNK_LINE));
            }
            if !self.read_more().await? {
                return Err(MessageError::Incomplete);
            }
        }
    }

    async fn take(&mut self, length: usize) -> Result<Vec<u8>, MessageError> {
        while self.ahead.len() < length {
            if !self.read_more().await? {
                return Err(MessageError::Incomplete);
            }
        }
        Ok(self.ahead.drain(..length).collect())
    }
}

fn copied(headers: &[httparse::Header<'_>]) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body_of(text: &str) -> Result<String, String> {
        let mut reader = Reader::new(text.as_bytes());
        let head = reader.request_head().await.map_err(|e| e.to_string())?.expect("a request").head;
        let body = reader.request_body(&head).await.map_err(|e| e.to_string())?;
        Ok(String::from_utf8(body).expect("text"))
    }

    #[tokio::test]
    async fn heads_keep_their_text() {
        let text =
            "POST /v1.24/x?a=b HTTP/1.1\r\nHost: /var/run/docker.sock\r\nX-a:  b \r\nx-A: c\r\n\r\nrest";
        let mut reader = Reader::new(text.as_bytes());
        let request = reader.request_head().await.expect("a head").expect("a request");
        assert_eq!(request.target, "/v1.24/x?a=b");
        let expected = text.replace("X-a:  b ", "X-a: b").replace("rest", "");
        assert_eq!(String::from_utf8_lossy(&request.head.to_bytes()), expected);
        assert_eq!(
            (request.head.header("host"), request.head.header("x-a")),
            (Some("/var/run/docker.sock"), None)
        );
        assert_eq!(reader.ahead, b"rest");

        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 Not Modified\r\nServer: Docker\r\n\r\n";
        let mut reader = Reader::new(text.as_bytes());
        let response = reader.response_head().await.expect("a head");
        assert_eq!(response.status, 304);
        assert_eq!(response.head.to_bytes(), &text.as_bytes()[25..]);
    }

    #[tokio::test]
    async fn bodies_of_requests() {
        for (request, body) in [
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello, more", Ok("hello")),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\na: b\r\n\r\n",
                Ok("hello"),
            ),
            ("GET / HTTP/1.1\r\n\r\n", Ok("")),
            ("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhello", Err("unexpected EOF")),
            (
                "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
                Err("both a length"),
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
                Err("several lengths"),
            ),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\nhello", Err("not a number")),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", Err("longer than 8388608 bytes")),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Err("not supported")),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", Err("longer than")),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", Err("size of a chunk")),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello", Err("longer than it says")),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err("HTTP/2 is not supported")),
            ("nonsense\r\n\r\n", Err("malformed")),
        ] {
            match (body_of(request).await, body) {
                (Ok(found), Ok(body)) => assert_eq!(found, body, "{request}"),
                (Err(found), Err(error)) => assert!(found.contains(error), "{request}: {found}"),
                (found, body) => panic!("{request}: {found:?} rather than {body:?}"),
            }
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD + READ_SIZE));
        assert!(body_of(&long[..long.len() - 4]).await.is_err_and(|e| e.contains("head of the request")));
    }
}
