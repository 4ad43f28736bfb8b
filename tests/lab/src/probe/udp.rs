//! UDP: echo with comparison, up to the largest datagrams, and broadcast and multicast.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::{Pattern, WaitResult, parse_ip, print_ready, wait};

/// Options of `udp-serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    #[arg(long)]
    port: u16,
    /// Multicast group to join on `ethwe`.
    #[arg(long)]
    group: Option<Ipv4Addr>,
}

/// Options of `udp-send`.
#[derive(Args, Debug)]
pub struct SendArgs {
    to: String,
    #[arg(long)]
    port: u16,
    /// Payload sizes.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Attempts for each size, because datagrams may get lost.
    #[arg(long, default_value_t = 5)]
    tries: u32,
}

/// Options of `udp-cast`.
#[derive(Args, Debug)]
pub struct CastArgs {
    to: Ipv4Addr,
    #[arg(long)]
    port: u16,
    /// Ends early after this number of answers; with 0 it listens for a second.
    #[arg(long)]
    expect: usize,
    #[arg(long, default_value_t = 5000)]
    wait_ms: u64,
}

const BUFFER: usize = 4 << 20;

fn socket(address: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot bind UDP {address}"))?;
    Ok(socket.into())
}

pub(super) fn serve(args: &ServeArgs) -> Result<Value> {
    let socket = socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, args.port)))?;
    if let Some(group) = &args.group {
        let device = socket2::InterfaceIndexOrAddress::Index(nix::net::if_::if_nametoindex("ethwe")?);
        socket2::SockRef::from(&socket)
            .join_multicast_v4_n(group, &device)
            .context("cannot join the group")?;
    }
    print_ready()?;
    let mut buffer = vec![0; 66_000];
    let mut datagrams = 0;
    while wait(Some(&socket), true, None)? == WaitResult::Readable {
        let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
        datagrams += 1;
        let _ = socket.send_to(&buffer[..n], from);
    }
    Ok(json!({ "datagrams": datagrams }))
}

pub(super) fn send(args: &SendArgs) -> Result<Value> {
    let to = parse_ip(&args.to, args.port)?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = socket(any.parse()?)?;
    let mut buffer = vec![0; 66_000];
    let mut all = true;
    let mut results = Vec::new();
    for (i, &size) in args.sizes.iter().enumerate() {
        let mut payload = vec![0; size];
        Pattern::new(i as u64 + 77).fill(&mut payload);
        let (mut tries, mut ok, mut error) = (0, false, None);
        while !ok && tries < args.tries {
            tries += 1;
            if let Err(e) = socket.send_to(&payload, to) {
                error = Some(e.to_string());
            }
            let until = Instant::now() + Duration::from_millis(700);
            while !ok && wait(Some(&socket), false, Some(until))? == WaitResult::Readable {
                match socket.recv_from(&mut buffer) {
                    Ok((n, _)) if n == size => ok = buffer[..n] == payload,
                    Ok(_) => {} // A late answer to an earlier size.
                    Err(e) => error = Some(e.to_string()),
                }
            }
        }
        all &= ok;
        results.push(json!({ "size": size, "ok": ok, "tries": tries, "error": error }));
    }
    Ok(json!({ "ok": all, "sizes": results }))
}

pub(super) fn cast(args: &CastArgs) -> Result<Value> {
    let socket = socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.set_broadcast(true)?;
    // The kernel also delivers a broadcast to listeners on the host of the sender.
    let own: BTreeSet<IpAddr> =
        nix::ifaddrs::getifaddrs()?.filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip().into())).collect();
    socket.set_multicast_loop_v4(false)?;
    let mut responders = BTreeSet::new();
    let mut buffer = vec![0; 66_000];
    let wait_ms = if args.expect == 0 { 1000 } else { args.wait_ms };
    let end = Instant::now() + Duration::from_millis(wait_ms);
    while (args.expect == 0 || responders.len() < args.expect) && Instant::now() < end {
        socket
            .send_to(b"who is there?", (args.to, args.port))
            .with_context(|| format!("send to {}", args.to))?;
        let until = end.min(Instant::now() + Duration::from_millis(300));
        while wait(Some(&socket), false, Some(until))? == WaitResult::Readable {
            if let Ok((_, from)) = socket.recv_from(&mut buffer)
                && !own.contains(&from.ip())
            {
                responders.insert(from.ip().to_string());
            }
        }
    }
    Ok(json!({ "responders": responders }))
}
