//! Round trips of one byte over one TCP connection, as often as possible.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

use super::{WaitResult, parse_ip, print_ready, wait};

/// Timeout for connecting and for a reply.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Options of `rr-serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[arg(long)]
    port: u16,
}

/// Options of `rr`.
#[derive(Args, Debug)]
pub struct SendArgs {
    to: String,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    seconds: f64,
}

pub(super) fn serve(args: &ServeArgs) -> Result<Value> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, args.port)))
        .with_context(|| format!("cannot listen on TCP {}", args.port))?;
    print_ready()?;
    let mut connections = 0;
    while wait(Some(&listener), true, None)? == WaitResult::Readable {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        connections += 1;
        std::thread::spawn(move || {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
    }
    Ok(json!({ "connections": connections }))
}

pub(super) fn send(args: &SendArgs) -> Result<Value> {
    let mut stream = TcpStream::connect_timeout(&parse_ip(&args.to, args.port)?, TIMEOUT)
        .with_context(|| format!("cannot connect to {}", args.to))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let (begin, length) = (Instant::now(), Duration::from_secs_f64(args.seconds));
    let (mut count, mut byte) = (0u32, [7]);
    while begin.elapsed() < length {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte).context("no answer")?;
        count += 1;
    }
    Ok(json!({ "transactions": count, "per_second": f64::from(count) / begin.elapsed().as_secs_f64() }))
}
