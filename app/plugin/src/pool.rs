//! Pools of addresses, and requests for one of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;
use weave_types::Cidr;

use crate::{Answer, Error};

/// Id of the only pool in old versions.
const OLD_POOL: &str = "weavepool";

/// The addresses of one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    subnet: Cidr,
    range: Cidr,
}

impl Pool {
    /// The pool of a subnet; `range` is the part of it that addresses are allocated from.
    ///
    /// # Errors
    /// They are not IPv4, or the range is not in the subnet.
    pub fn new(subnet: Cidr, range: Option<Cidr>) -> Result<Pool, Error> {
        let subnet = subnet.network();
        let range = range.map_or(subnet, |range| range.network());
        if !subnet.addr().is_ipv4() {
            return Err(Error::Refused(format!("{subnet}: only IPv4 addresses are allocated")));
        }
        if !subnet.contains(range.addr()) || range.prefix() < subnet.prefix() {
            return Err(Error::Refused(format!("{range} is not a part of {subnet}")));
        }
        Ok(Pool { subnet, range })
    }

    /// Reads the id of a pool; `None` is the pool of old versions, which stands for the default subnet.
    pub(crate) fn parse(id: &str) -> Result<Option<Pool>, Error> {
        if id == OLD_POOL {
            return Ok(None);
        }
        let parts = || {
            let (subnet, range) = id.strip_prefix("weave-")?.split_once('-')?;
            Pool::new(subnet.parse().ok()?, Some(range.parse().ok()?)).ok()
        };
        parts().map(Some).ok_or_else(|| Error::Refused(format!("Unrecognized pool ID: {id}")))
    }

    /// Where addresses are allocated.
    pub fn range(&self) -> Cidr {
        self.range
    }

    /// The subnet to which the addresses belong.
    pub fn subnet(&self) -> Cidr {
        self.subnet
    }

    /// Its own address stands for a gateway, so that Docker before version 28 allocates none. No container has it.
    pub(crate) fn is_placeholder(&self, addr: Ipv4Addr) -> bool {
        self.subnet.addr() == IpAddr::V4(addr)
    }

    pub(crate) fn answer(&self, gateway: bool) -> Answer {
        let data = if gateway {
            json!({ "com.docker.network.gateway": self.subnet.to_string() })
        } else {
            json!({})
        };
        let (id, pool) = (self.to_string(), self.subnet.to_string());
        Answer::of(&json!({ "Error": "", "PoolID": id, "Pool": pool, "Data": data }))
    }
}

/// Its id.
impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weave-{}-{}", self.subnet, self.range)
    }
}

/// A request for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRequest {
    /// `None`: the default subnet.
    pub pool: Option<Pool>,
    /// The address that is wanted; `None`: any.
    pub address: Option<Ipv4Addr>,
}

impl AddressRequest {
    /// The answer with the address that was obtained.
    pub fn answer(&self, obtained: Cidr) -> Answer {
        let prefix = self.pool.map_or(obtained.prefix(), |pool| pool.subnet.prefix());
        Answer::of(&json!({ "Error": "", "Address": format!("{}/{prefix}", obtained.addr()), "Data": null }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn ids_of_pools_are_read_as_they_are_written() {
        let pool = Pool::new(cidr("10.40.3.4/16"), Some(cidr("10.40.1.7/24"))).unwrap();
        assert_eq!(pool.to_string(), "weave-10.40.0.0/16-10.40.1.0/24");
        assert_eq!(Pool::parse(&pool.to_string()), Ok(Some(pool)));
        assert_eq!(Pool::parse("weavepool"), Ok(None));
        for bad in [
            "",
            "weave-",
            "weave-10.0.0.0/8",
            "weave-x-y",
            "weave-10.0.0.0/8-11.0.0.0/16",
            "weave-fd00::/8-fd00::/8",
        ] {
            let error = Pool::parse(bad).unwrap_err().to_string();
            assert_eq!(error, format!("Unrecognized pool ID: {bad}"));
        }
        assert!(
            Pool::new(cidr("10.40.0.0/16"), Some(cidr("10.0.0.0/8"))).is_err(),
            "the range is larger than the subnet"
        );
    }
}
