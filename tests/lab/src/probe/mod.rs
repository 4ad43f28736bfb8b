//! `lab probe ...`: small network tools that run in hosts and containers. Each prints one line of JSON at its end; those that run in
//! the background print `ready` first, and end when their standard input closes.

mod dns;
mod frames;
mod holders;
mod http;
mod ping;
mod rr;
mod set;
mod streams;
mod stress;
mod udp;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Subcommand;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

#[derive(Subcommand, Debug)]
pub enum Probe {
    /// ICMP echo requests (IPv4 or IPv6; `fe80::1%ethwe` for link-local).
    Ping(ping::PingArgs),
    /// TCP server that checks and returns what `tcp-send` sends and echoes for `tcp-chat`.
    TcpServe(streams::ServeArgs),
    /// Sends a checked stream and gets it back.
    TcpSend(streams::SendArgs),
    /// Keeps one connection busy with numbered messages until the standard input closes.
    TcpChat(streams::ChatArgs),
    /// TCP server that returns each byte immediately.
    RrServe(rr::ServeArgs),
    /// Sends one byte and waits for it to come back, as often as possible.
    Rr(rr::SendArgs),
    /// Status reads and allocations over one connection to the control API.
    HttpRates(http::RatesArgs),
    /// UDP echo server, optionally as a member of a multicast group.
    UdpServe(udp::ServeArgs),
    /// Sends datagrams of given sizes and compares what comes back.
    UdpSend(udp::SendArgs),
    /// Sends to a broadcast or multicast address and lists the addresses that answer.
    UdpCast(udp::CastArgs),
    /// Echoes raw frames of a private EtherType.
    RawEcho(frames::EchoArgs),
    /// Sends raw frames of a private EtherType and lists the MACs that echo them.
    RawSend(frames::SendArgs),
    /// Sends an ARP request and lists the MACs that answer.
    Arp(frames::ArpArgs),
    /// Writes every frame of a device into a pcap file until the standard input closes.
    Capture(frames::CaptureArgs),
    /// Sends seeded garbage to a TCP or UDP port.
    Garbage(stress::GarbageArgs),
    /// Lists every namespace of a host that has an interface, with its addresses.
    Holders(holders::HoldersArgs),
    /// Asks a name server.
    DnsQuery(dns::QueryArgs),
    /// A name server that knows a few names.
    DnsServe(dns::ServeArgs),
    /// Lists the networks in an ipset.
    Set(set::SetArgs),
    /// Opens many TCP connections and sends (nearly) nothing until the standard input closes.
    Hold(stress::HoldArgs),
}

pub fn main(probe: &Probe) -> Result<()> {
    let result = match probe {
        Probe::Ping(args) => ping::ping(args)?,
        Probe::TcpServe(args) => streams::serve(args)?,
        Probe::TcpSend(args) => streams::send(args)?,
        Probe::TcpChat(args) => streams::chat(args)?,
        Probe::RrServe(args) => rr::serve(args)?,
        Probe::Rr(args) => rr::send(args)?,
        Probe::HttpRates(args) => http::rates(args)?,
        Probe::UdpServe(args) => udp::serve(args)?,
        Probe::UdpSend(args) => udp::send(args)?,
        Probe::UdpCast(args) => udp::cast(args)?,
        Probe::RawEcho(args) => frames::echo(args)?,
        Probe::RawSend(args) => frames::send(args)?,
        Probe::Arp(args) => frames::arp(args)?,
        Probe::Capture(args) => frames::capture(args)?,
        Probe::Garbage(args) => stress::garbage(args)?,
        Probe::Hold(args) => stress::hold(args)?,
        Probe::Holders(args) => holders::holders(args)?,
        Probe::DnsQuery(args) => dns::query(args)?,
        Probe::DnsServe(args) => dns::serve(args)?,
        Probe::Set(args) => set::set(args)?,
    };
    println!("{result}");
    Ok(())
}

fn print_ready() -> Result<()> {
    let mut out = std::io::stdout();
    out.write_all(b"ready\n")?;
    out.flush()?;
    Ok(())
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitResult {
    Readable,
    /// The standard input was closed.
    Closed,
    /// The deadline has passed.
    TimedOut,
}

/// Waits for a socket, for the end of the standard input (if `watch`), or for a deadline.
fn wait(socket: Option<&dyn AsFd>, watch: bool, until: Option<Instant>) -> Result<WaitResult> {
    let stdin = std::io::stdin();
    loop {
        let mut fds = Vec::new();
        if let Some(socket) = socket {
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
        if watch {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        let timeout = match until {
            None => PollTimeout::NONE,
            // Rounded up, so that the deadline has passed when the poll ends.
            Some(t) => {
                let left = t.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left.as_millis() as i64 + i64::from(!left.is_zero()))
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(WaitResult::TimedOut),
            Ok(_) => {
                let first = fds.first().and_then(PollFd::revents).is_some_and(|r| !r.is_empty());
                return Ok(if socket.is_some() && first { WaitResult::Readable } else { WaitResult::Closed });
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// An address with an optional `%interface`.
fn parse_ip(text: &str, port: u16) -> Result<SocketAddr> {
    let (ip, scope) = match text.split_once('%') {
        Some((ip, device)) => {
            (ip, nix::net::if_::if_nametoindex(device).with_context(|| format!("device {device}"))?)
        }
        None => (text, 0),
    };
    Ok(match ip.parse::<IpAddr>().with_context(|| format!("address `{text}`"))? {
        IpAddr::V4(ip) => SocketAddr::from((ip, port)),
        IpAddr::V6(ip) => SocketAddr::V6(std::net::SocketAddrV6::new(ip, port, 0, scope)),
    })
}

fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// Pseudo-random bytes from a seed, which both ends of a transfer generate and compare.
struct Pattern(u64);

impl Pattern {
    fn new(seed: u64) -> Pattern {
        Pattern(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 8 bytes (xorshift64*).
    fn word(&mut self) -> [u8; 8] {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    }

    /// Fills a buffer; only the last one of a stream may have a length that 8 does not divide.
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let word = self.word();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
