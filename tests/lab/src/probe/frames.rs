//! Raw Ethernet: frames of a private type, ARP, captures. AF_PACKET without unsafe code: the address of a device comes from
//! `getifaddrs`, and a socket keeps the type that it was made for when it is bound.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use nix::sys::socket::{LinkAddr, MsgFlags, bind, recv, sendto, setsockopt, sockopt};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Pattern, WaitResult, print_ready, wait};
use crate::packet::{ETHERTYPE_VLAN, Ethernet, PCAP_HEADER};

/// IEEE 802 "local experimental EtherType 1".
const PRIVATE: u16 = 0x88b5;
const ARP: u16 = 0x0806;
const ALL: u16 = 3;

/// Options of `raw-echo`.
#[derive(Args, Debug)]
pub struct EchoArgs {
    device: String,
    /// Frames have two or more tags: the kernel removes the outermost one, so the socket listens to the type of tags.
    #[arg(long)]
    tagged: bool,
}

/// Options of `raw-send`.
#[derive(Args, Debug)]
pub struct SendArgs {
    device: String,
    to: String,
    /// Payload bytes.
    #[arg(long)]
    size: usize,
    /// 802.1Q tags, outermost first. Two are needed: the receiving kernel removes the outermost one, so it cannot be compared,
    /// but without it the inner one would be removed.
    #[arg(long, value_delimiter = ',')]
    tags: Vec<u16>,
    /// Ends early after this number of answers; with 0 it listens for a second.
    #[arg(long)]
    expect: usize,
    #[arg(long, default_value_t = 4000)]
    wait_ms: u64,
}

/// Options of `arp`.
#[derive(Args, Debug)]
pub struct ArpArgs {
    device: String,
    ip: Ipv4Addr,
    #[arg(long, default_value_t = 1000)]
    wait_ms: u64,
}

/// Options of `capture`.
#[derive(Args, Debug)]
pub struct CaptureArgs {
    device: String,
    /// The pcap file.
    file: std::path::PathBuf,
}

/// A packet socket for one type of frame on one device, with the address of the device.
struct Tap {
    socket: OwnedFd,
    link: LinkAddr,
    mac: [u8; 6],
}

impl Tap {
    fn open(device: &str, ethertype: u16) -> Result<Tap> {
        let mut links = nix::ifaddrs::getifaddrs()?;
        let link = links
            .find_map(|i| (i.interface_name == device).then(|| i.address?.as_link_addr().copied()).flatten())
            .with_context(|| format!("no device {device}"))?;
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket: OwnedFd = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
            .context("cannot open a packet socket")?
            .into();
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20));
        bind(socket.as_raw_fd(), &link).with_context(|| format!("cannot bind to {device}"))?;
        let mac = link.addr().context("device without MAC")?;
        Ok(Tap { socket, link, mac })
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty()).context("send frame")?;
        Ok(())
    }

    /// The next frame, or `None` after the timeout.
    fn next<'b>(
        &self,
        buffer: &'b mut [u8],
        watch: bool,
        until: Option<Instant>,
    ) -> Result<Option<&'b [u8]>> {
        match wait(Some(&self.socket), watch, until)? {
            WaitResult::Readable => {
                let n = recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty())?;
                Ok(Some(&buffer[..n]))
            }
            WaitResult::Closed | WaitResult::TimedOut => Ok(None),
        }
    }
}

/// The first byte of the payload is even in a request and odd in an answer.
fn payload(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size.max(1)];
    Pattern::new(size as u64 + 5).fill(&mut bytes);
    bytes[0] &= !1;
    bytes
}

pub(super) fn echo(args: &EchoArgs) -> Result<Value> {
    let tap = Tap::open(&args.device, if args.tagged { ETHERTYPE_VLAN } else { PRIVATE })?;
    print_ready()?;
    let mut buffer = vec![0; 70_000];
    let mut frames = 0;
    while let Some(frame) = tap.next(&mut buffer, true, None)? {
        let Some(ethernet) = Ethernet::parse(frame) else { continue };
        let at = frame.len() - ethernet.payload.len();
        let mine = ethernet.to == tap.mac || ethernet.to[0] & 1 == 1;
        let request = ethernet.payload.first().is_some_and(|b| b % 2 == 0);
        if ethernet.ethertype != PRIVATE || ethernet.from == tap.mac || !mine || !request {
            continue;
        }
        frames += 1;
        let mut answer = frame.to_vec();
        answer[..6].copy_from_slice(&ethernet.from);
        answer[6..12].copy_from_slice(&tap.mac);
        answer[at] |= 1;
        if args.tagged {
            // Adds the tag that the kernel removed, so that the answer has the tags of the request.
            let outer: Vec<u8> = [ETHERTYPE_VLAN.to_be_bytes(), 42u16.to_be_bytes()].concat();
            answer.splice(12..12, outer);
        }
        tap.send(&answer)?;
    }
    Ok(json!({ "frames": frames }))
}

pub(super) fn send(args: &SendArgs) -> Result<Value> {
    let tap = Tap::open(&args.device, if args.tags.is_empty() { PRIVATE } else { ETHERTYPE_VLAN })?;
    let mut frame = parse_mac(&args.to)?.to_vec();
    frame.extend(tap.mac);
    for tag in &args.tags {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(PRIVATE.to_be_bytes());
    let request = payload(args.size);
    frame.extend(&request);
    let mut expected = request;
    expected[0] |= 1;

    let mut responders = BTreeSet::new();
    let mut buffer = vec![0; 70_000];
    let wait_ms = if args.expect == 0 { 1000 } else { args.wait_ms };
    let end = Instant::now() + Duration::from_millis(wait_ms);
    while (args.expect == 0 || responders.len() < args.expect) && Instant::now() < end {
        tap.send(&frame)?;
        let until = end.min(Instant::now() + Duration::from_millis(300));
        while let Some(answer) = tap.next(&mut buffer, false, Some(until))? {
            let Some(ethernet) = Ethernet::parse(answer) else { continue };
            let inner_tags = args.tags.len().saturating_sub(1);
            if ethernet.ethertype == PRIVATE
                && ethernet.to == tap.mac
                && ethernet.tags == inner_tags
                && ethernet.payload == expected
            {
                responders.insert(mac_text(ethernet.from));
            }
        }
    }
    Ok(json!({ "responders": responders }))
}

pub(super) fn arp(args: &ArpArgs) -> Result<Value> {
    let tap = Tap::open(&args.device, ARP)?;
    let mut own = Ipv4Addr::UNSPECIFIED;
    for interface in nix::ifaddrs::getifaddrs()?.filter(|i| i.interface_name == args.device) {
        if let Some(ip) = interface.address.and_then(|a| a.as_sockaddr_in().map(|a| a.ip())) {
            own = ip;
        }
    }
    let mut frame = vec![0xff; 6];
    frame.extend(tap.mac);
    frame.extend(ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(tap.mac);
    frame.extend(own.octets());
    frame.extend([0; 6]);
    frame.extend(args.ip.octets());
    let mut macs = BTreeSet::new();
    let mut buffer = vec![0; 2000];
    tap.send(&frame)?;
    let until = Instant::now() + Duration::from_millis(args.wait_ms);
    while let Some(answer) = tap.next(&mut buffer, false, Some(until))? {
        let Some(ethernet) = Ethernet::parse(answer) else { continue };
        let body = ethernet.payload;
        if body.get(6..8) == Some(&[0, 2]) && body.get(14..18) == Some(&args.ip.octets()) {
            macs.insert(mac_text(ethernet.from));
        }
    }
    Ok(json!({ "macs": macs }))
}

pub(super) fn capture(args: &CaptureArgs) -> Result<Value> {
    let tap = Tap::open(&args.device, ALL)?;
    let mut file = BufWriter::new(File::create(&args.file).context("cannot make the pcap file")?);
    file.write_all(&PCAP_HEADER)?;
    print_ready()?;
    let mut buffer = vec![0; 300_000];
    let mut frames = 0;
    let write = |frame: &[u8], file: &mut BufWriter<File>| -> Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let length = (frame.len() as u32).to_le_bytes();
        let stamp = [(time.as_secs() as u32).to_le_bytes(), time.subsec_micros().to_le_bytes()];
        file.write_all(&[stamp[0], stamp[1], length, length].concat())?;
        file.write_all(frame)?;
        Ok(())
    };
    while let Some(frame) = tap.next(&mut buffer, true, None)? {
        write(frame, &mut file)?;
        frames += 1;
    }
    // Frames that were queued before the end.
    while let Some(frame) = tap.next(&mut buffer, false, Some(Instant::now()))? {
        write(frame, &mut file)?;
        frames += 1;
    }
    file.flush()?;
    Ok(json!({ "frames": frames }))
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("MAC `{text}`"))?;
    bytes.try_into().ok().with_context(|| format!("MAC `{text}`"))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
