//! Passes the messages of each gossip channel to its receiver.

use weave_mesh::Channels;
use weave_types::{Now, PeerName};

use crate::dns::DnsChannels;
use crate::ipam::IpamChannels;
use crate::trace::Traces;

/// The channels of address allocation, of names and of traces.
pub(crate) struct NodeChannels<'a> {
    pub(crate) ipam: IpamChannels<'a>,
    pub(crate) dns: DnsChannels<'a>,
    pub(crate) traces: &'a mut Traces,
}

impl NodeChannels<'_> {
    fn receiver(&mut self, channel: &str) -> &mut dyn Channels {
        match channel {
            weave_dns::CHANNEL => &mut self.dns,
            weave_trace::CHANNEL => &mut self.traces,
            _ => &mut self.ipam,
        }
    }
}

impl Channels for NodeChannels<'_> {
    fn names(&self) -> &[&'static str] {
        const IPAM: &str = weave_ipam::CHANNEL;
        const DNS: &str = weave_dns::CHANNEL;
        const TRACE: &str = weave_trace::CHANNEL;
        match (self.ipam.names(), self.dns.names()) {
            ([], []) => &[TRACE],
            ([], _) => &[DNS, TRACE],
            (_, []) => &[IPAM, TRACE],
            _ => &[IPAM, DNS, TRACE],
        }
    }

    fn on_unicast(&mut self, channel: &str, src: PeerName, payload: &[u8], now: Now) -> Result<(), String> {
        self.receiver(channel).on_unicast(channel, src, payload, now)
    }

    fn on_broadcast(
        &mut self,
        channel: &str,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, String> {
        self.receiver(channel).on_broadcast(channel, src, payload, now)
    }

    fn on_gossip(&mut self, channel: &str, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, String> {
        self.receiver(channel).on_gossip(channel, payload, now)
    }

    fn digest(&mut self, channel: &str) -> Option<u64> {
        self.receiver(channel).digest(channel)
    }

    fn state(&mut self, channel: &str, now: Now) -> Option<Vec<u8>> {
        self.receiver(channel).state(channel, now)
    }

    fn merge(&mut self, channel: &str, queued: &mut Vec<u8>, more: &[u8]) {
        self.receiver(channel).merge(channel, queued, more);
    }
}
