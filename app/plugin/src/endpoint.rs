//! Devices of an endpoint: the connection of a container to a network.

use crate::Error;

/// How much of an id goes into the names: 15 bytes less `vethwl`.
const ID_LENGTH: usize = 9;
/// The same in versions before 1.3 of the original.
const OLD_ID_LENGTH: usize = 5;

/// Names of the veth pair of an endpoint, before Docker moves one end into the container and renames it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VethPair {
    /// The end that is a port of the bridge.
    pub outside: String,
    /// The end for the container.
    pub inside: String,
    /// What old versions called the port of the bridge.
    pub old_outside: String,
}

impl VethPair {
    /// The pair of an endpoint.
    ///
    /// # Errors
    /// The id cannot name a device.
    pub fn of(endpoint: &str) -> Result<VethPair, Error> {
        if endpoint.is_empty() || !endpoint.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::Refused(format!("{endpoint:?} is not the id of an endpoint")));
        }
        let short = |length: usize| endpoint.get(..length).unwrap_or(endpoint);
        Ok(VethPair {
            outside: format!("vethwl{}", short(ID_LENGTH)),
            inside: format!("vethwg{}", short(ID_LENGTH)),
            old_outside: format!("vethwl{}", short(OLD_ID_LENGTH)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        let pair = VethPair::of("a1b2c3d4e5f6").unwrap();
        assert_eq!(
            (&*pair.outside, &*pair.inside, &*pair.old_outside),
            ("vethwla1b2c3d4e", "vethwga1b2c3d4e", "vethwla1b2c")
        );
        assert_eq!(VethPair::of("ab").unwrap().outside, "vethwlab");
        for bad in ["", "../x", "a b", "é", "x/y"] {
            assert!(VethPair::of(bad).is_err(), "{bad}");
        }
    }
}
