//! Discovery of the path MTU by probing (after RFC 8899; docs/spec/data-plane.md 4.5).
//!
//! The result depends on the MTU of the own interface and on sizes that the neighbour has acknowledged, on nothing else: ICMP
//! messages about the path are not authenticated, and one that is forged must not make an encrypted connection slow.
//!
//! ```text
//!                 initial probe: a 60000-byte frame that may not be fragmented
//!   InitialProbe -----+---- the interface refuses it: MTU P ------> Searching up to P
//!     |               +---- it is acknowledged -------------------> SearchComplete, no limit
//!     +-- no answer, 3 times -------------------------------------> Searching up to the longest packet
//!
//!   Searching ------- rounds of probes: each size is acknowledged, or shown to be lost -----------> SearchComplete
//!   SearchComplete -- every 10 s, if data is sent: does the size still pass? no ----------------> Searching
//!                  -- every 2 min: initial probe again; the interface's P has grown, or has always
//!                     exceeded the size that passed -----------------------------------------> Searching upwards
//! ```
//!
//! Silence alone says nothing about sizes: a busy host, a full queue and a dead path are silent too. So each burst of probes
//! ends with a smaller *control* size, and a size counts as lost only if, in the same bursts, the control has been
//! acknowledged several times and the size never (`Round`). Until then the MTU stays as it is, and the bursts become rarer.
//! Acknowledgements that arrive together count once, because they only show that the neighbour was late; and nothing counts
//! if this peer handles its own timers late.
//!
//! All paths of a peer share a budget ([`probe_budget`]): on a busy network or machine many searches at a time would make each other's
//! probes late. Bursts wait for it; nothing is concluded meanwhile.
//!
//! The messages are those of 2.8.1, the order is not. 2.8.1 tries one size at a time, for 2.55 s if the size does not pass
//! (`live_sleeve_pmtu_search.json`: 17.9 s), never raises the MTU again, and does not notice when a size stops passing. Here
//! a round tries several sizes in parallel, common ones first, and lasts half a second if they are answered. Sizes are those of
//! inner IP packets.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use weave_switch::frame::ETHERNET_HEADER;
use weave_types::{Instant, TokenBucket};

use super::control_frame::INITIAL_PROBE_FRAME;
use super::session::{IPV6_HEADERS, MAX_DATAGRAM, OUTER_HEADERS};

/// The MTU of a path without a known limit, as 2.8.1 shows it.
pub const UNLIMITED: usize = 65535;
/// The size that is assumed to pass without a test.
pub const SEARCH_FLOOR: usize = 552;
/// Interval between tests of the size found.
pub const VERIFY_INTERVAL: Duration = Duration::from_secs(10);
/// Interval between attempts to raise the MTU (RFC 8899 section 5.1.1: PMTU_RAISE_TIMER).
pub const PROBE_UP_INTERVAL: Duration = Duration::from_secs(120);

/// Size that the acknowledgement of an initial probe carries.
const INITIAL_PROBE: usize = INITIAL_PROBE_FRAME - ETHERNET_HEADER;
/// Every path carries IP packets of this size (RFC 791); smaller path MTUs are ignored.
const MIN_PATH_MTU: usize = 68;

/// How long the interface, or the neighbour, may take to answer an initial probe.
const INITIAL_PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const INITIAL_PROBE_ATTEMPTS: u32 = 3;

/// When the bursts of a search round after the first are sent and, last, when the round is judged. Afterwards the intervals double,
/// up to [`MAX_BURST_INTERVAL`]. A later acknowledgement still counts.
const SEARCH_SCHEDULE: &[Duration] = &[ms(50), ms(100), ms(200), ms(300), ms(400), ms(500)];
/// The same for the test of the size found. It is slower, because a false alarm would restart the search.
const VERIFY_SCHEDULE: &[Duration] = &[ms(300), ms(1000), ms(2000), ms(3000), ms(4000), ms(5000)];
/// Limit of [`Pmtu::first_wait`].
const MAX_FIRST_WAIT: Duration = Duration::from_secs(2);
const MAX_BURST_INTERVAL: Duration = Duration::from_secs(10);

/// How often the control size must be acknowledged before other sizes of the same bursts count as lost. If it is acknowledged in
/// each burst, the schedule is enough (five bursts); else packets are lost for other reasons than their size, and large ones may be lost
/// many times in a row.
const EVIDENCE_UNDER_LOSS: u32 = 12;
/// Acknowledgements that follow each other faster were delayed together. Bursts are 50 ms apart at least.
const MIN_ACK_INTERVAL: Duration = ms(10);
const REMEMBERED_CONTROLS: usize = 32;
/// A timer that is handled so late shows that this peer has been too busy to handle acknowledgements in time.
const MAX_LATENESS: Duration = ms(100);

/// Common path MTUs, outer headers included.
const COMMON_PATH_MTUS: &[usize] = &[
    9000, 4352, 2304, 1500, 1492, 1480, 1476, 1460, 1450, 1440, 1420, 1400, 1380, 1360, 1320, 1280, 1200,
    1100, 1006, 900, 800, 700,
];
/// Maximum number of sizes in a round that contains no common size.
const MAX_SIZES: usize = 16;

/// The probes of all paths of a peer: one for every two milliseconds, and a burst that lets a hundred neighbours begin at a time.
pub fn probe_budget() -> TokenBucket {
    TokenBucket::new(250, ms(2))
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What the owner must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the frame of [`INITIAL_PROBE_FRAME`] bytes.
    InitialProbe,
    /// Send an MTU test of this size.
    Probe(u16),
    /// A search ended: packets of [`Pmtu::mtu`] pass.
    Verified,
}

/// State machine of the search.
#[derive(Debug)]
pub struct Pmtu {
    /// Bytes that the connection adds to a packet, outer headers included.
    overhead: usize,
    /// Bytes of outer IP and UDP header.
    outer_headers: usize,
    mtu: usize,
    /// The largest size that the interface carries.
    ceiling: usize,
    phase: Phase,
    /// Sizes probed since the search began. Acknowledgements of other sizes are ignored.
    probed: BTreeSet<usize>,
    /// How long the first probe of a search that begins at the ceiling waits for its acknowledgement, alone.
    first_wait: Duration,
    /// The latest control sizes. They are not used again, so that a late acknowledgement counts in no other round than its own.
    controls: VecDeque<usize>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum Phase {
    Idle,
    InitialProbe { attempt: u32, until: Instant },
    Searching(Search),
    SearchComplete(SearchComplete),
}

#[derive(Debug)]
struct Search {
    /// The largest size known to pass.
    good: usize,
    /// Sizes that were not acknowledged in time, all larger than `good`.
    failed: BTreeSet<usize>,
    /// Whether the ceiling is used before a probe has confirmed it.
    optimistic: bool,
    round: Round,
}

#[derive(Debug)]
struct SearchComplete {
    verify_at: Instant,
    /// Whether data has been sent since the last test. Without it nothing is tested, and no timer runs.
    has_traffic: bool,
    verification: Option<Round>,
    probe_up_at: Instant,
    /// Deadline for the reply to an initial probe.
    initial_probe_until: Option<Instant>,
}

/// Sizes that are probed together, in bursts, until the largest is acknowledged or the others are known to be lost.
#[derive(Debug)]
struct Round {
    /// The sizes that are not acknowledged.
    sizes: Vec<usize>,
    /// Smaller sizes of the same bursts: the control, which ends each burst but the first, and those acknowledged since.
    smaller: BTreeSet<usize>,
    control: usize,
    /// Acknowledgements of smaller sizes, those that arrived together counted once.
    evidence: u32,
    /// Bursts with a control since the evidence began.
    control_bursts: u32,
    counted_at: Option<Instant>,
    schedule: &'static [Duration],
    /// Bursts sent after the first one.
    repeats: usize,
    due: Instant,
}

impl Round {
    fn new(sizes: Vec<usize>, control: usize, schedule: &'static [Duration], now: Instant) -> Round {
        Round {
            sizes,
            smaller: BTreeSet::from([control]),
            control,
            evidence: 0,
            control_bursts: 0,
            counted_at: None,
            schedule,
            repeats: 0,
            due: now + schedule[0],
        }
    }

    /// A size is acknowledged.
    fn handle_ack(&mut self, size: usize, now: Instant) {
        if self.sizes.contains(&size) {
            let (acknowledged, rest) = self.sizes.iter().partition(|probed| **probed <= size);
            self.sizes = rest;
            self.smaller.extend::<Vec<usize>>(acknowledged);
        }
        let is_alone = self.counted_at.is_none_or(|at| now.saturating_since(at) >= MIN_ACK_INTERVAL);
        if !self.smaller.contains(&size) || !is_alone {
            return;
        }
        self.counted_at = Some(now);
        self.evidence += 1;
        if self.repeats >= self.schedule.len() {
            // The neighbour answers again, so bursts need not be rare any more.
            self.repeats = 0;
            self.due = self.due.min(now + self.schedule[0]);
        }
    }

    /// Whether the sizes that are not acknowledged are lost.
    fn is_conclusive(&self) -> bool {
        self.evidence >= self.control_bursts.min(EVIDENCE_UNDER_LOSS)
    }

    /// The timer is handled. Returns whether the round is over, its sizes being lost; otherwise the next burst is sent.
    fn handle_timeout(&mut self, outputs: &mut VecDeque<Output>, now: Instant) -> bool {
        let is_late = now.saturating_since(self.due) > MAX_LATENESS;
        if is_late {
            // What arrived, or did not, since then may be due to this peer.
            self.evidence = 0;
            self.control_bursts = 0;
            self.repeats = 0;
        } else if self.repeats + 1 >= self.schedule.len() && self.is_conclusive() {
            return true;
        }
        self.repeats += 1;
        let interval = match self.schedule.get(self.repeats) {
            Some(at) => *at - self.schedule[self.repeats - 1],
            None => {
                let last = self.schedule.len() - 1;
                let doubled = (self.repeats - last).min(16) as u32;
                (self.schedule[last] - self.schedule[last - 1]) * 2u32.pow(doubled)
            }
        };
        self.due = now + interval.min(MAX_BURST_INTERVAL);
        self.probe(outputs);
        self.control_bursts += 1;
        outputs.push_back(Output::Probe(self.control as u16));
        false
    }

    /// The largest size goes first: its acknowledgement makes the smaller ones unnecessary.
    fn probe(&self, outputs: &mut VecDeque<Output>) {
        outputs.extend(self.sizes.iter().rev().map(|size| Output::Probe(*size as u16)));
    }
}

impl Pmtu {
    /// Creates the state machine for a connection that adds `overhead` bytes to packets
    /// ([`Session::overhead`](super::Session::overhead)).
    pub fn new(overhead: usize) -> Pmtu {
        Pmtu {
            overhead,
            outer_headers: OUTER_HEADERS,
            mtu: UNLIMITED,
            ceiling: UNLIMITED,
            phase: Phase::Idle,
            probed: BTreeSet::new(),
            first_wait: SEARCH_SCHEDULE[0],
            controls: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes the outer headers of IPv6 into account.
    pub fn with_ipv6(self) -> Pmtu {
        let longer = IPV6_HEADERS - OUTER_HEADERS;
        Pmtu { overhead: self.overhead + longer, outer_headers: IPV6_HEADERS, ..self }
    }

    /// [`mtu`](Pmtu::mtu), if the neighbour has acknowledged it or a smaller size is assumed to pass; `None` before.
    pub fn known_mtu(&self) -> Option<usize> {
        let known = match &self.phase {
            Phase::Idle | Phase::InitialProbe { .. } => false,
            Phase::Searching(search) => !search.optimistic,
            Phase::SearchComplete(_) => true,
        };
        known.then_some(self.mtu)
    }

    /// The longest inner IP packet that is sent unfragmented; [`UNLIMITED`] before the first result.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// The longest UDP payload that is sent unfragmented.
    pub fn max_payload(&self) -> usize {
        (self.mtu + self.overhead - self.outer_headers).min(MAX_DATAGRAM)
    }

    /// The longest inner packet that fits a datagram.
    fn longest(&self) -> usize {
        MAX_DATAGRAM + self.outer_headers - self.overhead
    }

    /// The connection is established: starts the discovery. `round_trip` is the time in which the neighbour has answered so far: where
    /// machines are busy, probes are not repeated before an answer can be expected. Repeated calls have no effect.
    pub fn start(&mut self, round_trip: Duration, now: Instant) {
        if matches!(self.phase, Phase::Idle) {
            self.first_wait = (round_trip * 2).clamp(SEARCH_SCHEDULE[0], MAX_FIRST_WAIT);
            self.send_initial_probe(1, now);
        }
    }

    fn send_initial_probe(&mut self, attempt: u32, now: Instant) {
        self.outputs.push_back(Output::InitialProbe);
        self.phase = Phase::InitialProbe { attempt, until: now + INITIAL_PROBE_TIMEOUT };
    }

    /// The kernel refused a datagram: the interface carries outer packets of at most `interface_mtu` bytes.
    pub fn handle_interface_mtu(&mut self, interface_mtu: u16, now: Instant) {
        let interface_mtu = usize::from(interface_mtu);
        if interface_mtu < self.overhead + MIN_PATH_MTU {
            return;
        }
        let limit = interface_mtu - self.overhead;
        match &mut self.phase {
            Phase::Idle => {}
            Phase::InitialProbe { .. } => self.search(SEARCH_FLOOR, limit, true, now),
            // Already known: the answer to a datagram that was sent earlier.
            Phase::Searching(_) if limit >= self.ceiling => {}
            Phase::Searching(search) => {
                let good = search.good;
                let optimistic = self.mtu > limit;
                self.search(if good <= limit { good } else { SEARCH_FLOOR }, limit, optimistic, now);
            }
            Phase::SearchComplete(_) if limit < self.mtu => self.search(SEARCH_FLOOR, limit, true, now),
            Phase::SearchComplete(complete) => {
                let was_probing = complete.initial_probe_until.take().is_some();
                let grown = limit > self.ceiling;
                self.ceiling = limit;
                if limit > self.mtu && (was_probing || grown) {
                    self.search(self.mtu, limit, false, now);
                }
            }
        }
    }

    /// The neighbour acknowledged an MTU test of this size.
    pub fn handle_ack(&mut self, size: u16, now: Instant) {
        let size = usize::from(size);
        match &mut self.phase {
            Phase::InitialProbe { .. } if size == INITIAL_PROBE => self.complete_search(now),
            Phase::Idle | Phase::InitialProbe { .. } => {}
            Phase::Searching(search) => {
                search.round.handle_ack(size, now);
                if size > search.good && size <= self.ceiling && self.probed.contains(&size) {
                    search.good = size;
                    search.failed.retain(|failed| *failed > size);
                    if !search.optimistic {
                        self.mtu = size;
                    }
                    if search.round.sizes.is_empty() {
                        self.next_round(now);
                    }
                }
            }
            Phase::SearchComplete(complete) => {
                if let Some(round) = &mut complete.verification {
                    round.handle_ack(size, now);
                    if round.sizes.is_empty() {
                        complete.verification = None;
                    }
                }
                if size == INITIAL_PROBE {
                    complete.initial_probe_until = None;
                }
                // The acknowledgement of an earlier round, which is still valid.
                if size > self.mtu && size <= self.ceiling && self.probed.contains(&size) {
                    self.search(size, self.ceiling, false, now);
                }
            }
        }
    }

    /// Data was sent lately: the next test of the size found is made when it is due.
    pub fn handle_traffic(&mut self) {
        if let Phase::SearchComplete(complete) = &mut self.phase {
            complete.has_traffic = true;
        }
    }

    /// The path may have changed: tests the size found at the next timeout, which is now, instead of at the next interval.
    pub fn verify(&mut self, now: Instant) {
        if let Phase::SearchComplete(complete) = &mut self.phase {
            complete.verify_at = now;
            complete.has_traffic = true;
        }
    }

    /// When to call [`handle_timeout`](Pmtu::handle_timeout).
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.phase {
            Phase::Idle => None,
            Phase::InitialProbe { until, .. } => Some((*until, "pmtu initial probe unanswered")),
            Phase::Searching(search) => Some((search.round.due, "pmtu search round")),
            Phase::SearchComplete(complete) => {
                let verify = match &complete.verification {
                    Some(round) => Some((round.due, "pmtu verification repeat")),
                    None => complete.has_traffic.then_some((complete.verify_at, "pmtu verification")),
                };
                let initial_probe =
                    complete.initial_probe_until.map(|at| (at, "pmtu initial probe unanswered"));
                [verify, initial_probe].into_iter().flatten().min()
            }
        }
    }

    /// Handles all timers that are due, if `budget` allows for probes; otherwise they are due when it does.
    pub fn handle_timeout(&mut self, budget: &mut TokenBucket, now: Instant) {
        if self.poll_timeout().is_none_or(|(at, _)| now < at) {
            return;
        }
        let delay = budget.delay(now);
        if !delay.is_zero() {
            return self.postpone(now + delay);
        }
        let before = self.outputs.len();
        self.handle_due(now);
        self.outputs.iter().skip(before).for_each(|_| budget.take(now));
    }

    /// Sets all timers that are due before a time to that time.
    fn postpone(&mut self, to: Instant) {
        let due = match &mut self.phase {
            Phase::Idle => [None, None],
            Phase::InitialProbe { until, .. } => [Some(until), None],
            Phase::Searching(search) => [Some(&mut search.round.due), None],
            Phase::SearchComplete(complete) => {
                let verify = match &mut complete.verification {
                    Some(round) => &mut round.due,
                    None => &mut complete.verify_at,
                };
                [Some(verify), complete.initial_probe_until.as_mut()]
            }
        };
        for due in due.into_iter().flatten() {
            *due = to.max(*due);
        }
    }

    fn handle_due(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Idle => {}
            Phase::InitialProbe { until, .. } if now < *until => {}
            Phase::InitialProbe { attempt: INITIAL_PROBE_ATTEMPTS, .. } => {
                // The answer of the interface may only be late, so nothing is concluded.
                self.search(SEARCH_FLOOR, self.longest(), true, now);
            }
            Phase::InitialProbe { attempt, .. } => {
                let attempt = *attempt + 1;
                self.send_initial_probe(attempt, now);
            }
            Phase::Searching(search) => {
                if now >= search.round.due && search.round.handle_timeout(&mut self.outputs, now) {
                    search.failed.extend(search.round.sizes.drain(..));
                    search.optimistic = false;
                    self.mtu = search.good;
                    self.next_round(now);
                }
            }
            Phase::SearchComplete(_) => self.handle_complete_timeout(now),
        }
    }

    fn handle_complete_timeout(&mut self, now: Instant) {
        let Phase::SearchComplete(complete) = &mut self.phase else { return };
        match &mut complete.verification {
            None if complete.has_traffic && now >= complete.verify_at => {
                complete.has_traffic = false;
                if now >= complete.probe_up_at && self.mtu < INITIAL_PROBE {
                    complete.probe_up_at = now + PROBE_UP_INTERVAL;
                    complete.initial_probe_until = Some(now + INITIAL_PROBE_TIMEOUT);
                    self.outputs.push_back(Output::InitialProbe);
                }
                let size = self.mtu.min(INITIAL_PROBE);
                complete.verify_at = now + VERIFY_INTERVAL;
                let control = next_control(&mut self.controls, SEARCH_FLOOR.min(size));
                let round = Round::new(vec![size], control, VERIFY_SCHEDULE, now);
                round.probe(&mut self.outputs);
                complete.verification = Some(round);
                self.probed.insert(size);
            }
            Some(round) => {
                let is_lost = now >= round.due && round.handle_timeout(&mut self.outputs, now);
                if is_lost {
                    return self.search_below(self.mtu.min(INITIAL_PROBE), now);
                }
            }
            None => {}
        }
        if complete.initial_probe_until.is_some_and(|at| now >= at) {
            complete.initial_probe_until = None;
            if self.mtu < self.ceiling {
                self.search(self.mtu, self.ceiling, false, now);
            }
        }
    }

    /// The next output, or `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Searches for the largest size between `good`, which passes, and `ceiling`.
    fn search(&mut self, good: usize, ceiling: usize, optimistic: bool, now: Instant) {
        let good = good.min(ceiling);
        self.ceiling = ceiling;
        self.mtu = if optimistic { ceiling } else { good };
        self.probed.clear();
        let round = Round::new(Vec::new(), good, SEARCH_SCHEDULE, now);
        self.phase = Phase::Searching(Search { good, failed: BTreeSet::new(), optimistic, round });
        self.next_round(now);
    }

    /// Searches below `failed`, a size that used to pass.
    fn search_below(&mut self, failed: usize, now: Instant) {
        let good = SEARCH_FLOOR.min(failed.saturating_sub(1));
        self.mtu = good;
        self.probed.clear();
        let round = Round::new(Vec::new(), good, SEARCH_SCHEDULE, now);
        // The ceiling stays: the next attempt to raise the MTU tries the sizes above `failed`.
        self.ceiling = self.ceiling.min(self.longest());
        let failed = BTreeSet::from([failed, self.ceiling]);
        self.phase = Phase::Searching(Search { good, failed, optimistic: false, round });
        self.next_round(now);
    }

    fn next_round(&mut self, now: Instant) {
        let Phase::Searching(search) = &mut self.phase else { return };
        let good = search.good;
        let bad = search.failed.first().copied().unwrap_or(self.ceiling + 1);
        if bad <= good + 1 {
            self.mtu = good;
            self.outputs.push_back(Output::Verified);
            return self.complete_search(now);
        }
        let mut sizes: Vec<usize> = COMMON_PATH_MTUS
            .iter()
            .filter_map(|path_mtu| path_mtu.checked_sub(self.overhead))
            .filter(|size| (good + 1..bad).contains(size))
            .collect();
        if bad > self.ceiling {
            // In most cases the ceiling passes, so it is probed alone.
            if search.optimistic {
                sizes.clear();
            }
            sizes.push(self.ceiling);
        } else if sizes.is_empty() {
            let between = bad - good - 1;
            let count = between.min(MAX_SIZES);
            sizes.extend((1..=count).map(|i| good + (between + 1) * i / (count + 1)));
        }
        sizes.sort_unstable();
        sizes.dedup();
        self.probed.extend(&sizes);
        let control = next_control(&mut self.controls, good);
        search.round = Round::new(sizes, control, SEARCH_SCHEDULE, now);
        if search.optimistic {
            search.round.due = now + self.first_wait;
        }
        search.round.probe(&mut self.outputs);
    }

    fn complete_search(&mut self, now: Instant) {
        self.phase = Phase::SearchComplete(SearchComplete {
            verify_at: now + VERIFY_INTERVAL,
            has_traffic: false,
            verification: None,
            probe_up_at: now + PROBE_UP_INTERVAL,
            initial_probe_until: None,
        });
    }
}

/// A size below `good` that was not a control size lately.
fn next_control(controls: &mut VecDeque<usize>, good: usize) -> usize {
    let control = (0..good).rev().find(|size| !controls.contains(size)).unwrap_or_default();
    controls.push_back(control);
    if controls.len() > REMEMBERED_CONTROLS {
        controls.pop_front();
    }
    control
}

#[cfg(test)]
mod tests;
