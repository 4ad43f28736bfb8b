use std::fmt;
use std::net::SocketAddr;

/// An event for the log. `Display` gives the texts of 2.8.1 where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The neighbour's datagrams arrive from another address, after a NAT rebinding for example.
    AddressChanged(SocketAddr),
    /// A search for the path MTU ended.
    MtuVerified(usize),
    /// The neighbour did not receive a fragmented datagram: packets are fragmented before they are sealed.
    FragmentsLost,
    /// Datagrams are sent one by one, because the kernel refuses batches (`true`), or because they do not arrive.
    BatchesOff(bool),
    /// Datagrams are sent in batches again.
    BatchesOn,
    /// The session has no sequence numbers left.
    Exhausted,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::AddressChanged(addr) => write!(f, "Peer UDP address changed to {addr}"),
            Event::MtuVerified(mtu) => write!(f, "Effective MTU verified at {mtu}"),
            Event::FragmentsLost => f.write_str("fragmented datagrams do not arrive"),
            Event::BatchesOff(true) => {
                f.write_str("the kernel refuses to send datagrams in batches: they are sent one by one, which is slower")
            }
            Event::BatchesOff(false) => f.write_str(
                "datagrams that are sent in batches do not arrive, single ones do: they are sent one by one, which is slower",
            ),
            Event::BatchesOn => f.write_str("datagrams are sent in batches again"),
            Event::Exhausted => f.write_str("sequence numbers exhausted"),
        }
    }
}

/// The neighbour sent an invalid control message. The owner logs the error and ignores the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlMessageError {
    /// The tag is not one of sleeve's.
    #[error("unknown sleeve control message {0}")]
    UnknownTag(u8),
    /// The body has the wrong length.
    #[error("sleeve control message {tag} with {len} bytes")]
    BadLength {
        /// Tag of the message.
        tag: u8,
        /// Bytes after the tag.
        len: usize,
    },
    /// The message acknowledges a heartbeat, but none was sent.
    #[error("sleeve heartbeat acknowledged before any was sent")]
    NothingToAcknowledge,
}
