//! A password encrypts traffic and excludes peers without it.

use std::time::Duration;

use weave_lab::{Lab, Topology, claims, throughout};

use crate::common::*;

weave_lab::claims!("F-17", "F-18", "F-19", "F-20");

/// Distinctive payload: what `udp-cast` sends.
const TEXT: &[u8] = b"who is there?";

#[test]
fn encrypted_traffic_is_not_readable_on_the_wire() {
    let Some(lab) = Lab::start("secret", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    // h1 and h3 reach each other over h2 only, so that relayed traffic is tested, too. All spellings, one from the environment.
    lab.cut("h1", "h3");
    let captures = ["h1", "h2", "h3"].map(|device| lab.wire().capture(device));
    launch(h1, &["-password", "wEaVe"], &[]);
    launch(h2, &["--password=wEaVe"], &["h1"]);
    assert!(h3.weave_env(&[("WEAVE_PASSWORD", "wEaVe")], &["launch", "--no-restart", "h2"]).success());
    for (host, n) in [(h1, 1), (h2, 2), (h3, 1)] {
        wait_peers(host, 3);
        host.wait_established(n, LONG_TIMEOUT);
        assert!(host.weave_ok(&["status"]).contains("Encryption: enabled"));
        assert!(
            host.connections()
                .iter()
                .filter(|c| c.state == "established")
                .all(|c| c.info.starts_with("encrypted"))
        );
    }
    let members = attach_each(&[h1, h3]);
    members[0].container.reaches(&members[1].ip, SHORT_TIMEOUT);
    let _ear = members[1].container.listen_cast(None);
    assert_eq!(members[0].container.cast(&members[1].ip, 1), [members[1].ip.clone()]);
    members[0].container.udp(&members[1].container, "10.2.1.3", &[5000]);
    let mac: Vec<u8> = mac_bytes(&members[0].container.mac());

    for (capture, device) in captures.into_iter().zip(["h1", "h2", "h3"]) {
        let seen = capture.finish();
        assert!(seen.frames().len() > 20, "the capture on {device} saw nothing");
        let topology = name_bytes(h2);
        for (needle, what) in [
            (TEXT, "payload"),
            (b"wEaVe", "password"),
            (&mac, "a container's MAC"),
            (&[10, 2, 1, 3, 0x45], "an inner address"),
            (topology.as_slice(), "a peer's name in gossip"),
        ] {
            // The handshake and every sleeve datagram contain peer names in the clear. The search is for gossip after the
            // handshake, in which names are gob strings.
            if what == "a peer's name in gossip" {
                let after: Vec<_> = seen.frames().into_iter().skip(60).collect();
                assert!(
                    !after.iter().any(|f| f.windows(needle.len()).any(|w| w == needle)),
                    "{what} on {device}"
                );
                continue;
            }
            assert_eq!(seen.count(needle), 0, "{what} readable on {device}");
        }
    }
    claims(&["F-17", "F-18"]);
}

#[test]
fn plain_traffic_is_readable_on_the_wire() {
    // Shows that the captures of the test above would have found the text.
    let Some(lab) = Lab::start("plain", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &["--overlays=fastdp,sleeve"]);
    let members = attach_each(&[lab.host("h1"), lab.host("h2")]);
    members[0].container.reaches(&members[1].ip, SHORT_TIMEOUT);
    let capture = lab.wire().capture("h1");
    let _ear = members[1].container.listen_cast(None);
    assert_eq!(members[0].container.cast(&members[1].ip, 1), [members[1].ip.clone()]);
    let seen = capture.finish();
    assert!(seen.count(TEXT) > 0 && seen.count(&mac_bytes(&members[0].container.mac())) > 0);
}

#[test]
fn wrong_and_missing_passwords_are_refused() {
    let Some(lab) = Lab::start("wrong", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &["--password", "wEaVe"], &[]);
    // The option overrides the variable: with the password of the variable h2 would be accepted.
    assert!(
        h2.weave_env(
            &[("WEAVE_PASSWORD", "wEaVe")],
            &["launch", "--no-restart", "--password", "sWordfish", "h1"]
        )
        .success()
    );
    launch(h3, &[], &["h1"]);
    for host in [h2, h3] {
        host.wait("the reason in its status", SHORT_TIMEOUT, || {
            let all = host.connections();
            let reported =
                all.iter().any(|c| c.state != "established" && c.info.to_lowercase().contains("password"));
            if reported { Ok(()) } else { Err(format!("{all:#?}")) }
        });
    }
    step("the accepting peer reports the failed attempts as well");
    for from in ["198.18.0.2", "198.18.0.3"] {
        h1.wait("the reason in the status of the refusing side", SHORT_TIMEOUT, || {
            let page = h1.weave(&["status", "connections"]).stdout;
            let reported = page.lines().any(|l| l.contains(from) && l.to_lowercase().contains("password"));
            if reported { Ok(()) } else { Err(page) }
        });
        let log = h1.log();
        assert!(log.lines().any(|l| l.contains(from) && l.to_lowercase().contains("password")), "{log}");
    }
    throughout("separation", Duration::from_secs(4), || {
        lab.hosts().iter().all(|h| h.connections().iter().all(|c| c.state != "established"))
    });
    let members = attach_each(&[h1, h2, h3]);
    for (a, b) in ordered_pairs(&members) {
        a.container.never_reaches(&b.ip);
    }
    for host in lab.hosts() {
        let mut public = host.command_ok(&["ps", "-eww", "-o", "args"]);
        public.push_str(&host.log());
        public.push_str(&host.weave_ok(&["report"]));
        assert!(
            !public.contains("wEaVe") && !public.contains("sWordfish"),
            "password of {} shown: {public}",
            host.name()
        );
    }

    step("with the right password it is connected immediately");
    h2.weave_ok(&["stop"]);
    assert!(
        h2.weave_env(
            &[("WEAVE_PASSWORD", "other")],
            &["launch", "--no-restart", "--password", "wEaVe", "h1"]
        )
        .success()
    );
    h2.wait_established(1, LONG_TIMEOUT);
    members[1].container.reaches(&members[0].ip, SHORT_TIMEOUT);
    claims(&["F-19", "F-20"]);
}

pub(crate) fn mac_bytes(text: &str) -> Vec<u8> {
    text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect()
}

/// A nickname as a gob string in topology gossip: its length and text.
pub(crate) fn name_bytes(host: &weave_lab::Host) -> Vec<u8> {
    let nickname = host.report().unwrap()["Router"]["NickName"].as_str().unwrap().as_bytes().to_vec();
    [b"NickName".to_vec(), nickname].concat()
}
