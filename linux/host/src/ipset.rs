//! Sets of networks in the kernel (ipset, type `hash:net`), to which packet filter rules refer by name. They are changed over netlink,
//! because few hosts have the program `ipset`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use weave_types::Cidr;

use crate::Error;
use crate::netlink::{Netlink, Request, attributes, find, text};

/// `NFNL_SUBSYS_IPSET << 8`.
const SUBSYSTEM: u16 = 6 << 8;
const CREATE: u16 = SUBSYSTEM | 2;
const DESTROY: u16 = SUBSYSTEM | 3;
const SWAP: u16 = SUBSYSTEM | 6;
const LIST: u16 = SUBSYSTEM | 7;
const ADD: u16 = SUBSYSTEM | 9;
const TYPE: u16 = SUBSYSTEM | 13;

const ATTR_PROTOCOL: u16 = 1;
const ATTR_NAME: u16 = 2;
const ATTR_TYPE: u16 = 3;
/// The other set, in a swap.
const ATTR_NAME2: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
/// The reply to a list request contains only the names of the sets.
const FLAG_NAMES: u32 = 1 << 1;
const ATTR_DATA: u16 = 7;
/// The elements, each of them an `ATTR_DATA`.
const ATTR_ADT: u16 = 8;
const DATA_IP: u16 = 1;
const IP_V4: u16 = 1;
const DATA_PREFIX: u16 = 3;
const DATA_FLAGS: u16 = 8;
/// Elements may have a comment, as those of 2.8.1 do.
const FLAG_COMMENT: u32 = 1 << 4;
/// The attribute is in network byte order.
const NET_BYTEORDER: u16 = 0x4000;
const PROTOCOL: u8 = 6;
const KIND: &str = "hash:net";

/// Atomically replaces the content of a set by these networks. Creates the set if it does not exist.
///
/// # Errors
/// The kernel does not support such sets, or refuses the request.
pub(crate) fn replace(name: &str, networks: &[Cidr]) -> Result<(), Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER)?;
    let revision = revision(&mut netlink)?;
    create(&mut netlink, name, revision)?;
    // Another set is filled and swapped with this one, so that no packet is compared with an incomplete set.
    let temporary = temporary_name(name);
    destroy_set(&mut netlink, &temporary)?;
    create(&mut netlink, &temporary, revision)?;
    let fill = |netlink: &mut Netlink| {
        for network in networks {
            add(netlink, &temporary, *network)?;
        }
        let mut swap = request(SWAP, 0, name);
        swap.string(ATTR_NAME2, &temporary);
        netlink.execute(swap, format_args!("swapping set {name}"))
    };
    let filled = fill(&mut netlink);
    let destroyed = destroy_set(&mut netlink, &temporary);
    filled.and_then(|()| destroyed.map(drop))
}

/// Name of the set that is filled and swapped. A name may have 31 characters, and `weaver-no-masq-local` of an instance has up to 29.
fn temporary_name(name: &str) -> String {
    format!("{name}~")
}

/// Removes a set, and the temporary set of a [`replace`] that was killed. `false` if neither exists.
///
/// # Errors
/// A rule refers to the set, or the kernel refuses the request.
pub(crate) fn destroy(name: &str) -> Result<bool, Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER)?;
    let temporary = destroy_set(&mut netlink, &temporary_name(name))?;
    Ok(destroy_set(&mut netlink, name)? || temporary)
}

/// Whether the set exists and contains exactly these networks.
pub(crate) fn holds(name: &str, networks: &[Cidr]) -> bool {
    let wanted: BTreeSet<Cidr> =
        networks.iter().map(|n| n.network()).filter(|n| n.addr().is_ipv4()).collect();
    members(name).is_ok_and(|members| members == wanted)
}

fn members(name: &str) -> Result<BTreeSet<Cidr>, Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER)?;
    let replies = netlink.dump(request(LIST, 0, name), format_args!("reading set {name}"))?;
    Ok(replies.iter().flat_map(|r| elements(&r.body)).collect())
}

/// The elements in one message of a list.
fn elements(body: &[u8]) -> impl Iterator<Item = Cidr> {
    let all = body.get(4..).and_then(|b| find(b, ATTR_ADT)).unwrap_or_default();
    attributes(all).filter(|(kind, _)| *kind == ATTR_DATA).filter_map(|(_, element)| {
        let address: [u8; 4] = find(find(element, DATA_IP)?, IP_V4)?.try_into().ok()?;
        let prefix = *find(element, DATA_PREFIX)?.first()?;
        Cidr::new(IpAddr::V4(Ipv4Addr::from(address)), prefix)
    })
}

/// Removes the sets that the policy controller of 2.8.1 left, and returns their number.
///
/// # Errors
/// Rules of another program refer to a set, or the kernel refuses the request.
pub(crate) fn destroy_policy_sets() -> Result<usize, Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER)?;
    let mut left = policy_sets(&mut netlink)?;
    let all = left.len();
    // A set cannot be removed before the sets that list it, so refused ones are tried again.
    while !left.is_empty() {
        let mut refused = Vec::new();
        let mut error = None;
        for name in &left {
            if let Err(e) = destroy_set(&mut netlink, name) {
                error = Some(e);
                refused.push(name.clone());
            }
        }
        match error {
            Some(e) if refused.len() == left.len() => return Err(e),
            _ => left = refused,
        }
    }
    Ok(all)
}

/// Whether there are sets of the policy controller of 2.8.1.
pub(crate) fn has_policy_sets() -> bool {
    let Ok(mut netlink) = Netlink::open_protocol(NETLINK_NETFILTER) else { return false };
    policy_sets(&mut netlink).is_ok_and(|sets| !sets.is_empty())
}

fn policy_sets(netlink: &mut Netlink) -> Result<Vec<String>, Error> {
    let mut list = base_request(LIST, 0);
    list.attribute(ATTR_FLAGS | NET_BYTEORDER, &FLAG_NAMES.to_be_bytes());
    let replies = match netlink.dump(list, "listing sets") {
        Ok(replies) => replies,
        // This kernel has no sets.
        Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP)) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(e),
    };
    let name = |body: &[u8]| find(body.get(4..)?, ATTR_NAME).map(text);
    Ok(replies.iter().filter_map(|r| name(&r.body)).filter(|n| is_policy_set(n)).collect())
}

/// `weave-` and a SHA-1 digest in base 85 (docs/spec/containers.md E.6), which has at most 25 digits and rarely fewer than 24.
fn is_policy_set(name: &str) -> bool {
    let symbol = |b: u8| b.is_ascii_alphanumeric() || b"(){}[]+=_$%^!*|/?.;:@#~".contains(&b);
    name.strip_prefix("weave-")
        .is_some_and(|rest| (22..=25).contains(&rest.len()) && rest.bytes().all(symbol))
}

fn destroy_set(netlink: &mut Netlink, name: &str) -> Result<bool, Error> {
    // Without this flag newer kernels report success for a set that does not exist.
    match netlink.execute(request(DESTROY, NLM_F_EXCL, name), format_args!("removing set {name}")) {
        Ok(()) => Ok(true),
        // The set does not exist, or this kernel has no sets.
        Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The newest revision of the set type that the kernel supports.
fn revision(netlink: &mut Netlink) -> Result<u8, Error> {
    let step = "querying the set type hash:net";
    let mut query = base_request(TYPE, 0);
    query.string(ATTR_TYPE, KIND).attribute(ATTR_FAMILY, &[libc::AF_INET as u8]);
    let missing =
        || Error::MissingFeature { step: step.into(), feature: "ipset hash:net (CONFIG_IP_SET_HASH_NET)" };
    let replies = netlink.query(query, step).map_err(|e| match e {
        Error::Refused { .. } => missing(),
        other => other,
    })?;
    let revision = |body: &[u8]| find(body.get(4..)?, ATTR_REVISION)?.first().copied();
    replies.iter().find_map(|r| revision(&r.body)).ok_or_else(missing)
}

fn create(netlink: &mut Netlink, name: &str, revision: u8) -> Result<(), Error> {
    let mut create = request(CREATE, NLM_F_CREATE | NLM_F_EXCL, name);
    create
        .string(ATTR_TYPE, KIND)
        .attribute(ATTR_REVISION, &[revision])
        .attribute(ATTR_FAMILY, &[libc::AF_INET as u8])
        .nested(ATTR_DATA, |data| {
            data.attribute(DATA_FLAGS | NET_BYTEORDER, &FLAG_COMMENT.to_be_bytes());
        });
    match netlink.execute(create, format_args!("creating set {name}")) {
        Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn add(netlink: &mut Netlink, name: &str, network: Cidr) -> Result<(), Error> {
    let IpAddr::V4(ip) = network.network().addr() else { return Ok(()) };
    let mut add = request(ADD, 0, name);
    add.nested(ATTR_DATA, |data| {
        data.nested(DATA_IP, |addr| {
            addr.attribute(IP_V4 | NET_BYTEORDER, &ip.octets());
        })
        .attribute(DATA_PREFIX, &[network.prefix()]);
    });
    netlink.execute(add, format_args!("adding {network} to set {name}"))
}

fn base_request(kind: u16, flags: u16) -> Request {
    let mut request = Request::new(kind, flags, &[libc::AF_INET as u8, 0, 0, 0]);
    request.attribute(ATTR_PROTOCOL, &[PROTOCOL]);
    request
}

fn request(kind: u16, flags: u16, name: &str) -> Request {
    let mut request = base_request(kind, flags);
    request.string(ATTR_NAME, name);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE_LIST: &str = "list:set";
    /// Name of the set that is an element of a set of sets.
    const DATA_NAME: u16 = 18;

    #[test]
    fn names_of_policy_sets() {
        for name in ["weave-iuZcey(5DeXbzgRFs8Szo]+@p", "weave-k?Z;25^M}|1s7P3|H9i;*;Mhx"] {
            assert!(is_policy_set(name), "{name}");
        }
        for name in [
            "weave-blocklist",
            "weaver-no-masq-local",
            "weave-",
            "weave-iuZcey(5DeXbzgRFs8Szo]+@p,",
            "iuZcey(5DeXbzgRFs8Szo]+@p",
        ] {
            assert!(!is_policy_set(name), "{name}");
        }
    }

    #[test]
    fn policy_sets_are_removed() {
        let done = std::thread::spawn(|| {
            if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("SKIPPED: no network namespace for sets: {e}");
                return;
            }
            assert!(!has_policy_sets());
            assert_eq!(destroy_policy_sets().unwrap(), 0);
            let (one, list) = ("weave-iuZcey(5DeXbzgRFs8Szo]+@p", "weave-k?Z;25^M}|1s7P3|H9i;*;Mhx");
            let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER).unwrap();
            let revision = match revision(&mut netlink) {
                Ok(revision) => revision,
                Err(Error::MissingFeature { .. }) => {
                    eprintln!("SKIPPED: the kernel has no sets");
                    return;
                }
                Err(e) => panic!("{e}"),
            };
            for name in [one, "weave-mine"] {
                create(&mut netlink, name, revision).unwrap();
            }
            // The other set cannot be removed before this one, which lists it.
            let mut sets = request(CREATE, NLM_F_CREATE | NLM_F_EXCL, list);
            sets.string(ATTR_TYPE, TYPE_LIST)
                .attribute(ATTR_REVISION, &[3])
                .attribute(ATTR_FAMILY, &[0])
                .nested(ATTR_DATA, |_| ());
            netlink.execute(sets, "creating a set of sets").unwrap();
            let mut add = request(ADD, 0, list);
            add.nested(ATTR_DATA, |data| {
                data.string(DATA_NAME, one);
            });
            netlink.execute(add, "filling it").unwrap();
            assert!(destroy(one).is_err(), "another set lists it");
            assert!(has_policy_sets());
            assert_eq!(destroy_policy_sets().unwrap(), 2);
            assert!(!has_policy_sets() && members(one).is_err() && members(list).is_err());
            assert!(members("weave-mine").is_ok(), "a set of another program");
        });
        done.join().unwrap();
    }

    fn networks(text: &str) -> Vec<Cidr> {
        text.split_whitespace().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn set_contains_exactly_the_given_networks() {
        let done = std::thread::spawn(|| {
            if let Err(e) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("SKIPPED: no network namespace for sets: {e}");
                return;
            }
            let name = "weaver-no-masq-local.instance";
            assert!(!holds(name, &[]), "the set does not exist");
            assert_eq!(destroy(name), Ok(false));
            match replace(name, &[]) {
                Err(Error::MissingFeature { .. }) => {
                    eprintln!("SKIPPED: the kernel has no sets");
                    return;
                }
                made => made.unwrap(),
            }
            assert!(holds(name, &[]) && !holds(name, &networks("10.32.0.0/13")));
            // The list of these takes more than one message.
            let many: Vec<Cidr> = (0..2000u32).map(|n| block(n * 2)).collect();
            for set in [networks("10.40.0.0/13 10.32.0.1/32 10.36.0.0/14"), many, networks("10.32.0.0/13")] {
                replace(name, &set).unwrap();
                let reversed: Vec<Cidr> = set.iter().rev().copied().collect();
                assert!(holds(name, &set) && holds(name, &reversed));
                assert!(!holds(name, &set[1..]), "one network too many");
                assert!(
                    !holds(name, &[&set[..], &networks("192.0.2.0/24")].concat()),
                    "one network is missing"
                );
            }
            assert!(!holds(name, &networks("10.32.0.0/14")), "another prefix length");
            assert!(holds(name, &networks("10.32.0.0/13 fd00::/64")), "IPv6 networks are ignored");
            // State after a `replace` that was killed.
            let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER).unwrap();
            let revision = revision(&mut netlink).unwrap();
            create(&mut netlink, &temporary_name(name), revision).unwrap();
            assert_eq!(destroy(name), Ok(true));
            assert!(members(name).is_err() && members(&temporary_name(name)).is_err());
        });
        done.join().unwrap();
    }

    /// The `n`th block of sixteen addresses.
    fn block(n: u32) -> Cidr {
        Cidr::new(IpAddr::V4((0x0a20_0000 + n * 16).into()), 28).unwrap()
    }

    #[test]
    fn malformed_elements_are_ignored() {
        let mut list = Request::new(0, 0, &[]);
        list.nested(ATTR_ADT, |all| {
            for (address, prefix) in
                [(&[10, 32, 0, 0][..], &[13][..]), (&[10, 32], &[16]), (&[10, 0, 0, 1], &[33])]
            {
                all.nested(ATTR_DATA, |element| {
                    element
                        .nested(DATA_IP, |ip| {
                            ip.attribute(IP_V4 | NET_BYTEORDER, address);
                        })
                        .attribute(DATA_PREFIX, prefix);
                });
            }
            all.nested(ATTR_DATA, |_| ()).attribute(ATTR_DATA, &[7; 3]).attribute(ATTR_NAME, &[0]);
        });
        let body = [&[0; 4], &list.encoded()[16..]].concat();
        assert_eq!(elements(&body).collect::<Vec<_>>(), networks("10.32.0.0/13"));
        for end in 0..body.len() {
            assert!(elements(&body[..end]).count() <= 1);
        }
    }
}
