//! Which overlays a connection has, and which one it uses (docs/spec/data-plane.md 3, docs/spec/mesh.md 6).
//!
//! Two orders must not be confused. The *index* of an overlay is its position in the list of the overlays that both sides
//! have, in the order in which they are advertised: control messages carry it, so both sides must agree on it. The
//! *preference* is local to each side: [`preference`].

use std::collections::VecDeque;

/// The UDP encapsulation of 2.8.1.
pub const SLEEVE: &str = "sleeve";
/// VXLAN by the kernel.
pub const FASTDP: &str = "fastdp";
/// Batches of frames, always encrypted.
pub const WARP: &str = "warp";

/// How frames are sent to a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlay {
    /// By user space, with the UDP encapsulation of 2.8.1.
    Sleeve,
    /// By the kernel, in VXLAN packets.
    Fastdp,
    /// By user space, in datagrams of warp.
    Warp,
}

/// Control messages have one byte for the index.
const MAX_COMMON: usize = 256;

/// Rank of an overlay; the lowest is preferred. Overlays that this version does not know come last, in their order.
///
/// On a connection that must be encrypted `fastdp` is the last resort: without ESP it is never established there.
pub fn preference(overlay: &str, encrypted: bool) -> u8 {
    match (overlay, encrypted) {
        (FASTDP, false) | (WARP, true) => 0,
        (WARP, false) | (SLEEVE, true) => 1,
        (SLEEVE, false) | (FASTDP, true) => 2,
        _ => 3,
    }
}

/// The two sides share no overlay: the connection fails and is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no overlays in common with peer")]
pub struct NoCommonOverlay;

/// A control message from the neighbour cannot be dispatched to an overlay. The owner logs the error and ignores the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DispatchError {
    /// The message is shorter than index and tag.
    #[error("overlay control message of {len} bytes")]
    TooShort {
        /// Bytes after the mesh's tag.
        len: usize,
    },
    /// The connection has fewer overlays.
    #[error("overlay control message for overlay {index} of {overlays}")]
    IndexOutOfRange {
        /// Index in the message.
        index: u8,
        /// Number of overlays of the connection.
        overlays: usize,
    },
    /// The message has an index although the peer advertised no overlays, or has none although it did.
    #[error("overlay control message in the wrong form")]
    IndexMismatch,
    /// The overlay has failed or could not be prepared.
    #[error("overlay control message for dead overlay {index}")]
    OverlayFailed {
        /// Index in the message.
        index: u8,
    },
}

/// Builds the payload of mesh message 7 (docs/spec/data-plane.md 3.3).
pub fn control_payload(index: u8, tag: u8, body: &[u8]) -> Vec<u8> {
    [&[index, tag], body].concat()
}

/// Splits the payload of mesh message 7 into index, tag and body.
pub fn parse_control(payload: &[u8]) -> Result<(u8, u8, &[u8]), DispatchError> {
    match payload {
        [index, tag, body @ ..] => Ok((*index, *tag, body)),
        _ => Err(DispatchError::TooShort { len: payload.len() }),
    }
}

/// What the owner must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The first overlay is established, and with it the connection. Emitted once.
    Established,
    /// Frames are sent by another overlay. 2.8.1 logs `overlay_switch ->[<peer>] using <name>`.
    BestChanged {
        /// Position in the common list.
        index: usize,
        /// Name of the overlay.
        name: String,
    },
    /// The path of no overlay works. The connection goes on: data should take another route until [`Output::PathUp`].
    PathDown,
    /// The path of an overlay works again.
    PathUp,
    /// No overlay is left: the connection must end, for this reason. This is the last output.
    Failed(String),
}

/// The overlays of one connection.
#[derive(Debug)]
pub struct OverlaySwitch {
    peer: String,
    encrypted: bool,
    /// Whether the peer advertised overlays; otherwise control messages carry no index.
    indexed: bool,
    overlays: Vec<OverlayState>,
    /// Overlays that only one side has, and whether it is this side, for [`reason`](OverlaySwitch::reason).
    missing: Vec<(String, bool)>,
    best: Option<usize>,
    established: bool,
    /// Whether [`Output::PathDown`] is the latest word.
    path_down: bool,
    failed: bool,
    outputs: VecDeque<Output>,
}

/// An overlay that both sides have.
#[derive(Debug)]
struct OverlayState {
    name: String,
    /// Why the overlay failed, if it did.
    error: Option<String>,
    established: bool,
    on_hold: bool,
}

impl OverlaySwitch {
    /// Creates the state of a connection to `peer` (as logs name it). `own` is the list that this side advertises; `remote` is
    /// the peer's, `None` if it advertised none and has only sleeve. `encrypted` is whether frames must be encrypted.
    pub fn new(
        peer: &str,
        own: &[String],
        remote: Option<&[String]>,
        encrypted: bool,
    ) -> Result<OverlaySwitch, NoCommonOverlay> {
        let has = |name: &String| match remote {
            Some(remote) => remote.contains(name),
            None => name == SLEEVE,
        };
        let state = |name: &String| OverlayState {
            name: name.clone(),
            error: None,
            established: false,
            on_hold: false,
        };
        let overlays: Vec<OverlayState> =
            own.iter().filter(|name| has(name)).map(state).take(MAX_COMMON).collect();
        if overlays.is_empty() {
            return Err(NoCommonOverlay);
        }
        let own_only = own.iter().filter(|name| !has(name)).map(|name| (name.clone(), true));
        // Other names of the peer are unknown here and not shown.
        let remote_only = remote
            .unwrap_or_default()
            .iter()
            .filter(|name| !own.contains(name) && [SLEEVE, FASTDP, WARP].contains(&name.as_str()));
        let missing = own_only.chain(remote_only.map(|name| (name.clone(), false))).collect();
        let mut switch = OverlaySwitch {
            peer: peer.to_owned(),
            encrypted,
            indexed: remote.is_some(),
            overlays,
            missing,
            best: None,
            established: false,
            path_down: false,
            failed: false,
            outputs: VecDeque::new(),
        };
        switch.best = switch.choose();
        Ok(switch)
    }

    /// The overlays that both sides have; the position is the index in control messages. The owner prepares all of them and
    /// reports failures to [`handle_error`](OverlaySwitch::handle_error).
    pub fn common(&self) -> impl Iterator<Item = &str> {
        self.overlays.iter().map(|overlay| overlay.name.as_str())
    }

    /// The index that precedes a control message of the overlay at `index`; `None` for a peer that advertised no overlays.
    pub fn control_index(&self, index: usize) -> Option<u8> {
        if self.indexed { u8::try_from(index).ok() } else { None }
    }

    /// The position of the overlay that a control message with this index, or without one, is for.
    pub fn control_target(&self, index: Option<u8>) -> Result<usize, DispatchError> {
        let index = match index {
            Some(index) if self.indexed => index,
            None if !self.indexed => 0,
            _ => return Err(DispatchError::IndexMismatch),
        };
        match self.overlays.get(usize::from(index)) {
            None => Err(DispatchError::IndexOutOfRange { index, overlays: self.overlays.len() }),
            Some(OverlayState { error: Some(_), .. }) => Err(DispatchError::OverlayFailed { index }),
            Some(_) => Ok(usize::from(index)),
        }
    }

    /// The neighbour receives the datagrams of the overlay.
    ///
    /// # Panics
    /// If `index` is not in the common list; the same applies to the other `handle_` functions.
    pub fn handle_established(&mut self, index: usize) {
        let overlay = &mut self.overlays[index];
        overlay.established = overlay.error.is_none();
        if overlay.established && !self.established && !self.failed {
            self.established = true;
            self.outputs.push_back(Output::Established);
        }
        self.update();
    }

    /// The overlay could not be prepared or has failed. It is not used again on this connection. 2.8.1 logs
    /// `overlay_switch ->[<peer>] <name> <error>`.
    pub fn handle_error(&mut self, index: usize, error: &str) {
        self.overlays[index].error.get_or_insert_with(|| error.to_owned());
        self.update();
    }

    /// The path of the overlay has failed or recovered.
    pub fn handle_health(&mut self, index: usize, healthy: bool) {
        self.overlays[index].on_hold = !healthy;
        self.update();
    }

    /// The overlay that frames are sent with: index and name.
    pub fn best(&self) -> Option<(usize, &str)> {
        self.best.map(|index| (index, self.overlays[index].name.as_str()))
    }

    /// Whether datagrams of the overlay have passed both ways.
    pub fn is_established(&self, index: usize) -> bool {
        self.overlays.get(index).is_some_and(|overlay| overlay.established)
    }

    /// The next output, or `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The overlay in use, and why preferred ones are not, for people: `sleeve: fastdp not offered by peer`.
    pub fn reason(&self) -> String {
        let rank = |name: &str| preference(name, self.encrypted);
        let best = self.best().map(|(index, name)| (rank(name), index));
        let mut better: Vec<((u8, usize), String)> = Vec::new();
        for (index, overlay) in self.overlays.iter().enumerate() {
            let OverlayState { name, error, established, on_hold } = overlay;
            let why = match error {
                Some(error) => format!("{name} failed: {error}"),
                None if *on_hold => format!("{name} is unhealthy"),
                None if !established => format!("{name} not established"),
                None => continue,
            };
            better.push(((rank(name), index), why));
        }
        for (name, is_own) in &self.missing {
            let why = if *is_own { "not offered by peer" } else { "not enabled here" };
            better.push(((rank(name), usize::MAX), format!("{name} {why}")));
        }
        better.retain(|(order, _)| best.is_none_or(|best| *order <= best));
        better.sort();
        let reasons = better.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join(", ");
        let name = self.best().map_or("none", |(_, name)| name);
        if reasons.is_empty() { name.to_owned() } else { format!("{name}: {reasons}") }
    }

    fn choose(&self) -> Option<usize> {
        let candidates = (0..self.overlays.len()).filter(|index| self.overlays[*index].error.is_none());
        candidates.min_by_key(|index| {
            let overlay = &self.overlays[*index];
            (!overlay.works(), !overlay.established, preference(&overlay.name, self.encrypted), *index)
        })
    }

    /// Whether an overlay may still come to work. If sleeve has failed, those that are on hold do not count, as in 2.8.1.
    fn has_hope(&self) -> bool {
        self.overlays
            .iter()
            .any(|overlay| overlay.error.is_none() && (!overlay.on_hold || overlay.name == SLEEVE))
            || !self.overlays.iter().any(|overlay| overlay.name == SLEEVE && overlay.error.is_some())
    }

    fn update(&mut self) {
        if self.failed {
            return;
        }
        let best = self.choose().filter(|_| self.has_hope());
        let Some(index) = best else {
            self.failed = true;
            self.best = None;
            let failed =
                |overlay: &OverlayState| Some(format!("{}: {}", overlay.name, overlay.error.as_ref()?));
            let errors: Vec<String> = self.overlays.iter().filter_map(failed).collect();
            let text = format!("no working forwarders to {} ({})", self.peer, errors.join("; "));
            self.outputs.push_back(Output::Failed(text));
            return;
        };
        if self.best.replace(index) != Some(index) {
            let name = self.overlays[index].name.clone();
            self.outputs.push_back(Output::BestChanged { index, name });
        }
        let down = self.established && !self.overlays[index].works();
        if std::mem::replace(&mut self.path_down, down) != down {
            self.outputs.push_back(if down { Output::PathDown } else { Output::PathUp });
        }
    }
}

impl OverlayState {
    fn works(&self) -> bool {
        self.established && !self.on_hold && self.error.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<String> {
        list.split_whitespace().map(str::to_owned).collect()
    }

    fn switch(own: &str, remote: &str, encrypted: bool) -> OverlaySwitch {
        OverlaySwitch::new("7e:00:00:00:00:03(host3)", &names(own), Some(&names(remote)), encrypted).unwrap()
    }

    fn outputs(switch: &mut OverlaySwitch) -> Vec<String> {
        std::iter::from_fn(|| switch.poll_output())
            .map(|output| match output {
                Output::Established => "established".to_owned(),
                Output::BestChanged { index, name } => format!("{index} {name}"),
                Output::PathDown => "down".to_owned(),
                Output::PathUp => "up".to_owned(),
                Output::Failed(error) => error,
            })
            .collect()
    }

    #[test]
    fn switches_to_better_overlays_and_fails_without_any() {
        let mut s = switch("fastdp sleeve", "fastdp sleeve", false);
        assert_eq!(s.best(), Some((0, "fastdp")));
        assert_eq!(s.reason(), "fastdp: fastdp not established");
        s.handle_established(1);
        assert_eq!(outputs(&mut s), ["established", "1 sleeve"]);
        assert_eq!(s.reason(), "sleeve: fastdp not established");
        s.handle_established(0);
        assert_eq!(outputs(&mut s), ["0 fastdp"]);
        assert_eq!(s.reason(), "fastdp");
        s.handle_health(0, false);
        assert_eq!(outputs(&mut s), ["1 sleeve"]);
        assert_eq!(s.reason(), "sleeve: fastdp is unhealthy");
        s.handle_health(0, true);
        assert_eq!(outputs(&mut s), ["0 fastdp"]);
        s.handle_error(1, "timed out waiting for UDP heartbeat");
        assert_eq!(outputs(&mut s), [""; 0]);
        s.handle_established(1);
        assert_eq!(s.best(), Some((0, "fastdp")), "a failed overlay is not used again");
        s.handle_health(0, false);
        assert_eq!(
            outputs(&mut s),
            [
                "no working forwarders to 7e:00:00:00:00:03(host3) (sleeve: timed out waiting for UDP heartbeat)"
            ]
        );
        assert_eq!(
            s.reason(),
            "none: fastdp is unhealthy, sleeve failed: timed out waiting for UDP heartbeat"
        );
        s.handle_health(0, true);
        assert_eq!(outputs(&mut s), [""; 0], "no output after the failure");
    }

    #[test]
    fn path_is_down_while_no_overlay_works() {
        let mut s = switch("fastdp sleeve", "fastdp sleeve", false);
        s.handle_health(1, false);
        s.handle_health(1, true);
        assert_eq!(outputs(&mut s), [""; 0], "nothing is established");
        s.handle_established(0);
        s.handle_established(1);
        assert_eq!(outputs(&mut s), ["established"]);
        s.handle_health(0, false);
        assert_eq!(outputs(&mut s), ["1 sleeve"]);
        s.handle_health(1, false);
        assert_eq!(outputs(&mut s), ["0 fastdp", "down"]);
        s.handle_health(1, true);
        assert_eq!(outputs(&mut s), ["1 sleeve", "up"]);
        // An overlay that was never established does not help.
        let mut s = switch("fastdp sleeve", "fastdp sleeve", false);
        s.handle_established(1);
        assert_eq!(outputs(&mut s), ["established", "1 sleeve"]);
        s.handle_health(1, false);
        assert_eq!(outputs(&mut s), ["down"]);
        assert_eq!(s.best(), Some((1, "sleeve")));
        s.handle_health(1, true);
        assert_eq!(outputs(&mut s), ["up"]);
    }

    #[test]
    fn preference_is_not_the_index() {
        let mut s = switch("warp fastdp sleeve", "sleeve fastdp warp", false);
        assert_eq!(s.common().collect::<Vec<_>>(), ["warp", "fastdp", "sleeve"]);
        for (index, best) in [(2, "sleeve"), (0, "warp"), (1, "fastdp")] {
            s.handle_established(index);
            assert_eq!(s.best(), Some((index, best)));
        }
        let mut s = switch("warp fastdp sleeve", "warp fastdp sleeve", true);
        for (index, best) in [(1, "fastdp"), (2, "sleeve"), (0, "warp")] {
            s.handle_established(index);
            assert_eq!(s.best(), Some((index, best)));
        }
    }

    #[test]
    fn reason_names_overlays_that_one_side_lacks() {
        let mut s = switch("warp fastdp sleeve", "sleeve newthing", false);
        s.handle_established(0);
        assert_eq!(s.reason(), "sleeve: fastdp not offered by peer, warp not offered by peer");
        let mut s = switch("sleeve", "fastdp sleeve", false);
        s.handle_established(0);
        assert_eq!(s.reason(), "sleeve: fastdp not enabled here");
    }

    #[test]
    fn control_messages_with_wrong_indices_are_rejected() {
        let mut s = switch("fastdp sleeve", "fastdp sleeve", false);
        assert_eq!(s.control_index(1), Some(1));
        assert_eq!(s.control_target(Some(1)), Ok(1));
        assert_eq!(s.control_target(Some(2)), Err(DispatchError::IndexOutOfRange { index: 2, overlays: 2 }));
        assert_eq!(s.control_target(None), Err(DispatchError::IndexMismatch));
        s.handle_error(0, "no vxlan");
        assert_eq!(s.control_target(Some(0)), Err(DispatchError::OverlayFailed { index: 0 }));
        assert_eq!(parse_control(&[]), Err(DispatchError::TooShort { len: 0 }));
        assert_eq!(parse_control(&[1]), Err(DispatchError::TooShort { len: 1 }));
    }

    #[test]
    fn a_peer_without_overlay_feature_uses_sleeve_without_an_index() {
        let s = OverlaySwitch::new("x", &names("warp fastdp sleeve"), None, false).unwrap();
        assert_eq!(s.common().collect::<Vec<_>>(), ["sleeve"]);
        assert_eq!((s.control_index(0), s.control_target(None)), (None, Ok(0)));
        assert_eq!(s.control_target(Some(0)), Err(DispatchError::IndexMismatch));
        assert_eq!(OverlaySwitch::new("x", &names("awsvpc"), None, false).err(), Some(NoCommonOverlay));
    }

    #[test]
    fn common_overlays_are_limited_to_256() {
        let many: Vec<String> = (0..300).map(|i| format!("o{i}")).collect();
        let s = OverlaySwitch::new("x", &many, Some(&many), false).unwrap();
        assert_eq!(s.common().count(), 256);
        assert_eq!(s.control_index(255), Some(255));
    }
}
