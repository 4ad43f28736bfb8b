//! Requests to a control API over one connection, one after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

/// Options of `probe http-rates`.
#[derive(Args, Debug)]
pub struct RatesArgs {
    #[arg(long, default_value = "127.0.0.1:6784")]
    addr: SocketAddr,
    /// Requests of each kind.
    #[arg(long, default_value_t = 300)]
    count: u32,
    /// Prefix of the names of containers.
    #[arg(long, default_value = "b")]
    prefix: String,
}

/// Reads the status page and allocates an address, alternately; returns the rates per second, from the median times.
pub(super) fn rates(args: &RatesArgs) -> Result<Value> {
    let host: IpAddr = args.addr.ip();
    let stream = TcpStream::connect(args.addr).with_context(|| format!("connect to {}", args.addr))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut exchange = |method: &str, path: &str| -> Result<Duration> {
        let begin = Instant::now();
        (&stream).write_all(
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
        )?;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{method} {path}: {line}");
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 {
                bail!("{method} {path}: the connection ended");
            }
            match header.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse()?
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(begin.elapsed())
    };
    let (mut reads, mut allocations) = (Vec::new(), Vec::new());
    for n in 0..args.count {
        reads.push(exchange("GET", "/status")?);
        allocations.push(exchange("POST", &format!("/ip/{}{n}", args.prefix))?);
    }
    let rate = |times: &mut Vec<Duration>| {
        times.sort();
        1.0 / times[times.len() / 2].as_secs_f64().max(1e-9)
    };
    Ok(json!({ "status": rate(&mut reads), "allocate": rate(&mut allocations) }))
}
