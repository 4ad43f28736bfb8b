//! TCP: checked bulk transfer in both directions, and a connection with messages that shows interruptions.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{Pattern, WaitResult, millis, parse_ip, print_ready, wait};

/// Options of `tcp-serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[arg(long)]
    port: u16,
}

/// Options of `tcp-send`.
#[derive(Args, Debug)]
pub struct SendArgs {
    to: String,
    #[arg(long)]
    port: u16,
    /// Length of the stream in each direction.
    #[arg(long)]
    bytes: u64,
    /// Timeout for connecting.
    #[arg(long, default_value_t = 10_000)]
    connect_ms: u64,
    /// Timeout without progress.
    #[arg(long, default_value_t = 20_000)]
    stall_ms: u64,
}

/// Options of `tcp-chat`.
#[derive(Args, Debug)]
pub struct ChatArgs {
    to: String,
    #[arg(long)]
    port: u16,
    #[arg(long, default_value_t = 50)]
    interval_ms: u64,
}

/// Size of the header: seed and length; seed 0 requests an echo.
const HEADER: usize = 16;

pub(super) fn serve(args: &ServeArgs) -> Result<Value> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, args.port)))
        .or_else(|_| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], args.port))))
        .with_context(|| format!("cannot listen on TCP {}", args.port))?;
    print_ready()?;
    let mut connections = 0;
    while wait(Some(&listener), true, None)? == WaitResult::Readable {
        let (stream, _) = listener.accept()?;
        connections += 1;
        std::thread::spawn(move || answer(stream));
    }
    Ok(json!({ "connections": connections }))
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let (seed, length) = parse(&header);
    if seed == 0 {
        let mut message = [0; 8];
        loop {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
    }
    let good = check(&mut stream, seed, length)?;
    stream.write_all(&good.to_be_bytes())?;
    produce(&mut stream, seed ^ 1, length)
}

fn parse(header: &[u8; HEADER]) -> (u64, u64) {
    let (seed, length) = header.split_at(8);
    let number = |b: &[u8]| u64::from_be_bytes(b.try_into().unwrap_or_default());
    (number(seed), number(length))
}

/// Reads `length` bytes; returns the number of correct bytes before the first wrong one.
fn check(stream: &mut TcpStream, seed: u64, length: u64) -> Result<u64> {
    let mut pattern = Pattern::new(seed);
    let (mut got, mut expected) = (vec![0; 65_536], vec![0; 65_536]);
    let (mut left, mut good, mut corrupt) = (length, 0, false);
    while left > 0 {
        let n = left.min(got.len() as u64) as usize;
        stream.read_exact(&mut got[..n])?;
        pattern.fill(&mut expected[..n]);
        corrupt |= got[..n] != expected[..n];
        if !corrupt {
            good += n as u64;
        }
        left -= n as u64;
    }
    Ok(good)
}

fn produce(stream: &mut TcpStream, seed: u64, length: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 65_536];
    let mut left = length;
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        pattern.fill(&mut buffer[..n]);
        stream.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(())
}

fn connect(to: &str, port: u16, timeout: Duration) -> Result<TcpStream> {
    let address = parse_ip(to, port)?;
    let stream =
        TcpStream::connect_timeout(&address, timeout).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(super) fn send(args: &SendArgs) -> Result<Value> {
    let start = Instant::now();
    let mut stream = match connect(&args.to, args.port, Duration::from_millis(args.connect_ms)) {
        Ok(stream) => stream,
        Err(e) => return Ok(json!({ "ok": false, "error": format!("{e:#}") })),
    };
    let stall = Some(Duration::from_millis(args.stall_ms));
    stream.set_read_timeout(stall)?;
    stream.set_write_timeout(stall)?;
    let seed = u64::from(std::process::id()) * 2 + 2;
    let transfer = (|| -> Result<(u64, u64)> {
        stream.write_all(&seed.to_be_bytes())?;
        stream.write_all(&args.bytes.to_be_bytes())?;
        produce(&mut stream, seed, args.bytes)?;
        let mut there = [0; 8];
        stream.read_exact(&mut there)?;
        let back = check(&mut stream, seed ^ 1, args.bytes)?;
        Ok((u64::from_be_bytes(there), back))
    })();
    let seconds = start.elapsed().as_secs_f64();
    Ok(match transfer {
        Ok((there, back)) => json!({
            "ok": there == args.bytes && back == args.bytes,
            "good_there": there, "good_back": back, "bytes": args.bytes, "seconds": seconds,
        }),
        Err(e) => json!({ "ok": false, "error": format!("{e:#}"), "seconds": seconds }),
    })
}

pub(super) fn chat(args: &ChatArgs) -> Result<Value> {
    let mut stream = connect(&args.to, args.port, Duration::from_secs(10))?;
    stream.write_all(&[0; HEADER])?;
    print_ready()?;
    let (mut messages, mut gap) = (0u64, Duration::ZERO);
    let mut last = Instant::now();
    let broken = loop {
        // The gap lasts until the echo arrives, as for a user of the connection.
        if let Err(e) = exchange(&mut stream, messages) {
            break Some(format!("{e:#}"));
        }
        messages += 1;
        gap = gap.max(last.elapsed());
        last = Instant::now();
        let next = last + Duration::from_millis(args.interval_ms);
        if wait(None, true, Some(next))? == WaitResult::Closed {
            break None;
        }
    };
    Ok(json!({ "messages": messages, "longest_gap_ms": millis(gap), "broken": broken }))
}

fn exchange(stream: &mut TcpStream, number: u64) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&number.to_be_bytes())?;
    let mut back = [0; 8];
    stream.read_exact(&mut back)?;
    if u64::from_be_bytes(back) != number {
        bail!("message {number} came back as {back:?}");
    }
    Ok(())
}
