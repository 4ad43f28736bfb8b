//! The networks in an ipset, read by netlink, because the program `ipset` is rarely installed.

use std::io::{Read, Write};
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

/// Options of `probe set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    name: String,
}

/// `NFNL_SUBSYS_IPSET` and `IPSET_CMD_LIST`.
const LIST: u16 = 6 << 8 | 7;
const REQUEST_DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
const HEADER: usize = 16;

/// The networks of a `hash:net`, ascending; `null` if there is no such set.
pub(super) fn set(args: &SetArgs) -> Result<Value> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW,
        Some(Protocol::from(libc::NETLINK_NETFILTER)),
    )?;
    let name = [args.name.as_bytes(), &[0]].concat();
    let body = [&[libc::AF_INET as u8, 0, 0, 0][..], &attribute(1, &[6]), &attribute(2, &name)].concat();
    let length = u32::try_from(HEADER + body.len())?.to_ne_bytes();
    let (kind, flags) = (LIST.to_ne_bytes(), REQUEST_DUMP.to_ne_bytes());
    socket.write_all(&[&length[..], &kind, &flags, &[1, 0, 0, 0, 0, 0, 0, 0], &body].concat())?;
    let mut members = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let size = socket.read(&mut buffer)?;
        let mut rest = &buffer[..size];
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes(rest[..4].try_into()?) as usize;
            let message =
                rest.get(..length).filter(|m| m.len() >= HEADER).context("truncated netlink message")?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            match i32::from(u16::from_ne_bytes(message[4..6].try_into()?)) {
                libc::NLMSG_DONE => {
                    members.sort_unstable();
                    let texts = members.iter().map(|(address, prefix)| format!("{address}/{prefix}"));
                    return Ok(json!(texts.collect::<Vec<_>>()));
                }
                libc::NLMSG_ERROR => {
                    let error = i32::from_ne_bytes(message.get(16..20).context("no error code")?.try_into()?);
                    if error == -libc::ENOENT {
                        return Ok(Value::Null);
                    }
                    bail!(
                        "the kernel refused the list request: {}",
                        std::io::Error::from_raw_os_error(-error)
                    );
                }
                _ => members.extend(elements(message.get(HEADER + 4..).unwrap_or_default())),
            }
        }
    }
}

/// The networks in one message: `ADT` has a `DATA` for each element, with an `IP` (which has an `IPADDR_IPV4`) and a `CIDR`.
fn elements(message: &[u8]) -> Vec<(Ipv4Addr, u8)> {
    let find = |bytes, kind| attributes(bytes).into_iter().find(|a| a.0 == kind).map(|a| a.1);
    let element = |data| {
        let ip: [u8; 4] = find(find(data, 1)?, 1)?.try_into().ok()?;
        Some((ip.into(), *find(data, 3)?.first()?))
    };
    let all = find(message, 8).map(attributes).unwrap_or_default();
    all.into_iter().filter(|a| a.0 == 7).filter_map(|a| element(a.1)).collect()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [&(value.len() as u16 + 4).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = bytes.get(4..length) else { break };
        all.push((u16::from_ne_bytes([c, d]) & 0x3fff, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}
