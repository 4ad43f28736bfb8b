//! Parses arbitrary text as names and addresses. The fuzz target and the test that replays its corpus share this module.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use weave_types::{Cidr, MacAddr, PeerName};

/// Asserts that a parsed value prints as text that parses to the same value, and that an error has a text.
pub(crate) fn addresses(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    round_trip::<PeerName>(&text);
    round_trip::<MacAddr>(&text);
    if let Some(cidr) = round_trip::<Cidr>(&text) {
        let network = cidr.network();
        assert!(network.contains(cidr.addr()) && cidr.contains(network.addr()));
        assert_eq!(network.network(), network);
        assert!(cidr.broadcast().is_none_or(|b| cidr.contains(b.into())));
        assert_eq!(Cidr::new(cidr.addr(), cidr.prefix()), Some(cidr));
    }
}

fn round_trip<T: FromStr<Err: Display> + Display + Debug + PartialEq>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            let reparsed = printed.parse::<T>().ok();
            assert_eq!(reparsed.as_ref(), Some(&value), "{text:?} was printed as {printed:?}");
            Some(value)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}
