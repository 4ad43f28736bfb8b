use std::net::SocketAddr;

/// What data threads must know to send to a neighbour by sleeve. Changes are announced by
/// [`Output::PathChanged`](super::Output::PathChanged).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleevePath {
    /// Where the neighbour's datagrams come from; `None` until one came or if we accepted the connection.
    pub remote: Option<SocketAddr>,
    /// The longest inner IP packet that is sent with the don't-fragment bit.
    pub mtu: usize,
    /// The longest UDP payload that is sent with the don't-fragment bit.
    pub max_payload: usize,
    /// Whether large datagrams without the bit are known to arrive.
    pub stack_fragments: bool,
}
