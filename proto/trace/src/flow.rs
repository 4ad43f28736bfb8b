//! The frames of a trace: how they are made, and how they are recognised on the way.

use std::net::Ipv4Addr;

use weave_switch::checksum::Sum;
use weave_switch::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, Ethernet, Ipv4, PROTO_ICMP};
use weave_types::MacAddr;

const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethernet, IPv4, lengths of addresses (RFC 826).
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u8 = 1;
const ARP_ANSWER: u8 = 2;
const ICMP_HEADER: usize = 8;
const ICMP_ECHO: u8 = 8;
const ICMP_ECHO_ANSWER: u8 = 0;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_FRAGMENTATION_NEEDED: u8 = 4;
const TTL: u8 = 64;
/// Data bytes of the small echo request, as many as those of `ping`.
const SMALL_DATA: usize = 56;

/// One end of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Ethernet address; zero if it is not known.
    pub mac: MacAddr,
    /// IP address of the container.
    pub ip: Ipv4Addr,
}

/// What the frames of one trace have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The container that sends the probes.
    pub source: Endpoint,
    /// The container that answers.
    pub destination: Endpoint,
    /// Identifier of the echo requests.
    pub id: u16,
}

/// A kind of frame. `as usize` is its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// An ARP request, which is a broadcast.
    Arp,
    /// An echo request of the usual size of `ping`.
    Small,
    /// An echo request that fills the MTU of the container's interface, and may not be fragmented.
    Full,
}

impl Probe {
    /// All kinds.
    pub const ALL: [Probe; 3] = [Probe::Arp, Probe::Small, Probe::Full];
}

/// From the source, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the source to the destination.
    There,
    /// Answers.
    Back,
}

impl Direction {
    /// Both, in the order of `as usize`.
    pub const ALL: [Direction; 2] = [Direction::There, Direction::Back];
}

/// A frame of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// A probe or the answer to one.
    Probe(Probe, Direction),
    /// A message to the source: an echo request of full size exceeds this MTU.
    TooBig(u16),
}

impl Flow {
    /// The frame of a probe. `attempt` tells its repetitions apart, `mtu` is that of the source's interface.
    pub fn frame(&self, probe: Probe, attempt: u8, mtu: usize) -> Vec<u8> {
        let data = match probe {
            Probe::Arp => return self.arp_request(),
            Probe::Small => SMALL_DATA,
            Probe::Full => mtu.min(usize::from(u16::MAX)).saturating_sub(Ipv4::HEADER + ICMP_HEADER),
        };
        let total = Ipv4::HEADER + ICMP_HEADER + data;
        let mut frame = Vec::with_capacity(ETHERNET_HEADER + total);
        frame.extend(self.destination.mac.0);
        frame.extend(self.source.mac.0);
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        // Version and length, total length, identification, don't-fragment bit, TTL, protocol, checksum (RFC 791).
        let mut header = [0; Ipv4::HEADER];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        header[4..6].copy_from_slice(&self.id.to_be_bytes());
        header[6..8].copy_from_slice(&Ipv4::DF.to_be_bytes());
        header[8..10].copy_from_slice(&[TTL, PROTO_ICMP]);
        header[12..16].copy_from_slice(&self.source.ip.octets());
        header[16..20].copy_from_slice(&self.destination.ip.octets());
        let checksum = Sum::ZERO.bytes(&header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
        let mut echo = vec![ICMP_ECHO, 0, 0, 0];
        echo.extend(self.id.to_be_bytes());
        echo.extend([attempt, probe as u8]);
        echo.extend((0..data).map(|n| n as u8));
        let checksum = Sum::ZERO.bytes(&echo).checksum();
        echo[2..4].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(echo);
        frame
    }

    fn arp_request(&self) -> Vec<u8> {
        let Flow { source, destination, .. } = self;
        let mut frame = [MacAddr::BROADCAST.0, source.mac.0].concat();
        frame.extend(ETHERTYPE_ARP.to_be_bytes());
        frame.extend(ARP_KIND);
        frame.extend([0, ARP_REQUEST]);
        frame.extend(source.mac.0);
        frame.extend(source.ip.octets());
        frame.extend(MacAddr::ZERO.0);
        frame.extend(destination.ip.octets());
        frame
    }

    /// Whether a frame belongs to the trace. The first 80 bytes of it are enough.
    pub fn recognise(&self, frame: &[u8]) -> Option<Recognised> {
        let ethernet = Ethernet::parse(frame)?;
        match ethernet.type_or_length() {
            ETHERTYPE_ARP => {
                let (operation, sender, target) = arp(ethernet.payload())?;
                let (source, destination) = (self.source.ip, self.destination.ip);
                match operation {
                    ARP_REQUEST if sender.ip == source && target == destination => {
                        Some(Recognised::Probe(Probe::Arp, Direction::There))
                    }
                    ARP_ANSWER if sender.ip == destination && target == source => {
                        Some(Recognised::Probe(Probe::Arp, Direction::Back))
                    }
                    _ => None,
                }
            }
            ETHERTYPE_IPV4 => self.recognise_icmp(ethernet.payload()),
            _ => None,
        }
    }

    /// The end of the packet may be missing.
    fn recognise_icmp(&self, bytes: &[u8]) -> Option<Recognised> {
        let packet = Ipv4::parse(bytes)?;
        if packet.protocol() != PROTO_ICMP || packet.flags_and_offset() & Ipv4::OFFSET != 0 {
            return None;
        }
        let (source, destination) = (self.source.ip, self.destination.ip);
        let message = bytes.get(packet.header_len()..)?;
        let &[kind, code, _, _, a, b, c, d] = message.first_chunk::<ICMP_HEADER>()?;
        match (kind, code) {
            (ICMP_ECHO, 0) if (packet.src(), packet.dst()) == (source, destination) => {
                Some(Recognised::Probe(self.echo([a, b, d])?, Direction::There))
            }
            (ICMP_ECHO_ANSWER, 0) if (packet.src(), packet.dst()) == (destination, source) => {
                Some(Recognised::Probe(self.echo([a, b, d])?, Direction::Back))
            }
            // RFC 1191: the MTU, then the beginning of the packet that is too big.
            (ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED) if packet.dst() == source => {
                let quoted = Ipv4::parse(message.get(ICMP_HEADER..)?)?;
                let echo = message.get(ICMP_HEADER + quoted.header_len()..)?.first_chunk::<8>()?;
                let is_probe = (quoted.src(), quoted.dst()) == (source, destination)
                    && quoted.protocol() == PROTO_ICMP
                    && self.echo([echo[4], echo[5], echo[7]]).is_some();
                is_probe.then_some(Recognised::TooBig(u16::from_be_bytes([c, d])))
            }
            _ => None,
        }
    }

    fn echo(&self, [high, low, probe]: [u8; 3]) -> Option<Probe> {
        let kinds = [Probe::Small, Probe::Full];
        (u16::from_be_bytes([high, low]) == self.id)
            .then(|| kinds.into_iter().find(|kind| *kind as u8 == probe))
            .flatten()
    }

    /// The Ethernet address in an ARP answer to the source.
    pub fn arp_answer(&self, frame: &[u8]) -> Option<MacAddr> {
        if self.recognise(frame) != Some(Recognised::Probe(Probe::Arp, Direction::Back)) {
            return None;
        }
        Some(arp(Ethernet::parse(frame)?.payload())?.1.mac)
    }
}

/// Operation, sender and target address of an ARP packet.
fn arp(packet: &[u8]) -> Option<(u8, Endpoint, Ipv4Addr)> {
    let packet = packet.get(..28)?;
    let (kind, rest) = packet.split_first_chunk::<6>()?;
    let (&[high, operation], rest) = rest.split_first_chunk::<2>()?;
    let (&mac, rest) = rest.split_first_chunk::<6>()?;
    let (&ip, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<6>()?;
    let target = rest.first_chunk::<4>()?;
    let sender = Endpoint { mac: MacAddr(mac), ip: ip.into() };
    (*kind == ARP_KIND && high == 0).then_some((operation, sender, (*target).into()))
}
