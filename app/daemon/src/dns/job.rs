//! What passes between the threads that read queries and the forwarding task.

use std::net::{IpAddr, SocketAddr};
use std::sync::Weak;

use tokio::sync::oneshot;
use weave_datapath::ServerSocket;

/// A question that is not for us.
pub(super) struct Job {
    pub(super) client: Client,
    pub(super) query: Vec<u8>,
}

/// Whom an answer is sent to.
pub(super) enum Client {
    Udp { socket: Weak<ServerSocket>, to: SocketAddr, local: IpAddr },
    Tcp { from: IpAddr, reply: oneshot::Sender<Vec<u8>> },
}

impl PartialEq for Client {
    /// A connection sends one question at a time, so that questions over TCP are never the same.
    fn eq(&self, other: &Client) -> bool {
        match (self, other) {
            (Client::Udp { socket, to, local }, Client::Udp { socket: socket2, to: to2, local: local2 }) => {
                to == to2 && local == local2 && Weak::ptr_eq(socket, socket2)
            }
            _ => false,
        }
    }
}

/// A message with its length, as one segment.
pub(super) fn with_length(message: &[u8]) -> Vec<u8> {
    // A message has at most 65,535 bytes.
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend((message.len() as u16).to_be_bytes());
    framed.extend_from_slice(message);
    framed
}
