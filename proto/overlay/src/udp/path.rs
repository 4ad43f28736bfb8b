use std::net::{IpAddr, SocketAddr};

/// What data threads need to send to a neighbour by sleeve.
/// [`Output::PathChanged`](super::Output::PathChanged) announces changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpPath {
    /// Our own address, at which the connection was made or accepted: datagrams leave from it.
    pub local: IpAddr,
    /// The UDP address of the neighbour. An acceptor does not know it before the first heartbeat.
    pub remote: Option<SocketAddr>,
    /// The longest inner IP packet that is sent with the don't-fragment bit.
    pub mtu: usize,
    /// The longest UDP payload that is sent with the don't-fragment bit.
    pub max_payload: usize,
    /// Whether large datagrams without the don't-fragment bit are known to arrive.
    pub stack_fragments: bool,
    /// [`Destination::batched`](crate::Destination::batched): whether datagrams that the kernel cuts from one send are not known to be lost.
    pub batched: bool,
}
