use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `00:00:00:00:00:00`, which marks overlay control frames.
    pub const ZERO: MacAddr = MacAddr([0; 6]);
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);
    /// `01:80:c2:00:00:00`, the only group address that is never forwarded (docs/spec/data-plane.md 2.3).
    pub const SPANNING_TREE: MacAddr = MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]);

    /// Whether this is a multicast or broadcast address.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0;
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4], b[5])
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid MAC address: {0:?}")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<MacAddr, ParseMacError> {
        let bad = || ParseMacError(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            let group = groups.next().ok_or_else(bad)?;
            if group.len() != 2 || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(group, 16).map_err(|_| bad())?;
        }
        if groups.next().is_some() { Err(bad()) } else { Ok(MacAddr(bytes)) }
    }
}

/// An address with the length of its network prefix, such as `10.2.1.1/24`. Host bits are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Returns `None` if the prefix is longer than the address.
    pub const fn new(addr: IpAddr, prefix: u8) -> Option<Cidr> {
        let max = if addr.is_ipv4() { 32 } else { 128 };
        if prefix <= max { Some(Cidr { addr, prefix }) } else { None }
    }

    /// The address with its host bits.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The network: all host bits are zero.
    pub fn network(&self) -> Cidr {
        let addr = match self.addr {
            IpAddr::V4(a) => IpAddr::V4((u32::from(a) & mask32(self.prefix)).into()),
            IpAddr::V6(a) => IpAddr::V6((u128::from(a) & mask128(self.prefix)).into()),
        };
        Cidr { addr, prefix: self.prefix }
    }

    /// Whether `ip` belongs to the network. Addresses of the other family never do.
    pub fn contains(&self, ip: IpAddr) -> bool {
        Cidr::new(ip, self.prefix)
            .is_some_and(|c| c.network() == self.network() && ip.is_ipv4() == self.addr.is_ipv4())
    }

    /// Whether the networks have addresses in common.
    pub fn overlaps(&self, other: Cidr) -> bool {
        self.contains(other.network().addr()) || other.contains(self.network().addr())
    }

    /// The directed broadcast address of an IPv4 network; `None` for /31, /32 and IPv6.
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.addr {
            IpAddr::V4(a) if self.prefix < 31 => Some((u32::from(a) | !mask32(self.prefix)).into()),
            _ => None,
        }
    }
}

fn mask32(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask128(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `address/length`. The message is that of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct ParseCidrError(String);

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Cidr, ParseCidrError> {
        let parse = || {
            let (addr, prefix) = text.split_once('/')?;
            if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            Cidr::new(addr.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| ParseCidrError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr_arithmetic_and_parsing() {
        let c: Cidr = "10.2.1.102/24".parse().unwrap();
        assert_eq!(c.network().to_string(), "10.2.1.0/24");
        assert!(c.contains("10.2.1.7".parse().unwrap()));
        assert!(!c.contains("10.2.2.7".parse().unwrap()));
        assert!(!c.contains("::1".parse().unwrap()));
        assert_eq!(c.broadcast(), Some(Ipv4Addr::new(10, 2, 1, 255)));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(!all.contains("::".parse().unwrap()));
        assert_eq!("fe80::1/64".parse::<Cidr>().unwrap().network().to_string(), "fe80::/64");
        for bad in ["10.2.1.1", "10.2.1.1/33", "10.2.1/24", "/24", "10.2.1.1/", "10.2.1.1/+4", "::1/129", ""]
        {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn mac_addresses_are_six_pairs_of_hex_digits() {
        let m: MacAddr = "02:42:AC:11:00:03".parse().unwrap();
        assert_eq!(m.to_string(), "02:42:ac:11:00:03");
        assert!(!m.is_group() && MacAddr::BROADCAST.is_group());
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:03:04",
            "2:42:ac:11:0:3",
            "02-42-ac-11-00-03",
            "+2:42:ac:11:00:03",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
