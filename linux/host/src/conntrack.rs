//! Connection tracking (`nf_conntrack`): the entries of a peer's port are deleted when it stops, so that an address translation of the
//! stopped peer does not apply to the next one (docs/spec/cli.md 4.5).

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use crate::Error;
use crate::netlink::{Netlink, Request, find};

/// `NFNL_SUBSYS_CTNETLINK << 8`.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// Addresses, protocol and ports of the first packet of a connection.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const NESTED: u16 = 0x8000;

/// Deletes the entries of connections to this UDP port at any address, and returns their number, which is 0 without connection
/// tracking.
///
/// # Errors
/// The kernel refuses.
pub fn flush_udp_connections(port: u16) -> Result<usize, Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER)?;
    let all = match netlink.dump(Request::new(GET, 0, &[0; HEADER]), "listing tracked connections") {
        Ok(all) => all,
        Err(e) if matches!(e.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {
            return Ok(0);
        }
        Err(e) => return Err(e),
    };
    let mut deleted = 0;
    for Entry { family, original, zone } in all.iter().filter_map(|r| entry_of_port(&r.body, port)) {
        let mut request = Request::new(DELETE, 0, &[family, 0, 0, 0]);
        request.attribute(CTA_TUPLE_ORIG | NESTED, original);
        if let Some(zone) = zone {
            request.attribute(CTA_ZONE, zone);
        }
        match netlink.execute(
            request,
            format_args!("deleting the connection tracking entry of a connection to UDP port {port}"),
        ) {
            Ok(()) => deleted += 1,
            // The connection has ended meanwhile.
            Err(e) if e.errno() == Some(Errno::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(deleted)
}

/// The key of an entry.
struct Entry<'a> {
    family: u8,
    /// Addresses, protocol and ports of the first packet.
    original: &'a [u8],
    zone: Option<&'a [u8]>,
}

/// The entry, if it is of a connection to this UDP port.
fn entry_of_port(body: &[u8], port: u16) -> Option<Entry<'_>> {
    let (header, attributes) = body.split_at_checked(HEADER)?;
    let original = find(attributes, CTA_TUPLE_ORIG)?;
    let protocol = find(original, CTA_TUPLE_PROTO)?;
    let is_udp = find(protocol, CTA_PROTO_NUM)?.first() == Some(&(libc::IPPROTO_UDP as u8));
    let is_port = find(protocol, CTA_PROTO_DST_PORT)?.get(..2)? == port.to_be_bytes();
    let zone = find(attributes, CTA_ZONE);
    (is_udp && is_port).then_some(Entry { family: *header.first()?, original, zone })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(protocol: u8, port: u16) -> Vec<u8> {
        let mut request = Request::new(GET, 0, &[2, 0, 0, 0]);
        request.nested(CTA_TUPLE_ORIG, |tuple| {
            tuple.nested(1, |ip| {
                ip.attribute(1, &[10, 0, 0, 1]).attribute(2, &[10, 0, 0, 2]);
            });
            tuple.nested(CTA_TUPLE_PROTO, |proto| {
                proto.attribute(CTA_PROTO_NUM, &[protocol]).attribute(2, &[200, 1]);
                proto.attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        request.encoded()[16..].to_vec()
    }

    #[test]
    fn only_entries_of_the_udp_port_match() {
        let found = |protocol, port| entry_of_port(&connection(protocol, port), 6783).is_some();
        assert!(found(17, 6783));
        assert!(!found(17, 6784) && !found(6, 6783) && !found(17, 0x7f1a));
        let body = connection(17, 6783);
        assert_eq!(entry_of_port(&body, 6783).map(|t| (t.family, t.zone)), Some((2, None)));
        for cut in 0..body.len() {
            entry_of_port(&body[..cut], 6783);
        }
    }
}
