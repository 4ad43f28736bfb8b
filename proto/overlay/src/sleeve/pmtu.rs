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
//!   Searching ------- rounds of probes, each size acknowledged by its length or taken as failed --> SearchComplete
//!   SearchComplete -- every 10 s: does the size still pass? no -----------------------------------> Searching
//!                  -- every 2 min: initial probe again; the interface's P has grown, or has always
//!                     exceeded the size that passed -----------------------------------------> Searching upwards
//! ```
//!
//! The messages are those of 2.8.1, the order is not. 2.8.1 tries one size at a time, for 2.55 s if the size does not pass
//! (`live_sleeve_pmtu_search.json`: 17.9 s), never raises the MTU again, and does not notice when a size stops passing. Here
//! a round tries several sizes in parallel, common ones first, and lasts half a second. Sizes are those of inner IP packets.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use weave_switch::frame::ETHERNET_HEADER;
use weave_types::Instant;

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

/// When the probes of a search round are repeated and, last, when the round ends. A later acknowledgement still counts.
const SEARCH_SCHEDULE: &[Duration] = &[ms(50), ms(150), ms(300), ms(500)];
/// The same for the test of the size found. It is slower, because a false alarm would restart the search.
const VERIFY_SCHEDULE: &[Duration] = &[ms(300), ms(1000), ms(2000), ms(5000)];

/// Common path MTUs, outer headers included.
const COMMON_PATH_MTUS: &[usize] = &[
    9000, 4352, 2304, 1500, 1492, 1480, 1476, 1460, 1450, 1440, 1420, 1400, 1380, 1360, 1320, 1280, 1200,
    1100, 1006, 900, 800, 700,
];
/// Maximum number of sizes in a round that contains no common size.
const MAX_SIZES: usize = 16;

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
    verification: Option<Round>,
    probe_up_at: Instant,
    /// Deadline for the reply to an initial probe.
    initial_probe_until: Option<Instant>,
}

/// Sizes that are probed together, repeatedly, until they are acknowledged or the round ends.
#[derive(Debug)]
struct Round {
    sizes: Vec<usize>,
    schedule: &'static [Duration],
    started: Instant,
    /// How often the probes were repeated.
    repeats: usize,
}

impl Round {
    fn due(&self) -> Instant {
        self.started + self.schedule[self.repeats]
    }

    fn is_last_repeat(&self) -> bool {
        self.repeats + 1 == self.schedule.len()
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

    /// The connection is established: starts the discovery. Repeated calls have no effect.
    pub fn start(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Idle) {
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
                if size > search.good && size <= self.ceiling && self.probed.contains(&size) {
                    search.good = size;
                    search.failed.retain(|failed| *failed > size);
                    search.round.sizes.retain(|probed| *probed > size);
                    if !search.optimistic {
                        self.mtu = size;
                    }
                    if search.round.sizes.is_empty() {
                        self.next_round(now);
                    }
                }
            }
            Phase::SearchComplete(complete) => {
                if complete.verification.as_ref().is_some_and(|round| round.sizes.contains(&size)) {
                    complete.verification = None;
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

    /// The path may have changed: tests the size found now instead of at the next interval.
    pub fn verify(&mut self, now: Instant) {
        if let Phase::SearchComplete(complete) = &mut self.phase {
            complete.verify_at = now;
            self.handle_timeout(now);
        }
    }

    /// When to call [`handle_timeout`](Pmtu::handle_timeout).
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.phase {
            Phase::Idle => None,
            Phase::InitialProbe { until, .. } => Some((*until, "pmtu initial probe unanswered")),
            Phase::Searching(search) => Some((search.round.due(), "pmtu search round")),
            Phase::SearchComplete(complete) => {
                let verify = match &complete.verification {
                    Some(round) => (round.due(), "pmtu verification repeat"),
                    None => (complete.verify_at, "pmtu verification"),
                };
                let initial_probe =
                    complete.initial_probe_until.map(|at| (at, "pmtu initial probe unanswered"));
                [Some(verify), Some((complete.probe_up_at, "pmtu probe up")), initial_probe]
                    .into_iter()
                    .flatten()
                    .min()
            }
        }
    }

    /// Handles all timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Idle => {}
            Phase::InitialProbe { until, .. } if now < *until => {}
            Phase::InitialProbe { attempt: INITIAL_PROBE_ATTEMPTS, .. } => {
                self.search(SEARCH_FLOOR, self.longest(), false, now);
            }
            Phase::InitialProbe { attempt, .. } => {
                let attempt = *attempt + 1;
                self.send_initial_probe(attempt, now);
            }
            Phase::Searching(search) => {
                if now < search.round.due() {
                } else if !search.round.is_last_repeat() {
                    repeat(&mut search.round, &mut self.outputs, now);
                } else {
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
            None if now >= complete.verify_at => {
                let size = self.mtu.min(INITIAL_PROBE);
                complete.verify_at = now + VERIFY_INTERVAL;
                complete.verification = Some(begin(vec![size], VERIFY_SCHEDULE, &mut self.outputs, now));
                self.probed.insert(size);
            }
            Some(round) if now >= round.due() => {
                if !round.is_last_repeat() {
                    repeat(round, &mut self.outputs, now);
                } else {
                    let failed = round.sizes[0];
                    return self.search_below(failed, now);
                }
            }
            _ => {}
        }
        if complete.initial_probe_until.is_some_and(|at| now >= at) {
            complete.initial_probe_until = None;
            if self.mtu < self.ceiling {
                return self.search(self.mtu, self.ceiling, false, now);
            }
        }
        if now >= complete.probe_up_at {
            complete.probe_up_at = now + PROBE_UP_INTERVAL;
            if self.mtu < INITIAL_PROBE {
                complete.initial_probe_until = Some(now + INITIAL_PROBE_TIMEOUT);
                self.outputs.push_back(Output::InitialProbe);
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
        let round = Round { sizes: Vec::new(), schedule: SEARCH_SCHEDULE, started: now, repeats: 0 };
        self.phase = Phase::Searching(Search { good, failed: BTreeSet::new(), optimistic, round });
        self.next_round(now);
    }

    /// Searches below `failed`, a size that used to pass.
    fn search_below(&mut self, failed: usize, now: Instant) {
        let good = SEARCH_FLOOR.min(failed.saturating_sub(1));
        self.mtu = good;
        self.probed.clear();
        let round = Round { sizes: Vec::new(), schedule: SEARCH_SCHEDULE, started: now, repeats: 0 };
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
        search.round = begin(sizes, SEARCH_SCHEDULE, &mut self.outputs, now);
    }

    fn complete_search(&mut self, now: Instant) {
        self.phase = Phase::SearchComplete(SearchComplete {
            verify_at: now + VERIFY_INTERVAL,
            verification: None,
            probe_up_at: now + PROBE_UP_INTERVAL,
            initial_probe_until: None,
        });
    }
}

fn begin(
    sizes: Vec<usize>,
    schedule: &'static [Duration],
    outputs: &mut VecDeque<Output>,
    now: Instant,
) -> Round {
    let round = Round { sizes, schedule, started: now, repeats: 0 };
    probe(&round, outputs);
    round
}

fn repeat(round: &mut Round, outputs: &mut VecDeque<Output>, now: Instant) {
    // If the call was late, the rest of the round is delayed as much.
    round.started += now - round.due();
    round.repeats += 1;
    probe(round, outputs);
}

/// The largest size goes first: its acknowledgement makes the smaller ones unnecessary.
fn probe(round: &Round, outputs: &mut VecDeque<Output>) {
    outputs.extend(round.sizes.iter().rev().map(|size| Output::Probe(*size as u16)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that drops packets above `passes` bytes silently; the kernel refuses those above `kernel`. Inner sizes.
    struct Sim {
        pmtu: Pmtu,
        now: Instant,
        passes: usize,
        kernel: Option<usize>,
        rtt: Duration,
        /// Every n-th probe is lost.
        lose_every: usize,
        probes: Vec<u16>,
        in_flight: VecDeque<(Instant, u16)>,
    }

    impl Sim {
        fn new(overhead: usize, passes: usize, kernel: Option<usize>) -> Sim {
            let mut pmtu = Pmtu::new(overhead);
            pmtu.start(Instant::ORIGIN);
            Sim {
                pmtu,
                now: Instant::ORIGIN,
                passes,
                kernel,
                rtt: ms(2),
                lose_every: usize::MAX,
                probes: Vec::new(),
                in_flight: VecDeque::new(),
            }
        }

        fn drain(&mut self) {
            while let Some(output) = self.pmtu.poll_output() {
                let size = match output {
                    Output::Verified => continue,
                    Output::InitialProbe => INITIAL_PROBE as u16,
                    Output::Probe(size) => {
                        self.probes.push(size);
                        if self.probes.len() % self.lose_every == self.lose_every - 1 {
                            continue;
                        }
                        size
                    }
                };
                match self.kernel {
                    Some(kernel) if usize::from(size) > kernel => {
                        self.pmtu.handle_interface_mtu((kernel + self.pmtu.overhead) as u16, self.now);
                    }
                    _ if usize::from(size) > self.passes => {}
                    _ => self.in_flight.push_back((self.now + self.rtt, size)),
                }
            }
        }

        fn run(&mut self, span: Duration) {
            let end = self.now + span;
            loop {
                self.drain();
                let ack = self.in_flight.front().copied();
                let timer = self.pmtu.poll_timeout().map_or(end, |(at, _)| at);
                match ack {
                    Some((at, size)) if at <= timer && at <= end => {
                        self.in_flight.pop_front();
                        self.now = at;
                        self.pmtu.handle_ack(size, at);
                    }
                    _ if timer <= end => {
                        self.now = timer.max(self.now);
                        self.pmtu.handle_timeout(self.now);
                    }
                    _ => break,
                }
            }
            self.now = end;
        }

        /// The MTU, if the search is complete.
        fn found(&self) -> Option<usize> {
            matches!(self.pmtu.phase, Phase::SearchComplete(_)).then_some(self.pmtu.mtu())
        }
    }

    #[test]
    fn a_path_without_black_hole_needs_one_probe() {
        for (overhead, mtu) in [(62, 1438), (86, 1414)] {
            let mut sim = Sim::new(overhead, mtu, Some(mtu));
            sim.run(ms(10));
            assert_eq!((sim.found(), sim.probes.as_slice()), (Some(mtu), &[mtu as u16][..]));
            assert_eq!(sim.pmtu.max_payload(), 1472);
        }
    }

    #[test]
    fn headers_of_ipv6_are_taken_into_account() {
        let mut pmtu = Pmtu::new(62).with_ipv6();
        pmtu.start(Instant::ORIGIN);
        assert_eq!((pmtu.poll_output(), pmtu.known_mtu()), (Some(Output::InitialProbe), None));
        pmtu.handle_interface_mtu(1500, Instant::ORIGIN);
        assert_eq!((pmtu.poll_output(), pmtu.known_mtu()), (Some(Output::Probe(1418)), None));
        pmtu.handle_ack(1418, Instant::ORIGIN);
        assert_eq!((pmtu.known_mtu(), pmtu.max_payload()), (Some(1418), 1452));
    }

    #[test]
    fn every_black_hole_is_found_within_three_seconds() {
        for passes in (SEARCH_FLOOR..1438).step_by(7).chain([638, 1437]) {
            let mut sim = Sim::new(62, passes, Some(1438));
            sim.run(ms(3000));
            assert_eq!(sim.found(), Some(passes));
            assert!(sim.probes.len() <= 200, "{} probes", sim.probes.len());
        }
        for passes in (SEARCH_FLOOR..8938).step_by(101) {
            let mut sim = Sim::new(62, passes, Some(8938));
            sim.run(ms(4000));
            assert_eq!(sim.found(), Some(passes));
        }
    }

    #[test]
    fn an_unconfirmed_mtu_is_used_for_less_than_half_a_second() {
        let mut sim = Sim::new(62, 638, Some(1438));
        sim.run(ms(10));
        assert_eq!(sim.pmtu.mtu(), 1438, "assumed to pass, as in 2.8.1");
        sim.run(ms(500));
        assert_eq!(sim.pmtu.mtu(), 638, "a size known to pass is used immediately");
        assert_eq!(sim.found(), None);
    }

    #[test]
    fn loss_and_long_round_trips_do_not_change_the_result() {
        for (rtt, lose_every) in [(700, usize::MAX), (3000, usize::MAX), (20, 2), (20, 3), (400, 3)] {
            let mut sim = Sim::new(62, 1000, Some(1438));
            (sim.rtt, sim.lose_every) = (ms(rtt), lose_every);
            sim.run(Duration::from_secs(25));
            assert_eq!(sim.found(), Some(1000), "rtt {rtt}, every {lose_every}th lost");
            let mut sim = Sim::new(62, 1438, Some(1438));
            (sim.rtt, sim.lose_every) = (ms(rtt), lose_every);
            sim.run(Duration::from_secs(25));
            assert_eq!(sim.found(), Some(1438), "rtt {rtt}, every {lose_every}th lost");
        }
    }

    #[test]
    fn a_path_without_a_limit_stays_unlimited() {
        let mut sim = Sim::new(62, 65535, None);
        sim.run(Duration::from_secs(600));
        assert_eq!((sim.found(), sim.pmtu.max_payload()), (Some(UNLIMITED), MAX_DATAGRAM));
    }

    #[test]
    fn search_starts_without_an_answer_of_the_interface() {
        let mut sim = Sim::new(86, 1414, None);
        sim.run(ms(3000 + 3000));
        assert_eq!(sim.found(), Some(1414));
    }

    #[test]
    fn a_black_hole_that_appears_later_is_noticed() {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.run(Duration::from_secs(100));
        sim.passes = 900;
        sim.run(VERIFY_INTERVAL + ms(5000 + 3000));
        assert_eq!(sim.found(), Some(900));
    }

    #[test]
    fn mtu_is_raised_when_the_path_mtu_grows() {
        // A black hole disappears.
        let mut sim = Sim::new(62, 900, Some(1438));
        sim.run(Duration::from_secs(10));
        assert_eq!(sim.found(), Some(900));
        sim.passes = 1438;
        sim.run(PROBE_UP_INTERVAL + ms(3000));
        assert_eq!(sim.found(), Some(1438));
        // The MTU of the interface is raised.
        let mut sim = Sim::new(62, 1438, Some(1238));
        sim.run(Duration::from_secs(10));
        assert_eq!(sim.found(), Some(1238));
        sim.kernel = Some(1438);
        sim.run(PROBE_UP_INTERVAL + ms(3000));
        assert_eq!(sim.found(), Some(1438));
        // The path MTU shrinks, which only verification detects, and grows again.
        sim.passes = 700;
        sim.run(VERIFY_INTERVAL + ms(8000));
        assert_eq!(sim.found(), Some(700));
        sim.passes = 1438;
        sim.run(PROBE_UP_INTERVAL + ms(3000));
        assert_eq!(sim.found(), Some(1438));
    }

    #[test]
    fn a_smaller_interface_mtu_is_used() {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.run(ms(100));
        (sim.kernel, sim.passes) = (Some(1138), 1138);
        sim.pmtu.handle_interface_mtu(1200, sim.now);
        sim.run(ms(100));
        assert_eq!(sim.found(), Some(1138));
        // Repeated and invalid reports have no effect.
        let probes = sim.probes.len();
        sim.pmtu.handle_interface_mtu(1200, sim.now);
        sim.pmtu.handle_interface_mtu(0, sim.now);
        sim.pmtu.handle_interface_mtu(100, sim.now);
        sim.run(ms(100));
        assert_eq!((sim.found(), sim.probes.len()), (Some(1138), probes));
    }

    #[test]
    fn a_complete_search_sends_only_verifications() {
        let mut sim = Sim::new(62, 1438, Some(1438));
        let hour = Duration::from_secs(3600);
        sim.run(hour);
        let verifications = (hour.as_secs() / VERIFY_INTERVAL.as_secs()) as usize;
        assert!(sim.probes.len() <= verifications + 1, "{} probes in an hour", sim.probes.len());
    }

    #[test]
    fn acknowledgements_of_sizes_not_probed_are_ignored() {
        let mut pmtu = Pmtu::new(62);
        pmtu.handle_ack(1438, Instant::ORIGIN);
        pmtu.start(Instant::ORIGIN);
        pmtu.handle_ack(1438, Instant::ORIGIN);
        pmtu.handle_interface_mtu(1500, Instant::ORIGIN);
        for size in [0, 552, 1437, 1439, 59986, 65535] {
            pmtu.handle_ack(size, Instant::ORIGIN);
            assert!(matches!(pmtu.phase, Phase::Searching(_)), "{size}");
        }
        pmtu.handle_ack(1438, Instant::ORIGIN);
        assert_eq!(pmtu.mtu(), 1438);
        assert!(matches!(pmtu.phase, Phase::SearchComplete(_)));
    }
}
