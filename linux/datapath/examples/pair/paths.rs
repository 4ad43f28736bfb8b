//! The ways from one bridge to the other.

use std::fmt;

use crate::Site;

/// What connects the two bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A VXLAN device of the kernel as a port of each bridge.
    Vxlan,
    /// Sleeve.
    Plain,
    /// Sleeve with a session key.
    Encrypted,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Vxlan => "vxlan",
            Path::Plain => "plain",
            Path::Encrypted => "encrypted",
        })
    }
}

/// A path in use.
pub struct Running {}

impl Path {
    pub const ALL: [Path; 3] = [Path::Vxlan, Path::Plain, Path::Encrypted];

    pub fn parse(name: &str) -> Option<Path> {
        Path::ALL.into_iter().find(|path| path.to_string() == name)
    }

    pub fn start(self, sites: &[Site; 2]) -> Running {
        match self {
            Path::Vxlan => vxlan(sites),
            Path::Plain | Path::Encrypted => todo!(),
        }
        Running {}
    }
}

impl Running {
    pub fn stop(self) {}
}

fn vxlan(sites: &[Site; 2]) {
    for (i, site) in sites.iter().enumerate() {
        let other = 2 - i;
        site.host.sh(&format!(
            "ip link add vxlan mtu 1376 type vxlan id 7 dev wire remote 10.9.0.{other} dstport 6784
             ip link set vxlan master weave up"
        ));
    }
}
