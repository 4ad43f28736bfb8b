use weave_switch::frame::{Class, Ethernet, Ipv4, Ipv6, Network, Tcp, Udp, classify, transport};
use weave_types::MacAddr;

use crate::packet::{Packet, tcp, tcp6, udp, udp6};

const TAG: [u8; 4] = [0x81, 0, 0xf1, 0x23];
const OUTER: [u8; 4] = [0x88, 0xa8, 0, 9];

#[test]
fn ethernet_header_fields_are_read() {
    let frame = Packet { tags: vec![TAG], ..tcp() }.build();
    let view = Ethernet::parse(&frame).unwrap();
    assert_eq!(view.dst(), MacAddr([2, 0, 0, 0, 0, 2]));
    assert_eq!(view.src(), MacAddr([2, 0, 0, 0, 0, 1]));
    assert_eq!((view.type_or_length(), view.is_802_3(), view.vlan()), (0x8100, false, Some(0x123)));
    assert_eq!(view.network(), Some((0x0800, 18)));
    assert_eq!(view.payload(), &frame[14..]);
    assert!(Ethernet::parse(&frame[..13]).is_none());

    let network = |tags: &[[u8; 4]], cut: usize| {
        let frame = Packet { tags: tags.to_vec(), ..tcp6() }.build();
        Ethernet::parse(&frame[..cut.min(frame.len())]).unwrap().network()
    };
    assert_eq!(network(&[], 14), Some((0x86dd, 14)));
    assert_eq!(network(&[TAG], 17), None, "half a tag");
    assert_eq!(network(&[TAG], 18), Some((0x86dd, 18)));
    assert_eq!(network(&[OUTER, TAG], 99), Some((0x86dd, 22)));
    assert_eq!(network(&[TAG, TAG, TAG], 99), None, "three tags");
    let untagged = tcp().build();
    assert_eq!(Ethernet::parse(&untagged).unwrap().vlan(), None);
    assert_eq!(Ethernet::parse(&frame[..17]).unwrap().vlan(), None);
    assert_eq!(Ethernet::parse(&frame[..18]).unwrap().vlan(), Some(0x123));

    for (length, is_802_3) in [(0u16, true), (38, true), (0x5ff, true), (0x600, false)] {
        let frame = [&[2; 12], &length.to_be_bytes()[..]].concat();
        assert_eq!(Ethernet::parse(&frame).unwrap().is_802_3(), is_802_3);
    }
}

#[test]
fn ipv4_header_fields_are_read() {
    let packet = Packet { tos: 0x12, flags_and_offset: 0x6123, ip_options: vec![1; 8], ..tcp() };
    let mut bytes = packet.build()[14..].to_vec();
    let total = bytes.len();
    bytes.extend([0; 4]);
    let ip = Ipv4::parse(&bytes).unwrap();
    assert_eq!((ip.header_len(), ip.total_len(), ip.tos(), ip.id()), (28, total, 0x12, 0x1234));
    assert_eq!((ip.ttl(), ip.protocol(), ip.flags_and_offset()), (64, 6, 0x6123));
    assert_eq!((ip.src(), ip.dst()), ([22, 23, 24, 1].into(), [22, 23, 24, 2].into()));
    assert_eq!((ip.header(), ip.payload()), (&bytes[..28], Some(&bytes[28..total])));
    assert!(ip.df() && ip.is_fragment());
    for (word, df, fragment) in
        [(0, false, false), (0x4000, true, false), (0x2000, false, true), (1, false, true)]
    {
        bytes[6..8].copy_from_slice(&u16::to_be_bytes(word));
        let ip = Ipv4::parse(&bytes).unwrap();
        assert_eq!((ip.df(), ip.is_fragment()), (df, fragment));
    }
    assert!(Ipv4::parse(&bytes[..27]).is_none() && Ipv4::parse(&[]).is_none());
    assert!(Ipv4::parse(&bytes[..28]).unwrap().payload().is_none(), "cut short");
    bytes[3] = 27;
    bytes[2] = 0;
    assert!(Ipv4::parse(&bytes).unwrap().payload().is_none(), "shorter than its header");
    bytes[0] = 0x44;
    assert!(Ipv4::parse(&bytes).is_none(), "header too short");
    bytes[0] = 0x65;
    assert!(Ipv4::parse(&bytes).is_none(), "version 6");
}

#[test]
fn ipv6_header_fields_are_read() {
    let bytes = [&tcp6().build()[14..], &[0; 3]].concat();
    let ip = Ipv6::parse(&bytes).unwrap();
    assert_eq!((ip.payload_len(), ip.next_header(), ip.hop_limit()), (132, 6, 64));
    assert_eq!((ip.src(), ip.dst()), (tcp6().src.into(), tcp6().dst.into()));
    assert_eq!(ip.payload(), Some(&bytes[40..172]));
    assert!(Ipv6::parse(&bytes[..171]).unwrap().payload().is_none());
    assert!(Ipv6::parse(&bytes[..39]).is_none());
    assert_eq!(Ipv6::parse(&bytes[..40]).unwrap().payload(), None);
    assert!(Ipv6::parse(&tcp().build()[14..]).is_none(), "version 4");
}

#[test]
fn tcp_and_udp_header_fields_are_read() {
    let packet = Packet { seq: 0x1234_5678, ack: 0x9abc_def0, flags: 0x5a, ..tcp() };
    let bytes = &packet.build()[34..];
    let view = Tcp::parse(bytes).unwrap();
    assert_eq!((view.header_len(), view.src_port(), view.dst_port()), (32, 40000, 80));
    assert_eq!((view.seq(), view.ack(), view.flags()), (0x1234_5678, 0x9abc_def0, 0x5a));
    assert_eq!(view.payload(), packet.payload);
    assert!(
        Tcp::parse(&bytes[..31]).is_none() && Tcp::parse(&bytes[..12]).is_none() && Tcp::parse(&[]).is_none()
    );
    let mut short = bytes.to_vec();
    short[12] = 0x40;
    assert!(Tcp::parse(&short).is_none(), "header too short");

    let bytes = &udp().build()[34..];
    let view = Udp::parse(bytes).unwrap();
    assert_eq!((view.src_port(), view.dst_port(), view.len(), view.is_empty()), (40000, 80, 108, false));
    assert_eq!(view.checksum().to_be_bytes(), bytes[6..8]);
    assert_eq!(view.payload(), udp().payload);
    assert!(Udp::parse(&bytes[..7]).is_none());
    assert!(Udp::parse(&[0, 1, 0, 2, 0, 8, 0, 0]).unwrap().is_empty());
}

#[test]
fn transport_headers_are_found() {
    let packets = [tcp(), tcp6(), udp(), udp6(), Packet { ip_options: vec![1; 12], ..tcp() }];
    for packet in packets {
        for tags in [vec![], vec![TAG], vec![OUTER, TAG]] {
            let packet = Packet { tags, ..packet.clone() };
            let mut frame = packet.build();
            let end = frame.len();
            frame.extend([0; 7]);
            let found = transport(&frame).unwrap();
            assert_eq!((found.l3, found.l4, found.end), (packet.l3(), packet.l4(), end));
            assert_eq!(found.protocol, if packet.udp { 17 } else { 6 });
            assert_eq!(matches!(found.network, Network::V6(_)), packet.v6);
            assert!(transport(&frame[..end - 1]).is_none(), "cut short");
            let length = packet.l3() + if packet.v6 { 4 } else { 2 };
            frame[length..length + 2].fill(0);
            assert_eq!(
                transport(&frame).unwrap().end,
                end + 7,
                "without a length the packet reaches to the end"
            );
        }
    }
    let mut arp = tcp().build();
    arp[13] = 6;
    assert!(transport(&arp).is_none());
    // Nine extension headers, which are too many; eight are not.
    for (count, found) in [(7, true), (8, false)] {
        let mut frame = tcp6().build();
        frame[20] = 60;
        let extensions: Vec<u8> =
            (0..count).flat_map(|i| [if i + 1 == count { 6 } else { 60 }, 0, 0, 0, 0, 0, 0, 0]).collect();
        frame.splice(54..54, extensions);
        let len = u16::from_be_bytes([frame[18], frame[19]]) + 8 * count;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        assert_eq!(transport(&frame).is_some(), found, "{count}");
        frame[18..20].fill(0);
        assert!(transport(&frame).is_none(), "a jumbogram");
    }
}

#[test]
fn frames_are_classified() {
    let df = |packet: Packet| classify(&packet.build());
    assert_eq!(df(tcp()), Class::Ipv4 { df: true });
    assert_eq!(df(Packet { flags_and_offset: 0x2001, ..tcp() }), Class::Ipv4 { df: false });
    assert_eq!(df(tcp6()), Class::Ipv6);
    assert_eq!(df(Packet { tags: vec![TAG], ..tcp6() }), Class::Other);
    let mut frame = tcp().build();
    frame[16..18].copy_from_slice(&[0, 19]);
    assert_eq!(classify(&frame), Class::Other, "total length less than the header");
    let mut special = [0; 20];
    assert_eq!(classify(&special), Class::Control);
    special[11] = 1;
    assert_eq!(classify(&special), Class::Other);
    special[11] = 0;
    special[5] = 1;
    assert_eq!(classify(&special), Class::Other);
}
