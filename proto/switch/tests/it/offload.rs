use weave_switch::offload::OffloadError;
use weave_switch::{Csum, Gso, GsoKind, Offload};

fn full(kind: GsoKind) -> Offload {
    let gso = Gso { kind, size: 0x0578, hdr_len: 0x0042 };
    Offload { csum: Some(Csum { start: 0x0022, offset: 0x0010 }), gso: Some(gso) }
}

fn raw(flags: u8, kind: u8, words: [u16; 4]) -> Vec<u8> {
    [vec![flags, kind], words.iter().flat_map(|w| w.to_ne_bytes()).collect()].concat()
}

#[test]
fn virtio_headers_round_trip() {
    let words = [0x0042, 0x0578, 0x0022, 0x0010];
    for (kind, number) in [(GsoKind::TcpV4, 1), (GsoKind::TcpV6, 4), (GsoKind::Udp, 5)] {
        assert_eq!(full(kind).to_virtio().to_vec(), raw(1, number, words));
        assert_eq!(Offload::from_virtio(&raw(1, number, words)), Ok(full(kind)));
        // With ECN, and with more than ten bytes.
        assert_eq!(Offload::from_virtio(&raw(1, number | 0x80, words)), Ok(full(kind)));
        let mrg = full(kind).to_virtio_mrg();
        assert_eq!(mrg.to_vec(), [raw(1, number, words), vec![0, 0]].concat());
        assert_eq!(Offload::from_virtio(&mrg), Ok(full(kind)));
    }
    let csum_only = Offload { gso: None, ..full(GsoKind::Udp) };
    assert_eq!(csum_only.to_virtio().to_vec(), raw(1, 0, [0, 0, 0x22, 0x10]));
    assert_eq!(Offload::from_virtio(&raw(1, 0, words)), Ok(csum_only));
    let gso_only = Offload { csum: None, ..full(GsoKind::Udp) };
    assert_eq!(gso_only.to_virtio().to_vec(), raw(0, 5, [0x42, 0x578, 0, 0]));
    assert_eq!(Offload::from_virtio(&raw(0, 5, words)), Ok(gso_only));
    assert_eq!(Offload::NONE.to_virtio(), [0; 10]);
    // A header that marks the checksum as valid requires no further work.
    assert_eq!(Offload::from_virtio(&raw(2, 0, words)), Ok(Offload::NONE));
}

#[test]
fn invalid_virtio_headers_are_rejected() {
    for len in 0..10 {
        assert_eq!(Offload::from_virtio(&[0; 10][..len]), Err(OffloadError::TooShort));
    }
    for kind in (0..=255).filter(|kind| ![0, 1, 4, 5].contains(&(kind & 0x7f))) {
        assert_eq!(Offload::from_virtio(&raw(1, kind, [0; 4])), Err(OffloadError::UnknownGso(kind)));
    }
    assert_eq!(OffloadError::UnknownGso(3).to_string(), "unknown segmentation kind 0x03");
}

#[test]
fn offsets_are_adjusted_for_a_vlan_tag() {
    let shifted = full(GsoKind::TcpV4).shifted(4);
    assert_eq!(shifted.csum, Some(Csum { start: 0x26, offset: 0x10 }));
    assert_eq!(shifted.gso, Some(Gso { kind: GsoKind::TcpV4, size: 0x578, hdr_len: 0x46 }));
    assert_eq!(Offload::NONE.shifted(4), Offload::NONE);
    let csum = Some(Csum { start: 0xffff, offset: 0 });
    assert_eq!(Offload { csum, gso: None }.shifted(4).csum, csum);
}
