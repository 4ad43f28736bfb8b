//! Peers that allow different overlays: each connection uses another one, and frames pass through all of them.

use weave_lab::{Lab, Topology};

use crate::common::*;

#[test]
fn frames_pass_from_fastdp_over_sleeve_to_warp() {
    let Some(lab) = Lab::start("overlays", &Topology::hosts(4)) else { return };
    let hosts = lab.hosts();
    lab.cut("h1", "h3");
    let lists = ["fastdp,sleeve", "fastdp,sleeve", "sleeve,warp", "warp"];
    for (i, overlays) in lists.into_iter().enumerate() {
        let before: Vec<&str> = i.checked_sub(1).map(|i| hosts[i].name()).into_iter().collect();
        launch(&hosts[i], &["--overlays", overlays], &before);
    }
    // Peers without an overlay in common have no connection: these four are in a line.
    for (host, overlays) in
        hosts.iter().zip([&["fastdp"][..], &["fastdp", "sleeve"], &["sleeve", "warp"], &["warp"]])
    {
        wait_peers(host, 4);
        host.wait(&format!("connections by {overlays:?}"), LONG_TIMEOUT, || {
            let list = host.connections();
            let established = list.iter().filter(|c| c.state == "established");
            let mut used: Vec<&str> = established
                .flat_map(|c| c.info.split_whitespace().find(|word| overlays.contains(word)))
                .collect();
            used.sort_unstable();
            if used == overlays { Ok(()) } else { Err(format!("{list:?}")) }
        });
    }
    let mut members = attach_each(&hosts.iter().collect::<Vec<_>>());
    check_all_traffic(&members);

    step("a container moves from one end to the other, and keeps its MAC");
    let moving = members.remove(0);
    let mac = moving.container.mac();
    moving.container.end();
    let there = hosts[3].container("c1");
    there.attach(&["10.2.1.1/24"]);
    there.command_ok(&["ip", "link", "set", "ethwe", "address", &mac]);
    members.push(Member { container: there, ip: "10.2.1.1".to_owned() });
    check_all_traffic(&members);

    step("the line is cut in the middle, and heals");
    lab.cut("h2", "h3");
    for host in hosts {
        wait_peers(host, 2);
    }
    members[0].container.never_reaches(&members[1].ip);
    members[1].container.reaches(&members[2].ip, SHORT_TIMEOUT);
    lab.heal("h2", "h3");
    for host in hosts {
        wait_peers(host, 4);
    }
    check_all_traffic(&members);
}
