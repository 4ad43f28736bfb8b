//! What is run.

use super::scenario::{Begin, Graph, Plan, subnet};

/// Every plan. A seed is for one of them: its rest, divided by their number.
pub fn all() -> Vec<Plan> {
    vec![
        // The first division, and little else: most runs are short of a quorum for long.
        Plan { requests: 15, ..Plan::new("election among three", 3, 40) },
        Plan { requests: 12, loss: 0.1, slow: 0.2, ..Plan::new("election among five, bad network", 5, 45) },
        Plan { requests: 60, ..Plan::new("four peers, many requests", 4, 45) },
        Plan {
            observers: 2,
            begin: Begin::Targets,
            graph: Graph::Line,
            ..Plan::new("three electors and two observers in a row", 5, 40)
        },
        Plan { leave: 25, ..Plan::new("peers that leave for good", 4, 45) },
        Plan { begin: Begin::Seed, graph: Graph::Star, leave: 10, ..Plan::new("seeded", 4, 40) },
        Plan {
            ranges: vec![subnet("10.32.0.0/29")],
            requests: 80,
            ..Plan::new("a range that is always full", 3, 45)
        },
        Plan { legacy: 2, calm: true, leave: 5, ..Plan::new("two of four behave like 2.8.1", 4, 40) },
        Plan {
            contest: true,
            conflicts: true,
            leave: 40,
            begin: Begin::Seed,
            ..Plan::new("the same peer removed twice", 4, 40)
        },
        Plan {
            ranges: vec![subnet("10.32.0.0/27"), subnet("10.48.0.0/27")],
            conflicts: true,
            ..Plan::new("another range", 3, 40)
        },
        Plan {
            legacy: 2,
            early: true,
            calm: true,
            contest: true,
            conflicts: true,
            ..Plan::new("two of four behave like 2.8.1, and tell before they store", 4, 40)
        },
    ]
}

/// Every plan over whole nodes, as [`all`].
pub fn nodes() -> Vec<Plan> {
    let plan = |name, hosts| Plan { nodes: true, ..Plan::new(name, hosts, 40) };
    vec![
        Plan { requests: 25, ..plan("election among three nodes", 3) },
        Plan { requests: 60, password: Some("wEaVe"), ..plan("four nodes, sealed, many requests", 4) },
        Plan {
            observers: 2,
            begin: Begin::Targets,
            graph: Graph::Line,
            loss: 0.1,
            ..plan("three electors and two observers, without discovery", 5)
        },
        Plan { leave: 25, ..plan("nodes that leave for good", 4) },
        Plan { begin: Begin::Seed, graph: Graph::Star, leave: 10, ..plan("seeded nodes in a star", 4) },
        Plan {
            ranges: vec![subnet("10.32.0.0/29")],
            requests: 80,
            ..plan("nodes whose range is always full", 3)
        },
        Plan {
            contest: true,
            conflicts: true,
            leave: 40,
            begin: Begin::Seed,
            ..plan("the same node removed twice", 4)
        },
        Plan {
            ranges: vec![subnet("10.32.0.0/27"), subnet("10.48.0.0/27")],
            conflicts: true,
            ..plan("nodes that change to another range", 3)
        },
        Plan {
            bridge: true,
            graph: Graph::Star,
            leave: 8,
            ..plan("nodes around one that allocates nothing", 4)
        },
        Plan { legacy: 2, calm: true, leave: 5, ..plan("two of four nodes behave like 2.8.1", 4) },
        Plan {
            legacy: 2,
            early: true,
            calm: true,
            contest: true,
            conflicts: true,
            ..plan("two of four nodes behave like 2.8.1, and tell before they store", 4)
        },
        // In these two those hear of conflicts, and end connections.
        Plan {
            legacy: 2,
            calm: true,
            contest: true,
            conflicts: true,
            leave: 40,
            begin: Begin::Seed,
            ..plan("two of four nodes behave like 2.8.1, and the same node is removed twice", 4)
        },
        Plan {
            legacy: 2,
            calm: true,
            ranges: vec![subnet("10.32.0.0/27"), subnet("10.48.0.0/27")],
            conflicts: true,
            ..plan("two of four nodes behave like 2.8.1, and change to another range", 4)
        },
    ]
}
