//! `rmpeer` of a live peer, by two peers concurrently, and of a dead peer: conflicts are contained and reported, and data flows.

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!("A-15", "P-17", "P-18");

#[test]
fn space_taken_from_a_live_peer_is_contained() {
    let Some(lab) = Lab::start("takeover", &Topology::hosts(3)) else { return };
    let hosts: Vec<&Host> = lab.hosts().iter().collect();
    let [h1, h2, h3] = hosts[..] else { unreachable!() };
    let observer = DuplicateAddressMonitor::of(&lab);
    launch_concurrently(&[(h1, &["h2", "h3"]), (h2, &["h1", "h3"]), (h3, &["h1", "h2"])]);
    for host in &hosts {
        host.weave_ok(&["consense"]);
        host.wait_established(2, LONG_TIMEOUT);
    }
    let mut members: Vec<_> = hosts.iter().map(|host| allocated_container(host, "c")).collect();
    let (ends, addresses) =
        (hosts.iter().map(|host| host.container("data")), ["10.9.1.1", "10.9.1.2", "10.9.1.3"]);
    let ends: Vec<_> =
        ends.zip(addresses).inspect(|(c, ip)| drop(c.attach(&[&format!("{ip}/24")]))).collect();
    ends[0].0.reaches(addresses[1], SHORT_TIMEOUT);
    ends[0].0.reaches(addresses[2], SHORT_TIMEOUT);
    let flow = ends[0].0.pinging(addresses[1], 100);

    step("an address of another container or peer is refused with its owner");
    h1.sh("ip netns add other");
    for (cidr, text) in [
        (format!("{}/12", members[0].1), format!("address {}/12 is already owned by netns:c", members[0].1)),
        (
            format!("{}/12", members[1].1),
            format!("address {}/12 is owned by other peer {} (h2)", members[1].1, name(h2)),
        ),
        ("10.9.1.1/24".to_owned(), "address 10.9.1.1/24 already in use by netns:data".to_owned()),
    ] {
        let outcome = h1.weave(&["attach", &cidr, "netns:other"]);
        assert!(!outcome.success() && outcome.stderr.contains(&text), "{outcome}");
        assert!(
            !outcome.stderr.contains('\n') || outcome.stderr.trim_end().lines().count() == 1,
            "{outcome}"
        );
    }

    step("two peers remove a dead peer concurrently: one of them gets its space and prints how much");
    let gone = name(h3);
    let dies = || {
        h3.signal_daemon("KILL");
        for host in [h1, h2] {
            host.wait("h3 to be disconnected", LONG_TIMEOUT, || ipam_page(host).contains("unreachable!"));
        }
    };
    let (c3, _) = members.remove(2);
    c3.end();
    dies();
    let taken: Vec<u32> = std::thread::scope(|scope| {
        let runs = [h1, h2].map(|host| scope.spawn(|| host.weave_ok(&["rmpeer", &gone])));
        runs.map(|run| count_taken(&run.join().unwrap(), &gone)).into()
    });
    assert!(taken.iter().any(|n| *n > 0), "{taken:?}");
    on_each_host(&[h1, h2], |host| drop(attach_many(host, "m", 5)));
    for host in [h1, h2] {
        host.wait("h3 to own nothing", SHORT_TIMEOUT, || !ipam_page(host).contains(&gone));
        host.wait_established(1, SHORT_TIMEOUT);
    }
    let reported = || [h1, h2].iter().all(|host| ipam_page(host).contains("conflict with"));
    h1.wait("one ring, or a conflict that both report", SHORT_TIMEOUT, || {
        ring_entries(h1) == ring_entries(h2) || reported()
    });
    assert_unique_addresses(&lab);
    claims(&["A-15"]);

    step("the removed peer comes back, releases its unused space and requests new space");
    launch(h3, &["--resume"], &[]);
    h3.wait("the announcements of the others", SHORT_TIMEOUT, || {
        h3.log().contains("unused addresses to another peer")
    });
    h3.wait_established(2, LONG_TIMEOUT);
    assert!(!ipam_page(h3).contains("conflict"), "{}", ipam_page(h3));
    let (_c, used) = allocated_container(h3, "c");
    assert_unique_addresses(&lab);

    step(
        "an address that was allocated twice is reported by h3, which allocates nothing of the range and keeps its container connected",
    );
    dies();
    assert!(count_taken(&h2.weave_ok(&["rmpeer", &gone]), &gone) > 0);
    drop(observer);
    assert_eq!(h2.weave_ok(&["attach", &format!("{used}/12"), "netns:m1"]), format!("{used}\n"));
    launch(h3, &["--resume"], &[]);
    h3.wait_established(2, LONG_TIMEOUT);
    h3.wait("the conflict to be reported", SHORT_TIMEOUT, || {
        let page = ipam_page(h3);
        let reported = page.contains("Received update for IP range I own at ")
            && page.contains(&format!("incoming message says owner {}", name(h2)));
        if reported && page.contains("not handed out: ") && page.contains("'weave reset'") {
            Ok(())
        } else {
            Err(page)
        }
    });
    assert!(h3.log().contains("conflict with "), "{}", h3.log());
    let (high, _) = used.rsplit_once('.').unwrap();
    let outcome =
        assert_command_waits(h3, 1, &["attach", &format!("net:{high}.0/24"), &h3.container("doubt").netns()]);
    assert!(outcome.stderr.contains("disputed"), "{outcome}");
    on_each_host(&[h1, h2], |host| drop(allocated_container(host, "late")));
    ends[2].0.reaches(addresses[0], SHORT_TIMEOUT);
    assert_eq!(h3.connections().iter().filter(|c| c.state == "established").count(), 2);
    claims(&["P-17"]);
    step("once the address is in use only once, there is one ring again");
    h3.weave_ok(&["detach", "netns:c"]);
    h3.weave_ok(&["stop"]);
    launch(h3, &["--resume"], &[]);
    allocated_container(h3, "new");
    wait_equal_rings(&hosts, LONG_TIMEOUT);
    assert!(!ipam_page(h3).contains("conflict"), "{}", ipam_page(h3));
    assert_unique_addresses(&lab);

    step("rmpeer of a reachable peer needs --force");
    let refused = h1.weave(&["rmpeer", "h2"]);
    assert!(!refused.success() && refused.stderr.contains("reachable"), "{refused}");
    assert!(refused.stderr.contains("--force"), "{refused}");
    assert!(count_taken(&h1.weave_ok(&["rmpeer", "--force", "h2"]), "h2") > 0);
    h2.wait("the conflict to be reported", LONG_TIMEOUT, || {
        let page = ipam_page(h2);
        if page.contains("conflict with ") && page.contains("'weave reset'") { Ok(()) } else { Err(page) }
    });
    ends[0].0.reaches(addresses[1], SHORT_TIMEOUT);
    assert_unique_addresses(&lab);
    let flow = flow.finish();
    assert!(flow.longest_gap_ms < 5000.0, "data between h1 and h2 flowed all the time: {flow:?}");
    claims(&["P-18"]);
}

/// A peer is reachable as long as another one says that it is connected to it.
#[test]
fn rmpeer_waits_until_the_neighbours_of_a_killed_peer_have_noticed() {
    let Some(lab) = Lab::start("killed", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch_mesh(&lab, &[]);
    on_each_host(&[h1, h2, h3], |host| drop(allocated_container(host, "c")));
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
    }
    h2.signal_daemon("STOP");
    h3.signal_daemon("KILL");
    h1.wait("the connection with h3 to end", SHORT_TIMEOUT, || {
        let all = h1.connections();
        let ended = all.iter().filter(|c| c.state == "established").count() == 1;
        if ended { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    let outcome = std::thread::scope(|scope| {
        let removal = scope.spawn(|| h1.weave(&["rmpeer", "h3"]));
        h1.wait("the removal to be tried again", SHORT_TIMEOUT, || {
            let tried = h1.log().contains("h3 is reachable: its removal is tried again");
            if tried || removal.is_finished() { Ok(()) } else { Err(h1.log()) }
        });
        h2.signal_daemon("CONT");
        removal.join().unwrap()
    });
    assert!(outcome.success() && count_taken(&outcome.stdout, "h3") > 0, "{outcome}");
}

/// The number that `weave rmpeer` prints.
#[track_caller]
fn count_taken(text: &str, peer: &str) -> u32 {
    let number = text.strip_suffix(&format!(" IPs taken over from {peer}\n")).and_then(|n| n.parse().ok());
    number.unwrap_or_else(|| panic!("`{text}`"))
}

fn name(host: &Host) -> String {
    host.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned()
}
