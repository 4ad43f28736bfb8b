//! Hostile neighbours: garbage, and silent connections. For use in the namespaces of a lab only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{Pattern, WaitResult, parse_ip, print_ready, wait};

/// Options of `garbage`.
#[derive(Args, Debug)]
pub struct GarbageArgs {
    protocol: Transport,
    to: String,
    #[arg(long)]
    port: u16,
    /// Number of connections or datagrams.
    #[arg(long, default_value_t = 200)]
    count: u32,
    /// Bytes per connection, upper bound per datagram.
    #[arg(long, default_value_t = 4096)]
    bytes: usize,
    /// Seed of the garbage.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Text at the begin of every connection or datagram, so that some of the garbage passes the first check.
    #[arg(long, default_value = "")]
    prefix: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Transport {
    /// One connection after the other.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Options of `hold`.
#[derive(Args, Debug)]
pub struct HoldArgs {
    to: String,
    #[arg(long)]
    port: u16,
    /// Connections to open.
    #[arg(long, default_value_t = 500)]
    count: usize,
    /// Sends one byte of this text per second on each connection.
    #[arg(long, default_value = "")]
    trickle: String,
}

pub(super) fn garbage(args: &GarbageArgs) -> Result<Value> {
    let to = parse_ip(&args.to, args.port)?;
    let mut pattern = Pattern::new(args.seed);
    let (mut refused, mut sent) = (0, 0u64);
    let mut bytes = vec![0; args.bytes];
    match args.protocol {
        Transport::Udp => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for i in 0..args.count {
                pattern.fill(&mut bytes);
                // Short and long ones are equally likely.
                let size = if i % 3 == 0 { i as usize % 64 } else { bytes.len() * (i as usize % 100) / 100 };
                let mut datagram = args.prefix.as_bytes().to_vec();
                datagram.extend(&bytes[..size.min(bytes.len())]);
                match socket.send_to(&datagram, to) {
                    Ok(n) => sent += n as u64,
                    Err(_) => refused += 1,
                }
            }
        }
        Transport::Tcp => {
            for _ in 0..args.count {
                pattern.fill(&mut bytes);
                match tcp_garbage(to, args.prefix.as_bytes(), &bytes) {
                    Ok(n) => sent += n,
                    Err(_) => refused += 1,
                }
            }
        }
    }
    Ok(json!({ "sent_bytes": sent, "refused": refused }))
}

fn tcp_garbage(to: SocketAddr, prefix: &[u8], bytes: &[u8]) -> std::io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(prefix)?;
    stream.write_all(bytes)?;
    Ok((prefix.len() + bytes.len()) as u64)
}

pub(super) fn hold(args: &HoldArgs) -> Result<Value> {
    let to = parse_ip(&args.to, args.port)?;
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..args.count {
        match TcpStream::connect_timeout(&to, Duration::from_millis(500)) {
            Ok(stream) => {
                stream.set_nonblocking(true)?;
                open.push(stream);
            }
            Err(_) => refused += 1,
        }
    }
    let connected = open.len();
    print_ready()?;
    // Counts the connections that the other side has closed, every quarter of a second.
    let start = Instant::now();
    let (mut closed, mut first_close, mut last_close) = (0, None, None);
    let mut said = 0;
    loop {
        let next = Instant::now() + Duration::from_millis(250);
        let ended = wait(None, true, Some(next))? == WaitResult::Closed;
        let due = start.elapsed().as_secs() as usize;
        while said < due.min(args.trickle.len()) {
            for stream in &mut open {
                let _ = stream.write(&args.trickle.as_bytes()[said..=said]);
            }
            said += 1;
        }
        open.retain_mut(|stream| {
            let mut buffer = [0; 4096];
            let over = match stream.read(&mut buffer) {
                Ok(0) => true,
                Ok(_) => false,
                Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
            };
            if over {
                closed += 1;
                first_close.get_or_insert(start.elapsed().as_secs_f64());
                last_close = Some(start.elapsed().as_secs_f64());
            }
            !over
        });
        if ended || open.is_empty() {
            break;
        }
    }
    Ok(json!({
        "connected": connected, "refused": refused, "closed": closed, "open": open.len(),
        "first_close_s": first_close, "last_close_s": last_close,
    }))
}
