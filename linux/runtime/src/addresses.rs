//! Addresses of containers: how they are requested, and the allocator that keeps them.

use std::fmt;
use std::str::FromStr;

use weave_types::{Cidr, ParseCidrError};

use crate::Error;

/// Owner of the addresses of the host itself (`weave expose`), in the allocator.
pub const EXPOSE: &str = "weave:expose";

/// An address argument of `attach`, `detach`, `expose` and `hide` (docs/spec/cli.md 2.1).
///
/// | written | obtained by `attach` | looked up by `detach` |
/// | --- | --- | --- |
/// | `<ip>/<bits>`, `ip:<ip>/<bits>` | claimed, if the daemon runs | as it is |
/// | `net:<ip>/<bits>` | allocated in that subnet | what the container has there |
/// | `net:default` | allocated in the default subnet | what the container has there |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressRequest {
    /// One particular address.
    Fixed(Cidr),
    /// Any address of a subnet; `None` is the default subnet.
    Net(Option<Cidr>),
}

impl AddressRequest {
    /// What is waited for, as in "waiting for ...".
    pub fn describe(&self) -> String {
        match self {
            AddressRequest::Fixed(cidr) => cidr.to_string(),
            AddressRequest::Net(None) => "an address".to_owned(),
            AddressRequest::Net(Some(subnet)) => format!("an address of {subnet}"),
        }
    }
}

impl FromStr for AddressRequest {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<AddressRequest, ParseCidrError> {
        Ok(match text.strip_prefix("net:") {
            Some("default") => AddressRequest::Net(None),
            Some(subnet) => AddressRequest::Net(Some(subnet.parse()?)),
            None => AddressRequest::Fixed(text.strip_prefix("ip:").unwrap_or(text).parse()?),
        })
    }
}

impl fmt::Display for AddressRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressRequest::Fixed(cidr) => cidr.fmt(f),
            AddressRequest::Net(None) => f.write_str("net:default"),
            AddressRequest::Net(Some(subnet)) => write!(f, "net:{subnet}"),
        }
    }
}

/// Keeps the addresses of containers. Owners are ids of containers, or [`EXPOSE`].
pub trait Allocator {
    /// Whether addresses are recorded, and have to be released.
    fn records(&self) -> bool {
        true
    }

    /// All addresses of an owner.
    ///
    /// # Errors
    /// The allocator does not answer.
    fn owned(&self, owner: &str) -> Result<Vec<Cidr>, Error>;

    /// Claims or allocates one address. May wait for other peers.
    ///
    /// # Errors
    /// The address is not available, or the caller no longer waits for it.
    fn obtain(&self, owner: &str, request: &AddressRequest) -> Result<Cidr, Error>;

    /// The addresses of an owner in a subnet; `None` is the default subnet.
    ///
    /// # Errors
    /// The allocator does not answer, or allocates nothing.
    fn look_up(&self, owner: &str, subnet: Option<Cidr>) -> Result<Vec<Cidr>, Error>;

    /// Releases an address; one that is not the owner's is ignored.
    ///
    /// # Errors
    /// The allocator does not answer.
    fn release(&self, owner: &str, cidr: Cidr) -> Result<(), Error>;
}

/// Stands for an allocator where addresses are not kept: particular addresses are taken as they are.
#[derive(Clone, Copy, Debug)]
pub struct NoAllocator {
    /// Why no address of a subnet can be had.
    pub reason: &'static str,
}

impl Allocator for NoAllocator {
    fn records(&self) -> bool {
        false
    }

    fn owned(&self, _owner: &str) -> Result<Vec<Cidr>, Error> {
        Ok(Vec::new())
    }

    fn obtain(&self, _owner: &str, request: &AddressRequest) -> Result<Cidr, Error> {
        match request {
            AddressRequest::Fixed(cidr) => Ok(*cidr),
            AddressRequest::Net(_) => Err(Error::Address(self.reason.to_owned())),
        }
    }

    fn look_up(&self, _owner: &str, _subnet: Option<Cidr>) -> Result<Vec<Cidr>, Error> {
        Err(Error::Address(self.reason.to_owned()))
    }

    fn release(&self, _owner: &str, _cidr: Cidr) -> Result<(), Error> {
        Ok(())
    }
}

/// The addresses that the requests of `detach` and `hide` stand for. Never waits.
///
/// # Errors
/// See [`Allocator::look_up`].
pub fn look_up(
    allocator: &dyn Allocator,
    owner: &str,
    requests: &[AddressRequest],
) -> Result<Vec<Cidr>, Error> {
    let mut cidrs = Vec::new();
    for request in requests {
        match request {
            AddressRequest::Fixed(cidr) => cidrs.push(*cidr),
            AddressRequest::Net(subnet) => cidrs.extend(allocator.look_up(owner, *subnet)?),
        }
    }
    Ok(cidrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_they_are_read() {
        for text in ["net:default", "net:10.2.0.0/16", "10.2.1.1/24"] {
            assert_eq!(text.parse::<AddressRequest>().expect(text).to_string(), text);
        }
        assert_eq!("ip:10.2.1.1/24".parse(), "10.2.1.1/24".parse::<AddressRequest>());
        for bad in ["", "net:", "10.2.1.1", "net:10.2.1"] {
            assert!(bad.parse::<AddressRequest>().is_err(), "{bad}");
        }
    }
}
