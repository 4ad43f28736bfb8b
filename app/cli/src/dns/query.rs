//! One question for the addresses of a name, over UDP, and over TCP if the answer does not fit (RFC 1035).

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// How often the question is sent, and the wait for each answer.
const TRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(5);
const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
const TRUNCATED: u16 = 0x0200;
const RESPONSE: u16 = 0x8000;
const RECURSION_DESIRED: u16 = 0x0100;
const NO_SUCH_NAME: u16 = 3;

#[derive(Debug, thiserror::Error)]
pub(super) enum QueryError {
    #[error("{0:?} is no name of a host")]
    Name(String),
    #[error("{server} does not answer: {source}")]
    NoAnswer { server: SocketAddr, source: io::Error },
    #[error("{server} refuses the question (code {code})")]
    Refused { server: SocketAddr, code: u16 },
    #[error("the answer of {0} cannot be read")]
    Malformed(SocketAddr),
}

/// The addresses of a name, in the order of the answer; none if there is no such name.
pub(super) fn addresses(server: SocketAddr, name: &str) -> Result<Vec<Ipv4Addr>, QueryError> {
    // Of the clock, since an answer of another sender would have to come from the server's address.
    let id = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |now| (now.subsec_nanos() >> 4) as u16);
    let question = encode(id, name).ok_or_else(|| QueryError::Name(name.to_owned()))?;
    let no_answer = |source| QueryError::NoAnswer { server, source };
    let mut answer = over_udp(server, &question).map_err(no_answer)?;
    if flags(&answer) & TRUNCATED != 0 {
        answer = over_tcp(server, &question).map_err(no_answer)?;
    }
    match flags(&answer) & 0xf {
        0 => read(&answer).ok_or(QueryError::Malformed(server)),
        NO_SUCH_NAME => Ok(Vec::new()),
        code => Err(QueryError::Refused { server, code }),
    }
}

fn encode(id: u16, name: &str) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    for word in [id, RECURSION_DESIRED, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        message.push(u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?);
        message.extend(label.as_bytes());
    }
    message.push(0);
    for word in [TYPE_A, CLASS_IN] {
        message.extend(word.to_be_bytes());
    }
    (message.len() <= HEADER + 255 + 4).then_some(message)
}

/// Whether a message answers a question.
fn answers(message: &[u8], question: &[u8]) -> bool {
    message.len() >= question.len() && message[..2] == question[..2] && flags(message) & RESPONSE != 0
}

fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    let mut buffer = vec![0; 4096];
    let mut error = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..TRIES {
        let deadline = Instant::now() + TIMEOUT;
        if let Err(e) = socket.send(question) {
            error = e;
            break;
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(n) if answers(&buffer[..n], question) => return Ok(buffer[..n].to_vec()),
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                // Nothing listens there.
                Err(e) => return Err(e),
            }
        }
    }
    Err(error)
}

fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    stream.write_all(&[&length.to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    if answers(&answer, question) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn word(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

fn flags(message: &[u8]) -> u16 {
    word(message, 2).unwrap_or_default()
}

/// The position after a name.
fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            // The rest of the name is elsewhere.
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

/// The addresses in the answers of a message.
fn read(message: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let mut at = HEADER;
    for _ in 0..word(message, 4)? {
        at = skip_name(message, at)? + 4;
    }
    let mut addresses = Vec::new();
    for _ in 0..word(message, 6)? {
        at = skip_name(message, at)?;
        let (kind, length) = (word(message, at)?, usize::from(word(message, at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == TYPE_A {
            addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?));
        }
        at += 10 + length;
    }
    Some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_an_answer() {
        let question = encode(7, "a.b").unwrap();
        assert_eq!(question[HEADER..], *b"\x01a\x01b\x00\x00\x01\x00\x01");
        let mut answer = question.clone();
        answer[2] |= 0x80;
        answer[7] = 2;
        // An alias, then an address.
        answer.extend(b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x01\x00\x02\xc0\x0e");
        answer.extend(b"\xc0\x0e\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04\x0a\x20\x00\x01");
        assert!(answers(&answer, &question) && !answers(&question, &question));
        assert_eq!(read(&answer), Some(vec![Ipv4Addr::new(10, 32, 0, 1)]));
        for end in HEADER..answer.len() {
            assert_eq!(read(&answer[..end]), None, "{end}");
        }
        for bad in ["", "a..b", &"a".repeat(64), &"a.".repeat(130)] {
            assert_eq!(encode(7, bad), None, "{bad}");
        }
    }
}
