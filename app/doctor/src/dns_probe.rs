//! Whether a DNS server answers at all, whatever it says.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

const ATTEMPTS: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(1);
/// Header of a question that desires recursion; the first two bytes are its identification.
const HEADER: [u8; 12] = [0x77, 0x76, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
const ID: usize = 2;
/// Flag QR of the header: a response (RFC 1035 section 4.1.1).
const RESPONSE: u8 = 0x80;
/// Type NS and class IN.
const NAME_SERVERS: [u8; 4] = [0, 2, 0, 1];

/// Asks a server over UDP for the name servers of a domain, for at most two seconds. The root is the empty domain.
pub(crate) fn answers(server: SocketAddr, domain: &str) -> bool {
    let local = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let Ok(socket) = UdpSocket::bind(SocketAddr::new(local, 0)) else { return false };
    let question = question(domain);
    // From other addresses nothing is received then.
    socket.connect(server).is_ok() && (0..ATTEMPTS).any(|_| ask(&socket, &question))
}

fn question(domain: &str) -> Vec<u8> {
    let mut question = HEADER.to_vec();
    for label in domain.split('.').filter(|label| !label.is_empty()) {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.push(0);
    question.extend_from_slice(&NAME_SERVERS);
    question
}

fn ask(socket: &UdpSocket, question: &[u8]) -> bool {
    if socket.send(question).is_err() {
        return false;
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut answer = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
            return false;
        }
        match socket.recv(&mut answer) {
            Ok(length) if length > ID && answer[..ID] == HEADER[..ID] && answer[ID] & RESPONSE != 0 => {
                return true;
            }
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_names_the_domain() {
        assert_eq!(question("")[HEADER.len()..], [0, 0, 2, 0, 1]);
        assert_eq!(question("a.bc.")[HEADER.len()..], [1, b'a', 2, b'b', b'c', 0, 0, 2, 0, 1]);
    }

    #[test]
    fn only_a_response_to_the_question_is_an_answer() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serve = std::thread::spawn(move || {
            let mut question = [0; 64];
            let (length, client) = server.recv_from(&mut question).unwrap();
            // The question itself, another identification, then a refusal.
            server.send_to(&question[..length], client).unwrap();
            server.send_to(&[0, 0, 0x80], client).unwrap();
            server.send_to(&[question[0], question[1], 0x81, 5], client).unwrap();
        });
        assert!(answers(address, ""));
        serve.join().unwrap();
        assert!(!answers(address, ""), "the port is closed");
    }
}
