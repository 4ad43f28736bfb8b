use std::net::SocketAddr;

use weave_switch::SwitchEvent;
use weave_types::{ConnectionId, PeerName};

use crate::fastdp::SegmentedProbe;
use crate::segmentation::ArrivedSegments;
use crate::select::Overlay;
use crate::udp::ControlFrame;

/// What a data thread reports to the owner of the [`Tables`](crate::forward::Tables).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwarderEvent {
    /// An event for the MAC table or the log.
    Switch(SwitchEvent),
    /// A control frame arrived: for the connection's [`UdpControl`](crate::udp::UdpControl). Limited to about 100 a
    /// second for each connection.
    Control {
        /// The connection whose session authenticated the frame.
        conn: ConnectionId,
        /// The overlay of that session: sleeve or warp.
        overlay: Overlay,
        /// The parsed frame.
        frame: ControlFrame,
        /// UDP source address of the datagram.
        from: SocketAddr,
    },
    /// Data moves between this peer and a neighbour, after a time without any: for the connection's
    /// [`UdpControl`](crate::udp::UdpControl).
    Traffic {
        /// The connection.
        conn: ConnectionId,
        /// The overlay: sleeve or warp.
        overlay: Overlay,
    },
    /// Packets of a probe have arrived by fastdp: for the connection's [`FastdpControl`](crate::fastdp::FastdpControl).
    SegmentedProbe {
        /// The peer that has sent them, if it is no other that says so: nothing authenticates them but the UID of the connection.
        src: PeerName,
        /// The probe.
        probe: SegmentedProbe,
        /// Which of its packets have arrived.
        arrived: ArrivedSegments,
    },
    /// The kernel refused to send datagrams in a batch that it had to cut, and has sent them one by one: for the connection's
    /// [`UdpControl`](crate::udp::UdpControl)s. The driver creates this event.
    BatchRefused {
        /// The connection that the datagrams were for.
        conn: ConnectionId,
    },
    /// The kernel refused a datagram with the don't-fragment bit because it exceeds the MTU of the interface: for the
    /// connection's [`UdpControl`](crate::udp::UdpControl)s. The driver creates this event. It may rate-limit the
    /// refusals of data, but reports every refusal of a datagram that `UdpControl` itself sent. What ICMP messages say about
    /// a path must not cause it, because nobody has authenticated them.
    InterfaceMtu {
        /// The connection that the datagram was for.
        conn: ConnectionId,
        /// Largest IP packet of the interface in bytes, outer IP header included.
        mtu: u16,
    },
}
