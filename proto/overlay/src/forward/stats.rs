use weave_switch::DropReason;

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// Counters of frames and datagrams since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Frames that the switch dropped, indexed by [`DropReason`].
            pub switch_drops: [u64; DropReason::ALL.len()],
        }

        impl Stats {
            /// All counters except [`switch_drops`](Stats::switch_drops), with their names. Metrics use these names.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }

            /// Why a frame was dropped since the counters were `before`, in words.
            pub(super) fn drop_since(&self, before: &Stats) -> Option<String> {
                let by_switch = DropReason::ALL.iter().zip(self.switch_drops.iter().zip(before.switch_drops));
                let mut by_switch = by_switch.filter(|(_, (now, then))| **now > *then);
                let named = || {
                    let mut rose = self.named().zip(before.named()).filter(|((_, now), (_, then))| now > then);
                    rose.find_map(|((name, _), _)| Some(name.strip_prefix("drop_")?.replace('_', " ")))
                };
                by_switch.next().map(|(reason, _)| reason.to_string()).or_else(named)
            }
        }

        impl std::ops::AddAssign<&Stats> for Stats {
            fn add_assign(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
                for (sum, more) in self.switch_drops.iter_mut().zip(other.switch_drops) {
                    *sum += more;
                }
            }
        }
    };
}

stats! {
    /// Frames from the local bridge; a super-frame counts once.
    local_frames,
    /// Datagrams from the network.
    datagrams_in,
    /// Frames in datagrams of neighbours, control frames included.
    frames_in,
    /// Frames passed to the local bridge.
    injected,
    /// Frames sent to neighbours: segments, and one for each copy of a flooded frame.
    frames_out,
    /// Datagrams sent to neighbours.
    datagrams_out,
    /// ICMP answers to frames that exceed the MTU of a path.
    too_big_answers,
    /// Frames that were fragmented here.
    fragmented,
    /// Dropped: the neighbour's UDP address is not known yet.
    drop_awaiting_contact,
    /// Dropped: exceeds the path MTU, must not be fragmented, and is part of a flood.
    drop_too_big_flood,
    /// Dropped: exceeds the MTU, and no ICMP answer is allowed.
    drop_too_big,
    /// Dropped: larger than a datagram.
    drop_oversize,
    /// Dropped: a packet that may be fragmented, but is malformed.
    drop_unfragmentable,
    /// Dropped: there is no connection to the next hop.
    drop_no_connection,
    /// Dropped: the next hop is the neighbour that sent the frame.
    drop_hairpin,
    /// Dropped: the virtio header does not match the frame.
    drop_bad_offload,
    /// Dropped: the session has no sequence numbers left.
    drop_exhausted,
    /// Datagram dropped: shorter than the sender's name.
    drop_short_datagram,
    /// Datagram dropped: there is no connection to the named sender, or none with the index of warp.
    drop_unknown_sender,
    /// Dropped: a frame from a neighbour whose connection is not confirmed.
    drop_unconfirmed,
    /// Datagram dropped: decryption failed.
    drop_forged,
    /// Datagram dropped: its sequence number was received before.
    drop_replayed,
    /// Rest of a datagram dropped: malformed.
    drop_malformed,
    /// Dropped: a frame from a neighbour without a complete Ethernet header.
    drop_short_frame,
    /// Control frame ("special frame" in docs/spec/data-plane.md 4.3) dropped: malformed, for another peer, or of another
    /// connection.
    drop_special,
    /// Control frame dropped: above the rate limit.
    drop_special_rate,
}
