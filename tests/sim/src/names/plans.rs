//! The plans of the simulation of names: parameters of random runs.

/// Parameters of random runs.
#[derive(Clone, Debug)]
pub struct NamePlan {
    pub name: &'static str,
    pub hosts: u16,
    /// Number of peers that behave like 2.8.1; they are the first hosts.
    pub legacy: u16,
    /// Number of transitions.
    pub length: usize,
    /// Peers connect to all others; otherwise each to the one before it.
    pub discovery: bool,
    /// Seconds by which the wall clock of the last host is wrong.
    pub wall_error: i64,
    /// The second host has no registry, and relays the gossip of others.
    pub without_names: bool,
}

impl NamePlan {
    fn new(name: &'static str, hosts: u16, length: usize) -> NamePlan {
        NamePlan { name, hosts, legacy: 0, length, discovery: true, wall_error: 0, without_names: false }
    }
}

/// The plan that a seed runs: successive seeds run all plans in turn.
pub fn plan_of(seed: u64, plans: &[NamePlan]) -> &NamePlan {
    &plans[(seed % plans.len() as u64) as usize]
}

pub fn all() -> Vec<NamePlan> {
    vec![
        NamePlan::new("three peers", 3, 40),
        NamePlan { discovery: false, ..NamePlan::new("a line of five", 5, 40) },
        NamePlan { wall_error: 3600, ..NamePlan::new("four peers, one an hour ahead", 4, 40) },
        NamePlan { wall_error: -3600, ..NamePlan::new("four peers, one an hour behind", 4, 40) },
        NamePlan { legacy: 2, ..NamePlan::new("two peers like 2.8.1 and two others", 4, 40) },
        NamePlan {
            without_names: true,
            discovery: false,
            ..NamePlan::new("a line of four, one without names", 4, 40)
        },
    ]
}
