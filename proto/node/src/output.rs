use std::net::SocketAddr;

use weave_mesh::{Persist, ResolveId};
use weave_overlay::Destination;
use weave_overlay::fastdp::{FastdpPath, SegmentedProbe};
use weave_trace::Message;
use weave_types::{ConnectionId, PeerName};

use crate::event::Event;

/// What the driver must do. Outputs are carried out in order.
#[derive(Debug)]
pub enum Output {
    /// Write this to stable storage before taking the next output: later outputs depend on it.
    Persist(Persist),
    /// The same for address allocation; [`weave_ipam::Persist::durability`] is the required durability.
    PersistIpam(weave_ipam::Persist),
    /// A request to the address allocator is complete.
    Done {
        /// The id that the driver chose.
        request: weave_ipam::RequestId,
        /// Result of the request.
        result: Result<weave_ipam::Answer, weave_ipam::RequestError>,
    },
    /// Look up the addresses of a host; answer with [`Node::handle_resolved`](crate::Node::handle_resolved).
    Resolve {
        /// Identifies the lookup in the answer.
        id: ResolveId,
        /// A host name or an address.
        host: String,
    },
    /// Open a TCP connection; answer with `handle_dialled` or `handle_dial_failed`.
    Dial {
        /// Identifies the connection from now on.
        conn: ConnectionId,
        /// Remote address.
        addr: SocketAddr,
    },
    /// Send these bytes; report with `handle_written` how many the kernel has accepted.
    Write {
        /// The TCP connection.
        conn: ConnectionId,
        /// Bytes to append to the stream.
        bytes: Vec<u8>,
    },
    /// Close the connection with an error if the other host does not acknowledge what was written, within 1.5 seconds.
    Probe {
        /// The TCP connection.
        conn: ConnectionId,
    },
    /// Send what was written, then close. Bytes that arrive afterwards are discarded.
    Close {
        /// The TCP connection.
        conn: ConnectionId,
    },
    /// Send this UDP datagram. If it exceeds the MTU of the interface, report
    /// [`ForwarderEvent::InterfaceMtu`](weave_overlay::ForwarderEvent::InterfaceMtu).
    Datagram {
        /// The connection that it belongs to, and the addresses.
        destination: Destination,
        /// UDP payload.
        bytes: Vec<u8>,
    },
    /// Send UDP datagrams in one send, which the kernel cuts, and if it takes them another one. If it refuses, report
    /// [`ForwarderEvent::BatchRefused`](weave_overlay::ForwarderEvent::BatchRefused), and do not send them otherwise.
    Batch {
        /// The connection that they belong to, and the addresses.
        destination: Destination,
        /// UDP payloads, end to end.
        bytes: Vec<u8>,
        /// Bytes of each.
        segment: u16,
        /// The other datagram.
        plain: Vec<u8>,
    },
    /// Send this frame in a VXLAN packet; report with `handle_kernel_mtu` if it exceeds the MTU of the interface.
    KernelFrame {
        /// The connection that it belongs to.
        conn: ConnectionId,
        /// Outer addresses.
        path: FastdpPath,
        /// Source and destination peer.
        vni: u32,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// Send the first probe by the program at the uplink as a super-frame, with what is left to the kernel, and if that succeeds the second
    /// one in the same way. Without the second one nothing is concluded.
    SegmentedProbe {
        /// Outer addresses.
        path: FastdpPath,
        /// Source and destination peer.
        vni: u32,
        /// The probes.
        probes: [SegmentedProbe; 2],
    },
    /// The tables have changed: publish [`Node::tables`](crate::Node::tables) to the data threads.
    TablesChanged,
    /// The live names have changed: publish [`Registry::names`](weave_dns::Registry::names) of
    /// [`Node::registry`](crate::Node::registry) to the DNS server.
    NamesChanged,
    /// Handle this message of a trace.
    TraceMessage {
        /// The peer that names itself as the sender.
        from: PeerName,
        /// The message.
        message: Message,
    },
    /// Log this event.
    Event(Event),
}
