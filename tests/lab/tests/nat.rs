//! Hosts behind routers that masquerade: they connect to others, and two of them reach each other over a third.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-39", "F-40");

#[test]
fn hosts_behind_nat_connect_over_a_third() {
    let topology = Topology::hosts(2).and_behind_nat().and_behind_nat();
    let Some(lab) = Lab::start("behind", &topology) else { return };
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    launch(h3, &[], &["h1"]);
    launch(h4, &[], &["h1"]);
    // h3 and h4 discover h2; they reach each other over h1 or h2 only.
    for host in [h3, h4] {
        wait_peers(host, 4);
        host.wait("connections with h1 and h2", LONG_TIMEOUT, || {
            let all = host.connections();
            let good = ["198.18.0.1:6783", "198.18.0.2:6783"]
                .iter()
                .all(|peer| all.iter().any(|c| c.remote == *peer && c.state == "established" && c.outbound));
            if good { Ok(()) } else { Err(format!("{all:#?}")) }
        });
    }
    let members = attach_each(&[h1, h3, h4]);
    check_all_traffic(&members);
    claims(&["F-40"]);
}
