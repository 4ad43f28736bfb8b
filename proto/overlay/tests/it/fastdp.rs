//! Replays the vectors of fastdp.

use std::net::Ipv4Addr;

use weave_overlay::fastdp::{
    FastdpControl, FastdpControlConfig, FastdpPath, KERNEL_FRAME_HEAD, KernelFrame, Output,
};
use weave_types::{ConnectionUid, Instant, ShortId};

use crate::support::{array, bytes, vectors};

fn control(uid: u64, mtu: usize) -> FastdpControl {
    let path =
        FastdpPath { local: Ipv4Addr::new(192, 0, 2, 7), remote: Ipv4Addr::new(192, 0, 2, 1), port: 6784 };
    let mut control = FastdpControl::new(FastdpControlConfig { uid: ConnectionUid(uid), path, mtu });
    control.confirm(Instant::ORIGIN);
    control
}

fn heartbeat(control: &mut FastdpControl) -> Vec<u8> {
    match control.poll_output() {
        Some(Output::Frame(frame)) => frame,
        other => panic!("not a heartbeat: {other:?}"),
    }
}

#[test]
fn heartbeats_equal_those_of_the_original() {
    let vectors = vectors("fastdp_heartbeat");
    assert!(array(&vectors["frames"]).len() >= 5);
    for vector in array(&vectors["frames"]) {
        let uid = u64::from_str_radix(vector["connection_uid"].as_str().unwrap(), 16).unwrap();
        let mtu = usize::try_from(vector["datapath_mtu"].as_u64().unwrap()).unwrap();
        let frame = heartbeat(&mut control(uid, mtu));
        assert_eq!(frame.len() as u64, vector["frame_len"].as_u64().unwrap());
        assert_eq!(frame[..24], bytes(&vector["first_24_bytes"]));
        assert!(frame[24..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_original_s_conditions_for_a_heartbeat() {
    let vectors = vectors("fastdp_heartbeat");
    assert!(array(&vectors["receive"]).len() >= 5);
    let number = |vector: &serde_json::Value, key: &str| vector[key].as_u64().unwrap();
    for vector in array(&vectors["receive"]) {
        let mut receiver = control(number(vector, "our_uid"), 1376);
        heartbeat(&mut receiver);
        let wrong_uid = vector["name"].as_str().unwrap().contains("wrong uid");
        let uid = number(vector, "our_uid") + u64::from(wrong_uid);
        let mut head = [0; KERNEL_FRAME_HEAD];
        head[14..22].copy_from_slice(&uid.to_be_bytes());
        head[22..24].copy_from_slice(&(number(vector, "declared_len") as u16).to_be_bytes());
        let id = ShortId::new(1).unwrap();
        let len = number(vector, "frame_len") as usize;
        if len < 24 {
            head[23] = 0;
        }
        let from = Ipv4Addr::new(192, 0, 2, 9);
        let frame = KernelFrame { src: id, dst: id, from, port: 6784, len, head };
        receiver.handle_frame(&frame, Instant::ORIGIN);
        receiver.handle_frame(&frame, Instant::ORIGIN);
        let outputs: Vec<Output> = std::iter::from_fn(|| receiver.poll_output()).collect();
        let acks = outputs.iter().filter(|o| matches!(o, Output::Control { tag: 0, .. })).count() as u64;
        assert_eq!(acks, number(vector, "acks_after_second_copy"), "{vector}");
        let path = receiver.path();
        assert_eq!(format!("{}:{}", path.remote, path.port), vector["remote_addr_after"], "{vector}");
    }
}
