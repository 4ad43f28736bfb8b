//! Questions to a name server, and a server that knows a few names.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{WaitResult, millis, print_ready, wait};

/// Options of `dns-query`.
#[derive(Args, Debug)]
pub struct QueryArgs {
    server: IpAddr,
    name: String,
    #[arg(long, default_value_t = 53)]
    port: u16,
    /// `A`, `AAAA` or `PTR`.
    #[arg(long, default_value = "A")]
    kind: String,
    #[arg(long)]
    tcp: bool,
    /// Asks again until the answer has this number of records; without it once.
    #[arg(long)]
    until: Option<usize>,
    /// How often the question is asked; the answers are counted by their first record.
    #[arg(long, default_value_t = 1)]
    count: u32,
    #[arg(long, default_value_t = 5000)]
    wait_ms: u64,
}

/// Options of `dns-serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    address: SocketAddr,
    /// `name=address`; may be repeated. Other names do not exist.
    #[arg(long)]
    record: Vec<String>,
    /// Receives questions and answers none.
    #[arg(long)]
    mute: bool,
}

const HEADER: usize = 12;

struct Reply {
    code: u8,
    truncated: bool,
    records: Vec<String>,
}

fn kind_number(kind: &str) -> Result<u16> {
    Ok(match kind {
        "A" => 1,
        "PTR" => 12,
        "AAAA" => 28,
        other => bail!("no type {other}"),
    })
}

fn encode_name(name: &str, out: &mut Vec<u8>) -> Result<()> {
    for label in name.trim_end_matches('.').split('.') {
        out.push(u8::try_from(label.len()).ok().filter(|n| *n < 64).context("a label is too long")?);
        out.extend(label.as_bytes());
    }
    out.push(0);
    Ok(())
}

fn question(id: u16, name: &str, kind: u16) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    encode_name(name, &mut message)?;
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    Ok(message)
}

fn word(message: &[u8], at: usize) -> Result<u16> {
    let bytes = message.get(at..at + 2).context("the message is too short")?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// A name and the position after it.
fn read_name(message: &[u8], mut at: usize) -> Result<(String, usize)> {
    let (mut name, mut end) = (String::new(), None);
    for _ in 0..128 {
        let length = usize::from(*message.get(at).context("the message is too short")?);
        match length {
            0 => return Ok((name, end.unwrap_or(at + 1))),
            0xc0.. => {
                end.get_or_insert(at + 2);
                at = usize::from(word(message, at)? & 0x3fff);
            }
            _ => {
                let label = message.get(at + 1..at + 1 + length).context("the message is too short")?;
                name.push_str(&String::from_utf8_lossy(label));
                name.push('.');
                at += 1 + length;
            }
        }
    }
    bail!("a name without an end")
}

fn parse(message: &[u8]) -> Result<Reply> {
    let flags = word(message, 2)?;
    let mut at = HEADER;
    for _ in 0..word(message, 4)? {
        at = read_name(message, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..word(message, 6)? {
        at = read_name(message, at)?.1;
        let (kind, length) = (word(message, at)?, usize::from(word(message, at + 8)?));
        let data = message.get(at + 10..at + 10 + length).context("the message is too short")?;
        records.push(match (kind, data) {
            (1, [a, b, c, d]) => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
            (5 | 12, _) => read_name(message, at + 10)?.0,
            _ => format!("type {kind}"),
        });
        at += 10 + length;
    }
    Ok(Reply { code: (flags & 0xf) as u8, truncated: flags & 0x0200 != 0, records })
}

fn ask(server: SocketAddr, message: &[u8], tcp: bool, timeout: Duration) -> Result<Vec<u8>> {
    if tcp {
        let mut stream = TcpStream::connect_timeout(&server, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(&[&(message.len() as u16).to_be_bytes(), message].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        return Ok(answer);
    }
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(message)?;
    let mut answer = vec![0; 65_535];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    if answer.get(..2) != message.get(..2) {
        bail!("the answer has another id");
    }
    Ok(answer)
}

pub(super) fn query(args: &QueryArgs) -> Result<Value> {
    let (begin, server) = (Instant::now(), SocketAddr::new(args.server, args.port));
    let deadline = begin + Duration::from_millis(args.wait_ms);
    let kind = kind_number(&args.kind)?;
    let mut firsts: BTreeMap<String, u32> = BTreeMap::new();
    let mut asked = 0_u16;
    loop {
        asked = asked.wrapping_add(1);
        let message = question(asked, &args.name, kind)?;
        let left = deadline.saturating_duration_since(Instant::now());
        // A lost question is asked again before the deadline.
        let timeout = if args.until.is_some() { left.min(Duration::from_millis(500)) } else { left };
        let reply = match left.is_zero() {
            true => Err(anyhow!("no answer in time")),
            false => ask(server, &message, args.tcp, timeout).and_then(|answer| parse(&answer)),
        };
        let enough = match (&reply, args.until) {
            (Ok(reply), Some(wanted)) => reply.records.len() == wanted,
            (Err(_), Some(_)) => false,
            (_, None) => true,
        };
        if let Ok(Reply { records, .. }) = &reply
            && let Some(first) = records.first()
        {
            *firsts.entry(first.clone()).or_default() += 1;
        }
        if left.is_zero() || (enough && u32::from(asked) >= args.count) {
            let ms = millis(begin.elapsed());
            return Ok(match reply {
                Ok(Reply { code, truncated, mut records }) => {
                    records.sort();
                    json!({"code": code, "truncated": truncated, "records": records, "firsts": firsts, "ms": ms})
                }
                Err(e) => json!({"error": format!("{e:#}"), "records": [], "firsts": firsts, "ms": ms}),
            });
        }
        if !enough {
            // Not a wait for an event of this process: the server is another one.
            wait(None, false, Some(Instant::now() + Duration::from_millis(10)))?;
        }
    }
}

/// The answer of the fake server.
fn answer(message: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Result<Vec<u8>> {
    let (name, end) = read_name(message, HEADER)?;
    let mut answer = message.get(..end + 4).context("the message is too short")?.to_vec();
    let found = names.get(&name.to_ascii_lowercase());
    let address = found.filter(|_| word(message, end).is_ok_and(|kind| kind == 1));
    answer[2..HEADER].copy_from_slice(&[
        0x81,
        if found.is_some() { 0x80 } else { 0x83 },
        0,
        1,
        0,
        u8::from(address.is_some()),
        0,
        0,
        0,
        0,
    ]);
    if let Some(address) = address {
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Ok(answer)
}

/// Prints how many questions it received.
pub(super) fn serve(args: &ServeArgs) -> Result<Value> {
    let mut names = BTreeMap::new();
    for record in &args.record {
        let (name, address) = record.split_once('=').context("a record is name=address")?;
        names.insert(format!("{}.", name.trim_end_matches('.')), address.parse()?);
    }
    let udp = UdpSocket::bind(args.address)?;
    let tcp = TcpListener::bind(args.address)?;
    let (tcp_names, mute) = (names.clone(), args.mute);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut serve = || -> Result<()> {
                let mut length = [0; 2];
                stream.read_exact(&mut length)?;
                let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut message)?;
                let answer = answer(&message, &tcp_names)?;
                stream.write_all(&[&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat())?;
                Ok(())
            };
            if !mute {
                let _ = serve();
            }
        }
    });
    print_ready()?;
    let (mut buffer, mut questions) = ([0; 4096], 0);
    while wait(Some(&udp), true, None)? == WaitResult::Readable {
        let (length, from) = udp.recv_from(&mut buffer)?;
        questions += 1;
        if !mute && let Ok(answer) = answer(&buffer[..length], &names) {
            let _ = udp.send_to(&answer, from);
        }
    }
    Ok(json!({"questions": questions}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_are_made() {
        let names = BTreeMap::from([("a.test.".to_owned(), Ipv4Addr::new(192, 0, 2, 1))]);
        let reply = |name: &str, kind| {
            let reply = parse(&answer(&question(7, name, kind).unwrap(), &names).unwrap()).unwrap();
            (reply.code, reply.records.join(" "))
        };
        assert_eq!(reply("A.test", 1), (0, "192.0.2.1".to_owned()));
        assert_eq!(reply("a.test", 28), (0, String::new()));
        assert_eq!(reply("b.test", 1), (3, String::new()));
    }
}
