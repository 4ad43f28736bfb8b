//! The ways from one bridge to the other.

use std::fmt;

use weave_datapath::{DatapathStats, Report};
use weave_overlay::forward::Fact;

use crate::MTU;
use crate::testbed::{Peer, Site, peers};

/// What connects the two bridges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
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
pub(crate) struct Running(Vec<Peer>);

impl Path {
    pub(crate) const ALL: [Path; 3] = [Path::Vxlan, Path::Plain, Path::Encrypted];

    pub(crate) fn parse(name: &str) -> Option<Path> {
        Path::ALL.into_iter().find(|path| path.to_string() == name)
    }

    pub(crate) fn start(self, sites: &[Site; 2]) -> Running {
        let key = match self {
            Path::Vxlan => return vxlan(sites),
            Path::Plain => None,
            Path::Encrypted => Some([42; 32]),
        };
        sites.iter().for_each(|site| site.plug(MTU));
        Running(peers(sites, key, 1500).into())
    }
}

impl Running {
    /// The counters of both peers, if there are any.
    pub(crate) fn stop(self) -> Vec<DatapathStats> {
        let stop = |peer: Peer| {
            let stats = peer.datapath.stats();
            let path_mtu = |report: &Report| matches!(report, Report::Fact(Fact::PathMtu { .. }));
            if peer.told(path_mtu) {
                println!("the underlay takes less than the tables say");
            }
            peer.stop();
            stats
        };
        self.0.into_iter().map(stop).collect()
    }
}

fn vxlan(sites: &[Site; 2]) -> Running {
    for (i, site) in sites.iter().enumerate() {
        let other = 2 - i;
        site.host.sh(&format!(
            "ip link add vxlan mtu {MTU} type vxlan id 7 dev wire remote 10.9.0.{other} dstport 6784
             ip link set vxlan master weave up"
        ));
    }
    Running(Vec::new())
}
