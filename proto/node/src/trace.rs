//! The gossip channel of `weave trace`: received messages become outputs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use weave_mesh::Channels;
use weave_overlay::forward::FrameWatch;
use weave_trace::{CHANNEL, MAX_MESSAGE, Message};
use weave_types::{Instant, Now, PeerName, TokenBucket};

use crate::output::Output;

/// Limit of the messages of all peers together. A trace causes about four at a peer.
const BURST: u32 = 64;
const INTERVAL: Duration = Duration::from_millis(50);

/// Receiver of the gossip channel.
pub(crate) struct Traces {
    received: VecDeque<(PeerName, Message)>,
    limit: TokenBucket,
    /// Who looks for frames in the data path.
    watches: Vec<Arc<dyn FrameWatch>>,
}

impl Traces {
    pub(crate) fn new() -> Traces {
        Traces { received: VecDeque::new(), limit: TokenBucket::new(BURST, INTERVAL), watches: Vec::new() }
    }

    pub(crate) fn watches(&self) -> &[Arc<dyn FrameWatch>] {
        &self.watches
    }

    pub(crate) fn set_watches(&mut self, watches: Vec<Arc<dyn FrameWatch>>) {
        self.watches = watches;
    }

    /// Passes a received message on. Returns `false` if there was none.
    pub(crate) fn process_output(&mut self, outputs: &mut VecDeque<Output>) -> bool {
        let Some((from, message)) = self.received.pop_front() else { return false };
        outputs.push_back(Output::TraceMessage { from, message });
        true
    }

    /// A malformed message is ignored: the neighbour that passed it on is not to blame.
    fn receive(&mut self, from: PeerName, payload: &[u8], now: Instant) {
        if payload.len() <= MAX_MESSAGE
            && self.limit.try_take(now)
            && let Ok(message) = Message::decode(payload)
        {
            self.received.push_back((from, message));
        }
    }
}

impl Channels for &mut Traces {
    fn names(&self) -> &[&'static str] {
        &[CHANNEL]
    }

    fn on_unicast(&mut self, _: &str, src: PeerName, payload: &[u8], now: Now) -> Result<(), String> {
        self.receive(src, payload, now.mono);
        Ok(())
    }

    // There are only unicasts.

    fn on_broadcast(&mut self, _: &str, _: PeerName, _: &[u8], _: Now) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn on_gossip(&mut self, _: &str, _: &[u8], _: Now) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn state(&mut self, _: &str, _: Now) -> Option<Vec<u8>> {
        None
    }

    fn merge(&mut self, _: &str, _: &mut Vec<u8>, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_traces_are_limited() {
        let now = Now { mono: Instant::from_origin(Duration::from_secs(1)), wall: Duration::ZERO };
        let from = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let message = Message::Collect { id: 7 };
        let mut traces = Traces::new();
        let mut channel = &mut traces;
        for payload in [vec![1; MAX_MESSAGE + 1], vec![9; 20], Vec::new()] {
            assert_eq!(channel.on_unicast(CHANNEL, from, &payload, now), Ok(()), "no connection is closed");
        }
        for _ in 0..1000 {
            assert_eq!(channel.on_unicast(CHANNEL, from, &message.encode(), now), Ok(()));
        }
        let mut outputs = VecDeque::new();
        while traces.process_output(&mut outputs) {}
        assert!((32..=BURST as usize).contains(&outputs.len()), "{}", outputs.len());
        assert!(matches!(&outputs[0], Output::TraceMessage { message: m, .. } if *m == message));
    }
}
