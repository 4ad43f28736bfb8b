//! Ranges and subnets (docs/spec/ipam.md 2). IPv4 only, like the protocol.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use thiserror::Error;
use weave_types::Cidr;

/// A half-open range of IPv4 addresses. Displayed as `first-last`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrRange {
    start: u32,
    end: u32,
}

impl AddrRange {
    /// `[start, end)`; empty if `end` is not above `start`.
    pub fn new(start: u32, end: u32) -> AddrRange {
        AddrRange { start, end: end.max(start) }
    }

    /// The range of one address.
    pub fn single(addr: u32) -> AddrRange {
        AddrRange { start: addr, end: addr.saturating_add(1) }
    }

    /// First address.
    pub fn start(self) -> u32 {
        self.start
    }

    /// The address after the last one.
    pub fn end(self) -> u32 {
        self.end
    }

    /// Number of addresses.
    pub fn size(self) -> u32 {
        self.end - self.start
    }

    /// Whether the range contains no address.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether the range contains `addr`.
    pub fn contains(self, addr: u32) -> bool {
        self.start <= addr && addr < self.end
    }

    /// The common part, possibly empty.
    pub fn intersection(self, other: AddrRange) -> AddrRange {
        AddrRange::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Whether there is a common address.
    pub fn overlaps(self, other: AddrRange) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The biggest aligned block in the range (docs/spec/ipam.md 2): the preferred size of a donation.
    pub fn biggest_block(self) -> AddrRange {
        let (start, size) = (u64::from(self.start), u64::from(self.size()));
        if size == 0 {
            return self;
        }
        let block = 1u64 << size.ilog2();
        let offset = start % block;
        let rest = size % block;
        let (from, len) = if offset == 0 {
            (start, block)
        } else if block - offset <= rest {
            (start + (block - offset), block)
        } else {
            let half = block / 2;
            if half >= offset { (start + (half - offset), half) } else { (start + (block - offset), half) }
        };
        AddrRange::new(from as u32, (from + len) as u32)
    }

    /// The smallest set of aligned blocks that makes up the range, ascending.
    pub fn cover(self) -> Vec<Cidr> {
        let (mut at, end) = (u64::from(self.start), u64::from(self.end));
        let mut blocks = Vec::new();
        while at < end {
            let aligned = if at == 0 { 32 } else { at.trailing_zeros() };
            let bits = aligned.min((end - at).ilog2()).min(32);
            blocks.extend(Cidr::new(IpAddr::V4((at as u32).into()), (32 - bits) as u8));
            at += 1u64 << bits;
        }
        blocks
    }

    /// `start/prefix` if the size is a power of two, even if not aligned, else `first-last`: the form of error
    /// messages.
    pub fn as_cidr(self) -> String {
        if self.size().is_power_of_two() {
            format!("{}/{}", Ipv4Addr::from(self.start), 32 - self.size().ilog2())
        } else {
            self.to_string()
        }
    }
}

impl fmt::Display for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", Ipv4Addr::from(self.start), Ipv4Addr::from(self.end.wrapping_sub(1)))
    }
}

impl fmt::Debug for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv4 network with at least four addresses and no host bits set that does not reach the end of the address
/// space, which the protocol cannot express. Subnets are what requests name and what the allocation range is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    start: u32,
    prefix: u8,
}

impl Subnet {
    /// Checks a CIDR.
    ///
    /// # Errors
    /// The CIDR is not such a network.
    pub fn new(cidr: Cidr) -> Result<Subnet, SubnetError> {
        let IpAddr::V4(addr) = cidr.addr() else { return Err(SubnetError::NotIpv4(cidr.to_string())) };
        if cidr.prefix() > 30 || cidr.prefix() == 0 {
            return Err(SubnetError::TooSmall(cidr));
        }
        if cidr.network() != cidr {
            return Err(SubnetError::HostBits(cidr));
        }
        let subnet = Subnet { start: addr.into(), prefix: cidr.prefix() };
        if u64::from(subnet.start) + (1u64 << (32 - subnet.prefix)) > u64::from(u32::MAX) {
            return Err(SubnetError::ReachesEnd(cidr));
        }
        Ok(subnet)
    }

    /// All addresses of the subnet.
    pub fn range(self) -> AddrRange {
        AddrRange { start: self.start, end: self.start + (1u32 << (32 - self.prefix)) }
    }

    /// All addresses except the first and the last: those that allocation hands out (RFC 1122).
    pub fn hosts(self) -> AddrRange {
        let all = self.range();
        AddrRange { start: all.start + 1, end: all.end - 1 }
    }

    /// Prefix length, 1 to 30.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The subnet as a CIDR.
    pub fn cidr(self) -> Cidr {
        self.with_host(self.start)
    }

    pub(crate) fn with_host(self, addr: u32) -> Cidr {
        cidr(addr, self.prefix)
    }
}

/// A CIDR of an IPv4 address; the prefix length is limited to 32.
pub(crate) fn cidr(addr: u32, prefix: u8) -> Cidr {
    let ip = IpAddr::V4(addr.into());
    Cidr::new(ip, prefix.min(32)).expect("32 bits are allowed for IPv4")
}

/// The address of an IPv4 CIDR.
pub(crate) fn ipv4(cidr: Cidr) -> Option<u32> {
    match cidr.addr() {
        IpAddr::V4(addr) => Some(addr.into()),
        IpAddr::V6(_) => None,
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cidr(), f)
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Subnet, SubnetError> {
        let cidr: Cidr = text.parse().map_err(|_| SubnetError::NotCidr(text.to_owned()))?;
        match cidr.addr() {
            IpAddr::V4(_) => Subnet::new(cidr),
            IpAddr::V6(_) => Err(SubnetError::NotIpv4(text.to_owned())),
        }
    }
}

/// The text or CIDR is not a [`Subnet`]. The texts are those of 2.8.1, which the HTTP interface promises.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubnetError {
    /// The text is not of the form `address/length`.
    #[error("invalid CIDR address: {0}")]
    NotCidr(String),
    /// An IPv6 network.
    #[error("invalid Non-IPv4 address not supported: {0}")]
    NotIpv4(String),
    /// Host bits are set.
    #[error("invalid subnet - bits after network prefix are not all zero: {0}")]
    HostBits(Cidr),
    /// Fewer than four addresses, or the whole address space.
    #[error("invalid subnet - smaller than minimum size 4: {0}")]
    TooSmall(Cidr),
    /// The last address is 255.255.255.255.
    #[error("invalid subnet - ends at 255.255.255.255, choose a lower one: {0}")]
    ReachesEnd(Cidr),
}
