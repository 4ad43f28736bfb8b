//! Names by hand: `dns-add`, `dns-remove`, `dns-lookup` (docs/spec/cli.md 2.2).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use weave_api::{Client, ClientError, client::encode};
use weave_runtime::{Kind, Reference, Target};

use crate::args::Parsed;
use crate::options::{self, Env};
use crate::usage::Command;
use crate::{Failure, print, ps, query};

/// Whose names are that belong to no container.
const EXTERN: &str = "weave:extern";
/// What failed calls for a service that is off end with (docs/spec/cli.md 2.1).
const OFF: u8 = 4;
/// Wait for an answer, and how often it is asked for.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 3;

/// Whose name it is, and for which addresses.
struct Call {
    id: String,
    /// Whether a container was named, whose life decides about the name.
    container: Option<Target>,
    addresses: Vec<IpAddr>,
}

/// `[<ip> ...] <container> [-h <fqdn>]` or `<ip> ... -h <fqdn>`.
fn call(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<Call, Failure> {
    let ips = parsed.rest.iter().map_while(|a| a.parse::<Ipv4Addr>().ok()).map(IpAddr::V4);
    let mut addresses: Vec<IpAddr> = ips.collect();
    let container = match &parsed.rest[addresses.len()..] {
        [] if parsed.text("h").is_some() && !addresses.is_empty() => None,
        [name] => Some(weave_runtime::resolve(&name.parse::<Reference>()?, &ps::docker(env))?),
        _ => return Err(Failure::new(1, command.synopsis())),
    };
    if addresses.is_empty()
        && let Some(target) = &container
    {
        let mut ports = ps::scan(&options::bridge(parsed, env))?;
        let links = ports.in_namespace(&target.ns)?;
        addresses = links.iter().flat_map(|l| &l.addresses).map(|a| a.addr()).collect();
    }
    let id = container.as_ref().map_or_else(|| EXTERN.to_owned(), |t| t.id.clone());
    Ok(Call { id, container, addresses })
}

pub(crate) fn add(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(command, parsed, env)?;
    let own = || match &call.container.as_ref()?.kind {
        Kind::Docker(info) => info.fqdn(),
        _ => None,
    };
    // A container without a domain has no name in ours.
    let Some(fqdn) = parsed.text("h").map(str::to_owned).or_else(own) else { return Ok(()) };
    let mut form = vec![("fqdn", fqdn.as_str())];
    if call.container.is_some() {
        form.push(("check-alive", "true"));
    }
    each(&call, parsed, env, |client, path| client.request("PUT", path, &[], &form))
}

pub(crate) fn remove(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(command, parsed, env)?;
    let query = parsed.text("h").map(|fqdn| format!("?fqdn={}", encode(fqdn))).unwrap_or_default();
    each(&call, parsed, env, |client, path| client.request("DELETE", &format!("{path}{query}"), &[], &[]))
}

/// One request an address. All are made; the first failure is told (2.8.1 told none).
fn each(
    call: &Call,
    parsed: &Parsed,
    env: &dyn Env,
    request: impl Fn(&Client, &str) -> Result<weave_api::Response, ClientError>,
) -> Result<(), Failure> {
    let client = query::client(parsed, env);
    let mut failure = None;
    for address in &call.addresses {
        let path = format!("/name/{}/{address}", encode(&call.id));
        let result = match request(&client, &path) {
            Ok(response) if (200..300).contains(&response.status) => continue,
            Ok(response) if response.status == 404 => Failure::new(OFF, "weaveDNS is off"),
            Ok(response) => Failure::new(1, response.body.trim_end()),
            Err(e) => query::explain(e, parsed, env),
        };
        failure.get_or_insert(result);
    }
    failure.map_or(Ok(()), Err)
}

/// Addresses of a name, one a line; nothing if there are none.
pub(crate) fn lookup(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let [name] = parsed.rest.as_slice() else { return Err(Failure::new(1, command.synopsis())) };
    let server = match env.var("DNS_ADDRESS").filter(|a| !a.is_empty()) {
        Some(address) => address,
        None => match query::client(parsed, env).get("/dns-address-port") {
            Ok(address) => address.trim().to_owned(),
            Err(ClientError::NotFound) => return Err(Failure::new(OFF, "weaveDNS is off")),
            Err(e) => return Err(query::explain(e, parsed, env)),
        },
    };
    let server = server_address(&server)
        .ok_or_else(|| Failure::new(1, format_args!("{server:?} is not the address of a name server")))?;
    let addresses = ask(server, name).map_err(|e| Failure::new(1, format_args!("asking {server}: {e}")))?;
    print(&addresses.iter().map(|a| format!("{a}\n")).collect::<String>())
}

fn server_address(text: &str) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT)))
}

fn ask(server: SocketAddr, name: &str) -> std::io::Result<Vec<Ipv4Addr>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Who could guess it could as well be the server; the socket takes answers from there only.
    let id = std::process::id() as u16;
    let bad = |what: &'static str| std::io::Error::new(std::io::ErrorKind::InvalidInput, what);
    let question = question(id, name).ok_or_else(|| bad("that is no host name"))?;
    let mut buffer = [0; 4096];
    let mut attempts = ATTEMPTS;
    loop {
        socket.send(&question)?;
        match socket.recv(&mut buffer) {
            Ok(n) => return answers(id, &buffer[..n]).ok_or_else(|| bad("the answer cannot be understood")),
            // A signal is no answer; it is asked again at once.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && attempts > 1 => attempts -= 1,
            Err(e) => return Err(e),
        }
    }
}

/// An A query (RFC 1035). `None` if the name cannot be put into one.
fn question(id: u16, name: &str) -> Option<Vec<u8>> {
    const RECURSION_DESIRED: u16 = 0x0100;
    const A_IN: [u8; 4] = [0, 1, 0, 1];
    let mut packet = Vec::new();
    for word in [id, RECURSION_DESIRED, 1, 0, 0, 0] {
        packet.extend(word.to_be_bytes());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > 253 {
        return None;
    }
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?;
        packet.push(length);
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(A_IN);
    Some(packet)
}

/// The addresses of an answer; a name that does not exist has none.
fn answers(id: u16, packet: &[u8]) -> Option<Vec<Ipv4Addr>> {
    let word = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let flags = word(2)?;
    if word(0)? != id || flags & 0x8000 == 0 {
        return None;
    }
    let mut at = 12;
    for _ in 0..word(4)? {
        at = after_name(packet, at)? + 4;
    }
    let mut addresses = Vec::new();
    for _ in 0..word(6)? {
        at = after_name(packet, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = packet.get(at + 10..at + 10 + length)?;
        if let (1, Ok(ip)) = (kind, <[u8; 4]>::try_from(data)) {
            addresses.push(Ipv4Addr::from(ip));
        }
        at += 10 + length;
    }
    Some(addresses)
}

/// Where a name ends; a pointer ends it.
fn after_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            n if n >= 0xc0 => return Some(at + 2),
            n => at += 1 + usize::from(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets() {
        let q = question(7, "c1.weave.local.").expect("a name");
        assert_eq!(&q[..12], [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&q[12..], b"\x02c1\x05weave\x05local\0\0\x01\0\x01");
        assert_eq!(question(7, ""), None);
        assert_eq!(question(7, "a..b"), None);
        assert_eq!(question(7, &"a".repeat(64)), None);
        let mut a = q.clone();
        a[2] = 0x84;
        a[7] = 2;
        a.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04\x0a\x20\0\x01");
        a.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x01\0\x02\xc0\x0c");
        assert_eq!(answers(7, &a), Some(vec![Ipv4Addr::new(10, 32, 0, 1)]));
        assert_eq!(answers(8, &a), None, "somebody else's");
        for n in 0..a.len() {
            assert_eq!(answers(7, &a[..n]), None, "cut to {n}");
        }
        let mut nothing = q;
        (nothing[2], nothing[3]) = (0x84, 3);
        assert_eq!(answers(7, &nothing), Some(vec![]), "no such name");
    }

    /// Over a socket: the first question is lost, the second one answered.
    #[test]
    fn a_server_is_asked_again() {
        let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = server.local_addr().expect("bound");
        let serving = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            server.recv_from(&mut buffer).expect("a question");
            let (n, from) = server.recv_from(&mut buffer).expect("and again");
            let mut answer = buffer[..n].to_vec();
            (answer[2], answer[7]) = (0x85, 1);
            answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04\x0a\x09\x09\x09");
            server.send_to(&answer, from).expect("sent");
        });
        assert_eq!(ask(address, "c1.weave.local").expect("an answer"), [Ipv4Addr::new(10, 9, 9, 9)]);
        serving.join().expect("ends");
    }

    #[test]
    fn servers() {
        let text = |t: &str| server_address(t).map(|a| a.to_string());
        assert_eq!(text("172.17.0.1").as_deref(), Some("172.17.0.1:53"));
        assert_eq!(text("172.17.0.1:5353").as_deref(), Some("172.17.0.1:5353"));
        assert_eq!(text("nowhere"), None);
    }
}
