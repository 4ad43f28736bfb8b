//! What peers send each other, and its encoding (docs/spec/trace.md 2).

use std::net::Ipv4Addr;

use thiserror::Error;
use weave_types::{MacAddr, PeerName};

use crate::flow::{Direction, Endpoint, Flow, Probe};

/// Version of the encoding.
const VERSION: u8 = 1;
/// Maximum length of a text in bytes. Longer ones are cut when they are sent.
pub const MAX_TEXT: usize = 255;
/// Maximum length of a message in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// A message between two peers. `id` identifies the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks a peer to look for the frames of a flow from now on, and where it sends those for peer `toward`.
    Watch {
        /// Identifies the trace.
        id: u64,
        /// The frames.
        flow: Flow,
        /// The last peer of the way.
        toward: PeerName,
    },
    /// Asks for what was seen, and ends the search.
    Collect {
        /// Identifies the trace.
        id: u64,
    },
    /// Answer to [`Message::Watch`].
    Hop {
        /// Identifies the trace.
        id: u64,
        /// The last peer of the way that was asked for.
        toward: PeerName,
        /// What the peer knows.
        hop: Hop,
    },
    /// Answer to [`Message::Collect`].
    Report {
        /// Identifies the trace.
        id: u64,
        /// What the peer has seen.
        report: Report,
    },
    /// Answer to [`Message::Watch`]: the peer does not look for the frames.
    Refused {
        /// Identifies the trace.
        id: u64,
        /// Why, for people.
        reason: String,
    },
}

/// Where a peer sends frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The peer that has the source's Ethernet address, as far as this peer knows.
    pub source_at: Option<PeerName>,
    /// The peer that has the destination's Ethernet address, as far as this peer knows.
    pub destination_at: Option<PeerName>,
    /// How the way goes on; at its end [`NoLink::End`].
    pub next: Result<Link, NoLink>,
}

/// A connection over which frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The peer at the other end.
    pub peer: PeerName,
    /// Whether frames are sent over it. If not, the way would go on here, but for `problem`.
    pub carries_data: bool,
    /// What frames are carried by.
    pub overlay: Overlay,
    /// The longest packet of a container that passes whole; 0 if that is not known.
    pub mtu: u16,
    /// Whether frames are encrypted.
    pub encrypted: bool,
    /// Whether the other end can be asked.
    pub traces: bool,
    /// Why it is not as good as it could be; may be empty.
    pub problem: String,
}

/// Why the way does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoLink {
    /// The way ends at this peer.
    End,
    /// There is no connection that leads on.
    NoRoute(String),
}

/// How a connection carries frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// Not at all.
    None,
    /// The kernel.
    Fastdp,
    /// User space, as 2.8.1 does it.
    Sleeve,
    /// User space, encrypted with AES.
    Warp,
}

impl Overlay {
    const ALL: [Overlay; 4] = [Overlay::None, Overlay::Fastdp, Overlay::Sleeve, Overlay::Warp];

    /// The overlay with this name.
    pub fn named(name: &str) -> Overlay {
        Overlay::ALL.into_iter().find(|overlay| overlay.name() == name).unwrap_or(Overlay::None)
    }

    /// As `weave status connections` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Overlay::None => "none",
            Overlay::Fastdp => "fastdp",
            Overlay::Sleeve => "sleeve",
            Overlay::Warp => "warp",
        }
    }
}

/// Where on a host a frame was seen. `as usize` is the bit in [`Sightings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// It left the container's interface.
    FromContainer,
    /// The bridge passed it to the router.
    FromBridge,
    /// The router passed it to an overlay.
    ToOverlay,
    /// It arrived by an overlay.
    FromOverlay,
    /// The router passed it to the bridge.
    ToBridge,
    /// The bridge passed it to the container's interface.
    ToContainer,
}

/// Where the frames of a trace were seen on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sightings([[u8; 2]; 3]);

impl Sightings {
    /// Notes that a frame was seen.
    pub fn note(&mut self, probe: Probe, direction: Direction, sighting: Sighting) {
        self.0[probe as usize][direction as usize] |= 1 << sighting as u8;
    }

    /// Whether a frame was seen there.
    pub fn has(&self, probe: Probe, direction: Direction, sighting: Sighting) -> bool {
        self.0[probe as usize][direction as usize] & 1 << sighting as u8 != 0
    }

    /// Adds what another has seen on the same host.
    pub fn merge(&mut self, other: &Sightings) {
        for (mine, more) in self.0.as_flattened_mut().iter_mut().zip(other.0.as_flattened()) {
            *mine |= more;
        }
    }
}

/// What a peer has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Where the frames were.
    pub sightings: Sightings,
    /// Why user space has dropped some; at most one reason for each kind of frame and direction.
    pub dropped: Vec<(Probe, Direction, String)>,
    /// Where frames to the destination, and to the source, leave this host.
    pub delivery: [Delivery; 2],
    /// What can drop frames that the bridge forwards; empty if nothing can.
    pub filter: String,
}

/// Where an address is on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// No container here has it.
    #[default]
    Nowhere,
    /// The host itself has it.
    Host,
    /// A container has it.
    Port(Port),
}

/// The end of a container's interface that is on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name of the interface.
    pub name: String,
    /// Whether it is up, and a port of the bridge.
    pub up: bool,
    /// Whether the container's end is up.
    pub running: bool,
    /// Whether frames may bypass the bridge, so that they are not seen here.
    pub bypasses: bool,
}

/// A message that cannot be decoded. Nobody but its sender is to blame, who may be far away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// Of another version.
    #[error("trace message of version {0}")]
    Version(u8),
    /// Ends too early.
    #[error("trace message is too short")]
    Short,
    /// Longer than [`MAX_MESSAGE`], or than its content.
    #[error("trace message is too long")]
    Long,
    /// A number that stands for nothing.
    #[error("trace message has an invalid number")]
    Number,
    /// A text that is not UTF-8.
    #[error("trace message has an invalid text")]
    Text,
}

impl Message {
    /// The trace that the message belongs to.
    pub fn id(&self) -> u64 {
        match self {
            Message::Watch { id, .. }
            | Message::Collect { id }
            | Message::Hop { id, .. }
            | Message::Report { id, .. }
            | Message::Refused { id, .. } => *id,
        }
    }

    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self {
            Message::Watch { .. } => 0,
            Message::Collect { .. } => 1,
            Message::Hop { .. } => 2,
            Message::Report { .. } => 3,
            Message::Refused { .. } => 4,
        };
        let mut out = vec![VERSION, kind];
        out.extend(self.id().to_be_bytes());
        match self {
            Message::Collect { .. } => {}
            Message::Watch { flow, toward, .. } => {
                for end in [flow.source, flow.destination] {
                    out.extend(end.mac.0);
                    out.extend(end.ip.octets());
                }
                out.extend(flow.id.to_be_bytes());
                out.extend(toward.to_bytes());
            }
            Message::Hop { toward, hop, .. } => {
                out.extend(toward.to_bytes());
                // No peer is called zero.
                for at in [hop.source_at, hop.destination_at] {
                    out.extend(at.unwrap_or(PeerName::UNKNOWN).to_bytes());
                }
                match &hop.next {
                    Err(NoLink::End) => out.push(0),
                    Err(NoLink::NoRoute(why)) => {
                        out.push(1);
                        put_text(&mut out, why);
                    }
                    Ok(link) => {
                        out.push(2);
                        out.extend(link.peer.to_bytes());
                        out.push(link.overlay as u8);
                        out.extend(link.mtu.to_be_bytes());
                        out.push(flags([link.carries_data, link.encrypted, link.traces]));
                        put_text(&mut out, &link.problem);
                    }
                }
            }
            Message::Report { report, .. } => {
                out.extend(report.sightings.0.as_flattened());
                let dropped = &report.dropped[..report.dropped.len().min(SLOTS)];
                out.push(dropped.len() as u8);
                for (probe, direction, why) in dropped {
                    out.extend([*probe as u8, *direction as u8]);
                    put_text(&mut out, why);
                }
                for delivery in &report.delivery {
                    match delivery {
                        Delivery::Nowhere => out.push(0),
                        Delivery::Host => out.push(1),
                        Delivery::Port(port) => {
                            out.push(2);
                            put_text(&mut out, &port.name);
                            out.push(flags([port.up, port.running, port.bypasses]));
                        }
                    }
                }
                put_text(&mut out, &report.filter);
            }
            Message::Refused { reason, .. } => put_text(&mut out, reason),
        }
        out
    }

    /// Decodes a message.
    pub fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
        if bytes.len() > MAX_MESSAGE {
            return Err(Malformed::Long);
        }
        let mut input = Reader(bytes);
        match input.byte()? {
            VERSION => {}
            other => return Err(Malformed::Version(other)),
        }
        let kind = input.byte()?;
        let id = u64::from_be_bytes(input.array()?);
        let message = match kind {
            0 => {
                let (source, destination) = (input.endpoint()?, input.endpoint()?);
                let flow = Flow { source, destination, id: u16::from_be_bytes(input.array()?) };
                Message::Watch { id, flow, toward: input.peer()? }
            }
            1 => Message::Collect { id },
            2 => {
                let (toward, source, destination) = (input.peer()?, input.peer()?, input.peer()?);
                let known = |peer| (peer != PeerName::UNKNOWN).then_some(peer);
                let next = match input.byte()? {
                    0 => Err(NoLink::End),
                    1 => Err(NoLink::NoRoute(input.text()?)),
                    2 => Ok(input.link()?),
                    _ => return Err(Malformed::Number),
                };
                let hop = Hop { source_at: known(source), destination_at: known(destination), next };
                Message::Hop { id, toward, hop }
            }
            3 => Message::Report { id, report: input.report()? },
            4 => Message::Refused { id, reason: input.text()? },
            _ => return Err(Malformed::Number),
        };
        if input.0.is_empty() { Ok(message) } else { Err(Malformed::Long) }
    }
}

/// Kinds of frames and directions.
const SLOTS: usize = Probe::ALL.len() * Direction::ALL.len();

fn flags(flags: [bool; 3]) -> u8 {
    let [a, b, c] = flags.map(u8::from);
    a | b << 1 | c << 2
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn peer(&mut self) -> Result<PeerName, Malformed> {
        Ok(PeerName::from_bytes(self.array()?))
    }

    fn endpoint(&mut self) -> Result<Endpoint, Malformed> {
        Ok(Endpoint { mac: MacAddr(self.array()?), ip: Ipv4Addr::from(self.array::<4>()?) })
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let len = usize::from(self.byte()?);
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(std::str::from_utf8(taken).map_err(|_| Malformed::Text)?.to_owned())
    }

    fn flags(&mut self) -> Result<[bool; 3], Malformed> {
        let flags = self.byte()?;
        if flags > 7 { Err(Malformed::Number) } else { Ok([0, 1, 2].map(|bit| flags & 1 << bit != 0)) }
    }

    fn choose<T: Copy>(&mut self, among: &[T]) -> Result<T, Malformed> {
        among.get(usize::from(self.byte()?)).copied().ok_or(Malformed::Number)
    }

    fn link(&mut self) -> Result<Link, Malformed> {
        let peer = self.peer()?;
        let overlay = self.choose(&Overlay::ALL)?;
        let mtu = u16::from_be_bytes(self.array()?);
        let [carries_data, encrypted, traces] = self.flags()?;
        Ok(Link { peer, carries_data, overlay, mtu, encrypted, traces, problem: self.text()? })
    }

    fn delivery(&mut self) -> Result<Delivery, Malformed> {
        Ok(match self.byte()? {
            0 => Delivery::Nowhere,
            1 => Delivery::Host,
            2 => {
                let name = self.text()?;
                let [up, running, bypasses] = self.flags()?;
                Delivery::Port(Port { name, up, running, bypasses })
            }
            _ => return Err(Malformed::Number),
        })
    }

    fn report(&mut self) -> Result<Report, Malformed> {
        let mut sightings = Sightings::default();
        for slot in sightings.0.as_flattened_mut() {
            *slot = self.byte()?;
        }
        let count = usize::from(self.byte()?);
        if count > SLOTS {
            return Err(Malformed::Number);
        }
        let mut dropped = Vec::with_capacity(count);
        for _ in 0..count {
            let (probe, direction) = (self.choose(&Probe::ALL)?, self.choose(&Direction::ALL)?);
            dropped.push((probe, direction, self.text()?));
        }
        let delivery = [self.delivery()?, self.delivery()?];
        Ok(Report { sightings, dropped, delivery, filter: self.text()? })
    }
}
