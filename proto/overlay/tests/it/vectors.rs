//! The wire format equals that of 2.8.1, byte for byte (sleeve_*.json, overlay_negotiation.json).

use crate::support::{array, bytes, name, peer, vectors};
use serde_json::Value;
use weave_overlay::select::{OverlaySwitch, control_payload, parse_control};
use weave_overlay::udp::{OpenError, Opener, ReplayWindow, Sealer, Session, SessionConfig, sender};
use weave_types::{ConnectionId, ConnectionUid};

fn session(own: u8, remote: u8, outbound: bool, key: Option<[u8; 32]>) -> std::sync::Arc<Session> {
    let (own, remote) = (name(own), name(remote));
    Session::new(SessionConfig { own, remote, conn: ConnectionId(1), uid: ConnectionUid(0), outbound, key })
}

/// Checks that `sealer` builds the packet of the vector, and that `opener` opens it.
fn check_valid(case: &Value, sealer: &Sealer, opener: &Opener, df: bool) {
    let what = case["name"].as_str().unwrap();
    let mut packet = bytes(&case["packet"]);
    let mut buf = vec![0xa5; packet.len()];
    let mut draft = sealer.begin();
    for frame in array(&case["frames"]) {
        let (src, dst) = (peer(&frame["src_peer"]), peer(&frame["dst_peer"]));
        assert!(sealer.push(&mut draft, &mut buf, src, dst, &bytes(&frame["frame"])), "{what}");
    }
    assert!(!sealer.push(&mut draft, &mut buf, name(1), name(2), b""), "{what}: full");
    assert_eq!(sealer.finish(draft, &mut buf, df), Ok(packet.len()), "{what}");
    assert_eq!(hex::encode(&buf), hex::encode(&packet), "{what}");

    assert_eq!(sender(&packet), Some(peer(&case["sender"])));
    let records: Vec<_> = opener.open(&mut packet).expect(what).map(|record| record.expect(what)).collect();
    assert_eq!(records.len(), array(&case["frames"]).len());
    for (record, frame) in records.iter().zip(array(&case["frames"])) {
        assert_eq!((record.src, record.dst), (peer(&frame["src_peer"]), peer(&frame["dst_peer"])), "{what}");
        assert_eq!(record.frame, bytes(&frame["frame"]), "{what}");
    }
}

/// Frames delivered, and the text of the error.
fn open(opener: &Opener, packet: &Value) -> (Vec<String>, String) {
    let mut packet = bytes(packet);
    let (mut frames, mut error) = (Vec::new(), String::new());
    match opener.open(&mut packet) {
        Ok(records) => {
            for record in records {
                match record {
                    Ok(record) => frames.push(hex::encode(record.frame)),
                    Err(e) => error = e.to_string(),
                }
            }
        }
        Err(OpenError::Replayed) => {}
        Err(e) => error = e.to_string(),
    }
    (frames, error)
}

#[test]
fn plain_datagrams_equal_the_vectors() {
    let file = vectors("sleeve_plain");
    let s = session(1, 2, true, None);
    assert_eq!((s.packet_overhead(), s.overhead()), (file["packet_overhead"].as_u64().unwrap() as usize, 62));
    assert_eq!(weave_overlay::udp::RECORD_OVERHEAD as u64, file["frame_overhead"].as_u64().unwrap());
    let sealer = Sealer::new(s);
    let opener = Opener::new(session(2, 1, false, None));
    for case in array(&file["valid"]) {
        check_valid(case, &sealer, &opener, true);
    }
    for case in array(&file["malformed"]) {
        let delivered: Vec<_> = array(&case["frames_delivered"])
            .iter()
            .map(|f| f["frame"].as_str().unwrap().to_owned())
            .collect();
        let error = case["error"].as_str().unwrap().to_owned();
        assert_eq!(open(&opener, &case["packet"]), (delivered, error), "{}", case["name"]);
    }
    assert_eq!(array(&file["valid"]).len(), 6);
}

#[test]
fn encrypted_datagrams_equal_the_vectors() {
    let file = vectors("sleeve_encrypted");
    let key: [u8; 32] = bytes(&file["session_key"]).try_into().unwrap();
    let s = session(1, 2, true, Some(key));
    assert_eq!(s.packet_overhead() as u64, file["packet_overhead"].as_u64().unwrap());
    assert_eq!(s.overhead() as u64, file["overhead_df_encrypted"].as_u64().unwrap());

    let mut checked = 0;
    for outbound in [true, false] {
        let sealer = Sealer::new(session(1, 2, outbound, Some(key)));
        let opener = Opener::new(session(2, 1, !outbound, Some(key)));
        // Both encoders of the sender, in the order of their sequence numbers.
        for case in array(&file["valid"]).iter().filter(|case| case["sender_outbound"] == outbound) {
            if case["seq"].is_u64() {
                check_valid(case, &sealer, &opener, case["df"].as_bool().unwrap());
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 16);

    let opener = Opener::new(session(2, 1, false, Some(key)));
    for case in array(&file["receive_behaviour"]) {
        let what = case["name"].as_str().unwrap();
        let (frames, error) = if what.starts_with("wrong polarity") {
            open(&Opener::new(session(2, 1, true, Some(key))), &case["packet"])
        } else {
            open(&opener, &case["packet"])
        };
        assert_eq!(frames.len() as u64, case["frames_delivered"].as_u64().unwrap(), "{what}");
        assert_eq!(error, case["error"].as_str().unwrap(), "{what}");
    }
}

#[test]
fn replay_window_equals_the_vectors() {
    let file = vectors("sleeve_replay_window");
    let mut window = ReplayWindow::new();
    for (i, step) in array(&file["steps"]).iter().enumerate() {
        assert_eq!(window.accept(step["seq"].as_u64().unwrap()), step["accepted"], "step {i}");
        assert_eq!(window.highest_window(), step["current_window_after"].as_u64().unwrap(), "step {i}");
    }
    assert_eq!(array(&file["steps"]).len(), 26);
}

#[test]
fn overlay_negotiation_equals_the_vectors() {
    let file = vectors("overlay_negotiation");
    for case in array(&file["common_overlays"]) {
        let list = |value: &Value| -> Vec<String> {
            value.as_str().unwrap().split_whitespace().map(str::to_owned).collect()
        };
        let remote = list(&case["peer_feature_value"]);
        match OverlaySwitch::new("peer", &list(&case["own_feature_value"]), Some(&remote), false) {
            Ok(switch) => {
                let common: Vec<_> = switch.common().collect();
                assert_eq!(serde_json::json!(common), case["index_to_overlay"]);
                assert_eq!(case["error"], "");
            }
            Err(error) => assert_eq!(error.to_string(), case["error"].as_str().unwrap()),
        }
    }
    let switch = OverlaySwitch::new(
        "peer",
        &["fastdp".to_owned(), "sleeve".to_owned()],
        Some(&["fastdp".to_owned(), "sleeve".to_owned()]),
        false,
    )
    .unwrap();
    for case in array(&file["control_messages"]) {
        let payload = bytes(&case["mesh_payload"]);
        let (index, tag, body) = parse_control(&payload).unwrap();
        assert_eq!(control_payload(index, tag, body), payload);
        let target = switch.control_target(Some(index)).unwrap();
        let overlay = switch.common().nth(target).unwrap();
        assert!(case["name"].as_str().unwrap().starts_with(overlay), "{}", case["name"]);
        assert_eq!(switch.control_index(target), Some(index));
    }
}
