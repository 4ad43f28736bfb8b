//! A simple, independent way to build and parse packets, as a reference for the code under test.

use weave_switch::{Csum, Gso, GsoKind, Offload};

/// RFC 1071, word by word.
pub(crate) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) macs: [u8; 12],
    pub(crate) tags: Vec<[u8; 4]>,
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    pub(crate) src: [u8; 16],
    pub(crate) dst: [u8; 16],
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    pub(crate) flags_and_offset: u16,
    pub(crate) ip_options: Vec<u8>,
    pub(crate) ports: (u16, u16),
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const DF: u16 = 0x4000;

/// A data segment of 100 bytes over IPv4.
pub(crate) fn tcp() -> Packet {
    let addr = |last| std::array::from_fn(|i| if i == 15 { last } else { 10 + i as u8 });
    Packet {
        macs: [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1],
        tags: vec![],
        v6: false,
        udp: false,
        src: addr(1),
        dst: addr(2),
        tos: 0,
        ttl: 64,
        id: 0x1234,
        flags_and_offset: DF,
        ip_options: vec![],
        ports: (40000, 80),
        seq: 1000,
        ack: 77,
        flags: 0x10,
        window: 501,
        urgent: 0,
        options: vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8],
        payload: bytes(100),
    }
}

pub(crate) fn tcp6() -> Packet {
    Packet { v6: true, id: 0, flags_and_offset: 0, ..tcp() }
}

pub(crate) fn udp() -> Packet {
    Packet { udp: true, seq: 0, ack: 0, flags: 0, window: 0, options: vec![], ..tcp() }
}

pub(crate) fn udp6() -> Packet {
    Packet { v6: true, id: 0, flags_and_offset: 0, ..udp() }
}

/// Bytes that differ from their neighbours at any distance below 251.
pub(crate) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

impl Packet {
    pub(crate) fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub(crate) fn l4(&self) -> usize {
        self.l3() + if self.v6 { 40 } else { 20 + self.ip_options.len() }
    }

    pub(crate) fn header_len(&self) -> usize {
        self.l4() + if self.udp { 8 } else { 20 + self.options.len() }
    }

    fn protocol(&self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    fn field(&self) -> usize {
        if self.udp { 6 } else { 16 }
    }

    pub(crate) fn pseudo(&self, l4_len: usize) -> Vec<u8> {
        let addr = if self.v6 { 0 } else { 12 };
        let mut pseudo = [&self.src[addr..], &self.dst[addr..]].concat();
        pseudo.extend((l4_len as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        pseudo
    }

    fn transport(&self) -> Vec<u8> {
        let mut l4 = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        if self.udp {
            l4.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            l4.extend([0, 0]);
        } else {
            l4.extend(self.seq.to_be_bytes());
            l4.extend(self.ack.to_be_bytes());
            l4.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
            l4.extend(self.window.to_be_bytes());
            l4.extend([0, 0]);
            l4.extend(self.urgent.to_be_bytes());
            l4.extend(&self.options);
        }
        l4.extend(&self.payload);
        l4
    }

    fn assemble(&self, l4: &[u8]) -> Vec<u8> {
        let mut frame = self.macs.to_vec();
        for tag in &self.tags {
            frame.extend(tag);
        }
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60 | self.tos >> 4, self.tos << 4, 0, 7]);
            frame.extend((l4.len() as u16).to_be_bytes());
            frame.extend([self.protocol(), self.ttl]);
            frame.extend([self.src, self.dst].concat());
        } else {
            let header_len = 20 + self.ip_options.len();
            let mut ip = vec![0x40 | (header_len / 4) as u8, self.tos];
            ip.extend(((header_len + l4.len()) as u16).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend(self.flags_and_offset.to_be_bytes());
            ip.extend([self.ttl, self.protocol(), 0, 0]);
            ip.extend([&self.src[12..], &self.dst[12..]].concat());
            ip.extend(&self.ip_options);
            let sum = !naive_sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        frame.extend(l4);
        frame
    }

    /// The frame with complete checksums.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut l4 = self.transport();
        let sum = !naive_sum(&[self.pseudo(l4.len()), l4.clone()].concat());
        let sum = if sum == 0 && self.udp { 0xffff } else { sum };
        let field = self.field();
        l4[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        self.assemble(&l4)
    }

    /// The frame as a kernel sends it with checksum offload: the checksum field contains the sum of the pseudo header.
    pub(crate) fn partial(&self) -> (Vec<u8>, Offload) {
        let mut l4 = self.transport();
        let sum = naive_sum(&self.pseudo(l4.len()));
        let field = self.field();
        l4[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let csum = Csum { start: self.l4() as u16, offset: field as u16 };
        (self.assemble(&l4), Offload { csum: Some(csum), gso: None })
    }

    /// The same as a super-frame with segments of `size` bytes.
    pub(crate) fn gso(&self, size: u16) -> (Vec<u8>, Offload) {
        let kind = match (self.udp, self.v6) {
            (true, _) => GsoKind::Udp,
            (false, false) => GsoKind::TcpV4,
            (false, true) => GsoKind::TcpV6,
        };
        let (frame, offload) = self.partial();
        let gso = Gso { kind, size, hdr_len: self.header_len() as u16 };
        (frame, Offload { gso: Some(gso), ..offload })
    }

    /// Parses a frame of the kinds above, and checks its lengths and checksums.
    pub(crate) fn read(frame: &[u8]) -> Packet {
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let mut tags = vec![];
        let mut at = 12;
        while [0x8100, 0x88a8].contains(&word(at)) {
            tags.push(frame[at..at + 4].try_into().unwrap());
            at += 4;
        }
        let v6 = word(at) == 0x86dd;
        let l3 = at + 2;
        let (l4, len, udp) = if v6 {
            (l3 + 40, 40 + usize::from(word(l3 + 4)), frame[l3 + 6] == 17)
        } else {
            let header_len = usize::from(frame[l3] & 15) * 4;
            assert_eq!(naive_sum(&frame[l3..l3 + header_len]), 0xffff, "IPv4 header checksum");
            (l3 + header_len, usize::from(word(l3 + 2)), frame[l3 + 9] == 17)
        };
        assert_eq!(l3 + len, frame.len(), "length in the IP header");
        let (mut src, mut dst) = (tcp().src, tcp().dst);
        if v6 {
            src.copy_from_slice(&frame[l3 + 8..l3 + 24]);
            dst.copy_from_slice(&frame[l3 + 24..l3 + 40]);
        } else {
            src[12..].copy_from_slice(&frame[l3 + 12..l3 + 16]);
            dst[12..].copy_from_slice(&frame[l3 + 16..l3 + 20]);
        }
        let body = if udp { l4 + 8 } else { l4 + usize::from(frame[l4 + 12] >> 4) * 4 };
        let long = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
        let packet = Packet {
            macs: frame[..12].try_into().unwrap(),
            tags,
            v6,
            udp,
            src,
            dst,
            tos: if v6 { frame[l3] << 4 | frame[l3 + 1] >> 4 } else { frame[l3 + 1] },
            ttl: if v6 { frame[l3 + 7] } else { frame[l3 + 8] },
            id: if v6 { 0 } else { word(l3 + 4) },
            flags_and_offset: if v6 { 0 } else { word(l3 + 6) },
            ip_options: if v6 { vec![] } else { frame[l3 + 20..l4].to_vec() },
            ports: (word(l4), word(l4 + 2)),
            seq: if udp { 0 } else { long(l4 + 4) },
            ack: if udp { 0 } else { long(l4 + 8) },
            flags: if udp { 0 } else { frame[l4 + 13] },
            window: if udp { 0 } else { word(l4 + 14) },
            urgent: if udp { 0 } else { word(l4 + 18) },
            options: if udp { vec![] } else { frame[l4 + 20..body].to_vec() },
            payload: frame[body..].to_vec(),
        };
        if udp {
            assert_eq!(usize::from(word(l4 + 4)), frame.len() - l4, "length in the UDP header");
            assert_ne!(word(l4 + 6), 0, "UDP checksum missing");
        }
        let covered = [packet.pseudo(frame.len() - l4), frame[l4..].to_vec()].concat();
        assert_eq!(naive_sum(&covered), 0xffff, "transport checksum");
        packet
    }
}
