//! A password: nothing readable on the wire, and who does not have it stays outside.

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
    // Relayed traffic counts as well, so h1 and h3 only speak over h2. All spellings, one from the environment.
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
            // The handshake carries names in the clear and so does every sleeve datagram (its sender): only gossip after the
            // handshake is meant, in which names come as text of Go's gob.
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
    // That the captures above would have found something.
    let Some(lab) = Lab::start("plain", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &[]);
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
    // The option beats the variable: with the variable's password h2 would come in.
    assert!(
        h2.weave_env(
            &[("WEAVE_PASSWORD", "wEaVe")],
            &["launch", "--no-restart", "--password", "other", "h1"]
        )
        .success()
    );
    launch(h3, &[], &["h1"]);
    for host in [h2, h3] {
        host.wait("the reason in its status", SHORT_TIMEOUT, || {
            let all = host.connections();
            let told =
                all.iter().any(|c| c.state != "established" && c.info.to_lowercase().contains("password"));
            if told { Ok(()) } else { Err(format!("{all:#?}")) }
        });
    }
    // The other side says it as well, for both, although it dialled nobody.
    for from in ["198.18.0.2", "198.18.0.3"] {
        h1.wait("the reason in the status of the refusing side", SHORT_TIMEOUT, || {
            let page = h1.weave(&["status", "connections"]).stdout;
            let told = page.lines().any(|l| l.contains(from) && l.to_lowercase().contains("password"));
            if told { Ok(()) } else { Err(page) }
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
            !public.contains("wEaVe") && !public.contains("other"),
            "password of {} shown: {public}",
            host.name()
        );
    }

    // With the right one it comes in at once.
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

fn mac_bytes(text: &str) -> Vec<u8> {
    text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect()
}

/// A peer's nickname as it stands in topology gossip: the field's text with its length.
fn name_bytes(host: &weave_lab::Host) -> Vec<u8> {
    let nickname = host.report().unwrap()["Router"]["NickName"].as_str().unwrap().as_bytes().to_vec();
    [b"NickName".to_vec(), nickname].concat()
}
