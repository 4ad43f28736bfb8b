//! ICMP echo requests, counted.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{WaitResult, millis, parse_ip, print_ready, wait};
use crate::packet::sum;

/// Options of `ping`.
#[derive(Args, Debug)]
pub struct PingArgs {
    to: String,
    /// Number of requests; 0 = until the standard input closes.
    #[arg(long, default_value_t = 4)]
    count: u64,
    /// Interval between requests.
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    /// Timeout for the last reply.
    #[arg(long, default_value_t = 1000)]
    wait_ms: u64,
    /// Bytes after the ICMP header, at least 16.
    #[arg(long, default_value_t = 56)]
    size: usize,
}

pub(super) fn ping(args: &PingArgs) -> Result<Value> {
    let to = parse_ip(&args.to, 0)?;
    let v4 = to.is_ipv4();
    let (domain, protocol) =
        if v4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("cannot open a raw socket")?;
    let _ = socket.set_recv_buffer_size(4 << 20);
    let _ = socket.set_send_buffer_size(1 << 20);
    let endless = args.count == 0;
    if endless {
        print_ready()?;
    }
    // Pids repeat in the pid namespaces of hosts, so the identifier depends on the clock as well.
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let ident = (std::process::id() as u16).wrapping_mul(31) ^ clock.subsec_micros() as u16;
    let mut asked: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut trips: Vec<Duration> = Vec::new();
    let (mut sent, mut duplicates, mut ttl) = (0u64, 0u64, None);
    let mut refused: Option<String> = None;
    let (mut last_good, mut gap) = (Instant::now(), Duration::ZERO);
    let mut next = Instant::now();
    let mut stop_at: Option<Instant> = None;
    let mut buffer = vec![0; 66_000];
    loop {
        let now = Instant::now();
        if stop_at.is_none() && now >= next {
            asked.insert(sent, now);
            let packet = echo_request(v4, ident, sent, args.size.max(16));
            if let Err(e) = socket.send_to(&packet, &SockAddr::from(to)) {
                refused = Some(e.to_string());
            }
            sent += 1;
            next += Duration::from_millis(args.interval_ms);
            if next < now {
                next = now;
            }
            if sent == args.count {
                stop_at = Some(now + Duration::from_millis(args.wait_ms));
            }
        }
        let all_in = stop_at.is_some() && asked.is_empty();
        if all_in || stop_at.is_some_and(|t| Instant::now() >= t) {
            break;
        }
        match wait(Some(&socket), endless && stop_at.is_none(), Some(stop_at.unwrap_or(next)))? {
            WaitResult::TimedOut => {}
            WaitResult::Closed => stop_at = Some(Instant::now() + Duration::from_millis(args.wait_ms)),
            WaitResult::Readable => {
                let Ok(n) = (&socket).read(&mut buffer) else { continue };
                let Some((number, hops)) = echo_reply(v4, ident, &buffer[..n]) else { continue };
                match asked.remove(&number) {
                    Some(at) => {
                        trips.push(at.elapsed());
                        gap = gap.max(at.saturating_duration_since(last_good));
                        last_good = last_good.max(at);
                        ttl = hops.or(ttl);
                    }
                    None => duplicates += 1,
                }
            }
        }
    }
    let end = asked.values().next_back().copied().unwrap_or(last_good);
    gap = gap.max(end.saturating_duration_since(last_good));
    trips.sort();
    let median = trips.get(trips.len() / 2).copied().unwrap_or_default();
    Ok(json!({
        "sent": sent,
        "received": trips.len(),
        "duplicates": duplicates,
        "ttl": ttl,
        "longest_gap_ms": millis(gap),
        "median_ms": millis(median),
        "max_ms": millis(trips.last().copied().unwrap_or_default()),
        "last_error": refused,
        "to": SocketAddr::ip(&to).to_string(),
    }))
}

fn echo_request(v4: bool, ident: u16, number: u64, size: usize) -> Vec<u8> {
    let mut packet = vec![if v4 { 8 } else { 128 }, 0, 0, 0];
    packet.extend(ident.to_be_bytes());
    packet.extend((number as u16).to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.extend((16..size + 8).map(|i| i as u8));
    packet.truncate(8 + size);
    if v4 {
        // The kernel completes the checksum of ICMPv6 only.
        let check = !sum(&[&packet]);
        packet[2..4].copy_from_slice(&check.to_be_bytes());
    }
    packet
}

fn echo_reply(v4: bool, ident: u16, bytes: &[u8]) -> Option<(u64, Option<u8>)> {
    // A raw IPv4 socket delivers the IP header, an IPv6 one does not.
    let (icmp, ttl) = if v4 {
        let header = usize::from(bytes.first()? & 15) * 4;
        (bytes.get(header..)?, bytes.get(8).copied())
    } else {
        (bytes, None)
    };
    let wanted = if v4 { 0 } else { 129 };
    if *icmp.first()? != wanted || icmp.get(4..6)? != ident.to_be_bytes() {
        return None;
    }
    Some((u64::from_be_bytes(icmp.get(8..16)?.try_into().ok()?), ttl))
}
