use std::net::Ipv4Addr;
use std::time::Duration;

use weave_host::{FrameSocket, Netlink};

use crate::support::*;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 32, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 32, 0, 2);

/// An Ethernet header with this type, and a packet.
fn frame(kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &kind, packet].concat()
}

fn ip(protocol: u8, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let header = [0x45, 0, 0, 60, 0, 0, 0, 0, 64, protocol, 0, 0];
    let packet = [&header[..], &from.octets(), &to.octets(), &[0; 40]].concat();
    frame([8, 0], &packet)
}

fn arp(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let kind = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1];
    frame([8, 6], &[&kind[..], &from.octets(), &[0; 6], &to.octets(), &[0; 18]].concat())
}

#[test]
fn only_arp_and_icmp_of_the_addresses_are_seen() {
    host(|| {
        sh("ip link add veth-a type veth peer name veth-b; ip link set veth-a up; ip link set veth-b up");
        sh("for d in veth-a veth-b; do echo 1 > /proc/sys/net/ipv6/conf/$d/disable_ipv6; done");
        let mut netlink = Netlink::open().unwrap();
        let [a, b] = ["veth-a", "veth-b"].map(|name| netlink.link(name).unwrap().unwrap().index);
        let sender = FrameSocket::open(a, [OWN, OTHER]).unwrap();
        let everywhere = FrameSocket::open(0, [OWN, OTHER]).unwrap();
        let third = Ipv4Addr::new(10, 32, 0, 3);
        let wanted = [ip(1, OWN, third), ip(1, third, OTHER), arp(third, OTHER), arp(OWN, third)];
        for frame in
            [ip(17, OWN, OTHER), ip(1, third, third), arp(third, third), frame([0x88, 0xb5], &[0; 46])]
        {
            sender.send(&frame).unwrap();
        }
        for frame in &wanted {
            sender.send(frame).unwrap();
            for (link, outgoing) in [(a, true), (b, false)] {
                let seen = everywhere.receive(TIMEOUT).unwrap().unwrap();
                assert_eq!((seen.link, seen.outgoing), (link, outgoing));
                assert_eq!(&seen.bytes, frame);
            }
        }
        assert_eq!(everywhere.receive(Duration::ZERO).unwrap(), None);
        let long = [ip(1, OWN, OTHER), vec![0; 1000]].concat();
        sender.send(&long).unwrap();
        assert_eq!(everywhere.receive(TIMEOUT).unwrap().unwrap().bytes, long[..128]);
        sh("ip link set veth-a down");
        assert!(sender.send(&wanted[0]).is_err());
    });
}
