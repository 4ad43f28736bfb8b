//! The plans of address allocation: parameters of random runs.

use weave_ipam::Subnet;
use weave_types::Cidr;

use crate::driver_fault::DriverFault;
use crate::net::HostId;

/// The hosts that may be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    Complete,
    /// Each host may be connected to the one before it.
    Line,
    /// All hosts may be connected to the first.
    Star,
}

/// How the peers are launched, and so how they agree on the first division of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitMode {
    /// With the number of electors.
    Count,
    /// With the addresses of the electors.
    Targets,
    /// With the list of seeds, without an election.
    Seed,
    /// Each with the addresses of the peers before it.
    Chain,
}

/// Parameters of random runs.
#[derive(Clone, Debug)]
pub struct AllocationPlan {
    pub name: &'static str,
    pub hosts: u16,
    /// Number of observers; they are the last hosts.
    pub observers: u16,
    /// Number of legacy peers, which behave like 2.8.1; they are the first hosts.
    pub legacy: u16,
    /// Legacy peers send donations before they are on the disk.
    pub legacy_sends_before_persist: bool,
    /// Number of transitions.
    pub length: usize,
    /// The range, and a second one to which peers may change. They do not overlap.
    pub ranges: Vec<Subnet>,
    pub init: InitMode,
    /// A ring is established before the first transition.
    pub ring_first: bool,
    pub topology: Topology,
    /// Chance that a message is lost.
    pub loss: f64,
    /// Chance that a message arrives twice.
    pub duplication: f64,
    /// Chance that a message takes seconds.
    pub stall: f64,
    /// Largest error of the speed of a clock, parts in a million.
    pub clock_error_ppm: u64,
    /// Weight of requests among the transitions.
    pub request_weight: u32,
    /// Weight of peers that leave for good among the transitions.
    pub leave_weight: u32,
    /// Two peers may take over the space of the same peer.
    pub double_takeover: bool,
    /// Conflicts between peers are no failure.
    pub conflicts: bool,
    /// The allocators run in whole nodes.
    pub nodes: bool,
    /// Nodes are connected only through one more node, which has no allocator.
    pub hub: bool,
    /// Password of the nodes.
    pub password: Option<&'static str>,
    pub driver_fault: Option<DriverFault>,
}

impl AllocationPlan {
    /// The host to which the others are connected with [`AllocationPlan::hub`].
    pub(super) fn hub_id(&self) -> HostId {
        HostId(self.hosts)
    }

    /// Allocators alone, with a few lost, repeated and late messages.
    pub fn new(name: &'static str, hosts: u16, length: usize) -> AllocationPlan {
        AllocationPlan {
            name,
            hosts,
            observers: 0,
            legacy: 0,
            legacy_sends_before_persist: false,
            length,
            ranges: vec![subnet("10.32.0.0/27")],
            init: InitMode::Count,
            ring_first: false,
            topology: Topology::Complete,
            loss: 0.02,
            duplication: 0.02,
            stall: 0.05,
            clock_error_ppm: 50_000,
            request_weight: 40,
            leave_weight: 0,
            double_takeover: false,
            conflicts: false,
            nodes: false,
            hub: false,
            password: None,
            driver_fault: None,
        }
    }

    /// Number of hosts that take part in the election.
    pub(super) fn electors(&self) -> u16 {
        self.hosts - self.observers
    }

    /// One of the subnets that containers ask for: the range itself, parts of it, one that contains it, one outside it.
    pub(super) fn subnet(&self, range: usize, which: usize) -> Subnet {
        let whole = self.ranges[range];
        let start = whole.range().start();
        let part = |prefix: u8, offset: u32| {
            let addr = std::net::Ipv4Addr::from(start + offset);
            Cidr::new(addr.into(), prefix).and_then(|cidr| Subnet::new(cidr.network()).ok()).unwrap_or(whole)
        };
        match which {
            0 => part(whole.prefix() + 1, 0),
            1 => part(30, whole.range().size() / 2),
            2 => part(whole.prefix() - 1, 0),
            3 => part(24, 1 << 16),
            _ => whole,
        }
    }

    /// The address with the prefix length of the range.
    pub(super) fn cidr(&self, addr: u32) -> Cidr {
        let prefix = self.ranges[0].prefix();
        let ip = std::net::Ipv4Addr::from(addr).into();
        Cidr::new(ip, prefix).unwrap_or_else(|| self.ranges[0].cidr())
    }
}

pub fn subnet(text: &str) -> Subnet {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The plan that a seed runs: successive seeds run all plans in turn.
pub fn plan_of(seed: u64, plans: &[AllocationPlan]) -> &AllocationPlan {
    &plans[(seed % plans.len() as u64) as usize]
}

/// The plans with allocators alone.
pub fn all() -> Vec<AllocationPlan> {
    vec![
        // In most runs there is no quorum for a long time.
        AllocationPlan { request_weight: 15, ..AllocationPlan::new("election among three", 3, 40) },
        AllocationPlan {
            request_weight: 12,
            loss: 0.1,
            stall: 0.2,
            ..AllocationPlan::new("election among five, bad network", 5, 45)
        },
        AllocationPlan { request_weight: 60, ..AllocationPlan::new("four peers, many requests", 4, 45) },
        AllocationPlan {
            observers: 2,
            init: InitMode::Targets,
            topology: Topology::Line,
            ..AllocationPlan::new("three electors and two observers in a row", 5, 40)
        },
        AllocationPlan { leave_weight: 25, ..AllocationPlan::new("peers that leave for good", 4, 45) },
        AllocationPlan {
            init: InitMode::Seed,
            topology: Topology::Star,
            leave_weight: 10,
            ..AllocationPlan::new("seeded", 4, 40)
        },
        AllocationPlan {
            ranges: vec![subnet("10.32.0.0/29")],
            request_weight: 80,
            ..AllocationPlan::new("a range that is always full", 3, 45)
        },
        AllocationPlan {
            legacy: 2,
            ring_first: true,
            leave_weight: 5,
            ..AllocationPlan::new("two of four behave like 2.8.1", 4, 40)
        },
        AllocationPlan {
            double_takeover: true,
            conflicts: true,
            leave_weight: 40,
            init: InitMode::Seed,
            ..AllocationPlan::new("the same peer removed twice", 4, 40)
        },
        AllocationPlan {
            ranges: vec![subnet("10.32.0.0/27"), subnet("10.48.0.0/27")],
            conflicts: true,
            ..AllocationPlan::new("another range", 3, 40)
        },
        AllocationPlan {
            legacy: 2,
            legacy_sends_before_persist: true,
            ring_first: true,
            double_takeover: true,
            conflicts: true,
            ..AllocationPlan::new("two of four behave like 2.8.1, and send before they store", 4, 40)
        },
    ]
}

/// The plans with whole nodes.
pub fn nodes() -> Vec<AllocationPlan> {
    let plan = |name, hosts| AllocationPlan { nodes: true, ..AllocationPlan::new(name, hosts, 40) };
    vec![
        AllocationPlan { request_weight: 25, ..plan("election among three nodes", 3) },
        AllocationPlan {
            request_weight: 60,
            password: Some("wEaVe"),
            ..plan("four nodes, sealed, many requests", 4)
        },
        AllocationPlan {
            observers: 2,
            init: InitMode::Targets,
            topology: Topology::Line,
            loss: 0.1,
            ..plan("three electors and two observers, without discovery", 5)
        },
        AllocationPlan { leave_weight: 25, ..plan("nodes that leave for good", 4) },
        AllocationPlan {
            init: InitMode::Seed,
            topology: Topology::Star,
            leave_weight: 10,
            ..plan("seeded nodes in a star", 4)
        },
        AllocationPlan {
            ranges: vec![subnet("10.32.0.0/29")],
            request_weight: 80,
            ..plan("nodes whose range is always full", 3)
        },
        AllocationPlan {
            double_takeover: true,
            conflicts: true,
            leave_weight: 40,
            init: InitMode::Seed,
            ..plan("the same node removed twice", 4)
        },
        AllocationPlan {
            ranges: vec![subnet("10.32.0.0/27"), subnet("10.48.0.0/27")],
            conflicts: true,
            ..plan("nodes that change to another range", 3)
        },
        AllocationPlan {
            hub: true,
            topology: Topology::Star,
            leave_weight: 8,
            ..plan("nodes around one that allocates nothing", 4)
        },
        AllocationPlan {
            legacy: 2,
            ring_first: true,
            leave_weight: 5,
            ..plan("two of four nodes behave like 2.8.1", 4)
        },
        AllocationPlan {
            legacy: 2,
            legacy_sends_before_persist: true,
            ring_first: true,
            double_takeover: true,
            conflicts: true,
            ..plan("two of four nodes behave like 2.8.1, and send before they store", 4)
        },
        // In the last two plans legacy peers detect conflicts and end connections.
        AllocationPlan {
            legacy: 2,
            ring_first: true,
            double_takeover: true,
            conflicts: true,
            leave_weight: 40,
            init: InitMode::Seed,
            ..plan("two of four nodes behave like 2.8.1, and the same node is removed twice", 4)
        },
        AllocationPlan {
            legacy: 2,
            ring_first: true,
            ranges: vec![subnet("10.32.0.0/27"), subnet("10.48.0.0/27")],
            conflicts: true,
            ..plan("two of four nodes behave like 2.8.1, and change to another range", 4)
        },
    ]
}
