//! How long packets may be on a path, found out by asking (RFC 4821 in spirit; docs/spec/data-plane.md 4.5).
//!
//! ```text
//!             kick-off: a 60000-byte frame that may not be fragmented
//!   Asking ------------------+---- the kernel refuses it: path MTU P ----> Searching up to P
//!     |                      +---- it is acknowledged -------------------> Settled, no limit
//!     +-- nothing, 3 times ----------------------------------------------> Searching up to the longest packet
//!
//!   Searching -- rounds of probes, each size acknowledged by its length or taken as failed --> Settled
//!   Settled ---- every 10 s: does the size still pass? no -------------------------------> Searching
//!           ---- every 2 min: kick-off again; the kernel's P has grown, or has always been
//!                more than what passed -----------------------------------------------> Searching upwards
//! ```
//!
//! The messages are the original's; the order is not. The original tries one size at a time, for 2.55 s if it does not pass
//! (`live_sleeve_pmtu_search.json`: 17.9 s), never grows again, and does not notice when a size stops passing. Here a round
//! tries several sizes at once, common ones first, and lasts half a second. Sizes are those of inner IP packets.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use weave_types::Instant;

use super::control_frame::INITIAL_PROBE_FRAME;
use super::session::MAX_DATAGRAM;

/// Status of a link that knows no limit; the original's.
pub const UNLIMITED: usize = 65535;
/// Taken to pass without a test.
pub const FLOOR: usize = 552;
/// How often a settled size is tested again.
pub const VERIFY_INTERVAL: Duration = Duration::from_secs(10);
/// How often more is asked for.
pub const PROBE_UP_INTERVAL: Duration = Duration::from_secs(120);

/// What an acknowledged kick-off says.
const KICK_OFF: usize = INITIAL_PROBE_FRAME - ETHERNET_HEADER;
const ETHERNET_HEADER: usize = 14;
/// IPv4 and UDP.
const OUTER_HEADERS: usize = 28;
/// RFC 791: every path carries this. Less than it is nonsense.
const SMALLEST_PATH_MTU: usize = 68;

/// For an answer of the kernel, or of the neighbour, to a kick-off.
const KICK_OFF_WAIT: Duration = Duration::from_secs(1);
const KICK_OFF_ATTEMPTS: u32 = 3;

/// When the probes of a round are sent again, and, last, when it is over. An answer that comes later still counts.
const ROUND: &[Duration] = &[ms(50), ms(150), ms(300), ms(500)];
/// The same for the test of a settled size, where a false alarm would hurt.
const VERIFICATION: &[Duration] = &[ms(300), ms(1000), ms(2000), ms(5000)];

/// SleevePath MTUs that are met in practice, outer headers included.
const COMMON: &[usize] = &[
    9000, 4352, 2304, 1500, 1492, 1480, 1476, 1460, 1450, 1440, 1420, 1400, 1380, 1360, 1320, 1280, 1200,
    1100, 1006, 900, 800, 700,
];
/// Sizes in one round at most, where none is common.
const SPLIT: usize = 16;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What the link is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the frame of [`INITIAL_PROBE_FRAME`] bytes.
    InitialProbe,
    /// Send an MTU test for this size.
    Probe(u16),
    /// A search ended; packets of [`Pmtu::mtu`] pass.
    Verified,
}

/// The search, as a machine.
#[derive(Debug)]
pub struct Pmtu {
    overhead: usize,
    mtu: usize,
    /// The most that could pass, by what the kernel says.
    ceiling: usize,
    phase: Phase,
    /// Sizes asked for since the last search began: only these can be acknowledged.
    probed: BTreeSet<usize>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Asking { attempt: u32, until: Instant },
    Searching(Search),
    Settled(Settled),
}

#[derive(Debug)]
struct Search {
    /// The longest that passes.
    good: usize,
    /// What had no answer in time; all longer than `good`.
    failed: BTreeSet<usize>,
    /// Whether the ceiling is used until it has failed.
    optimistic: bool,
    round: Round,
}

#[derive(Debug)]
struct Settled {
    verify_at: Instant,
    verification: Option<Round>,
    climb_at: Instant,
    /// Until when a kick-off may be answered.
    kick_off: Option<Instant>,
}

/// Some sizes, asked for until they are acknowledged or time is up.
#[derive(Debug)]
struct Round {
    sizes: Vec<usize>,
    schedule: &'static [Duration],
    started: Instant,
    /// How often they were asked for again.
    repeats: usize,
}

impl Round {
    fn due(&self) -> Instant {
        self.started + self.schedule[self.repeats]
    }
}

impl Pmtu {
    /// For a connection whose datagrams make packets `overhead` bytes longer
    /// ([`Session::overhead`](super::Session::overhead)).
    pub fn new(overhead: usize) -> Pmtu {
        Pmtu {
            overhead,
            mtu: UNLIMITED,
            ceiling: UNLIMITED,
            phase: Phase::Idle,
            probed: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// The longest inner IP packet to be sent unfragmented; [`UNLIMITED`] before anything is known.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// The longest UDP payload to be sent unfragmented.
    pub fn max_payload(&self) -> usize {
        (self.mtu + self.overhead - OUTER_HEADERS).min(MAX_DATAGRAM)
    }

    /// The longest inner packet for which a datagram can be made at all.
    fn longest(&self) -> usize {
        MAX_DATAGRAM + OUTER_HEADERS - self.overhead
    }

    /// The connection is established: begins, once.
    pub fn start(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Idle) {
            self.ask(1, now);
        }
    }

    fn ask(&mut self, attempt: u32, now: Instant) {
        self.outputs.push_back(Output::InitialProbe);
        self.phase = Phase::Asking { attempt, until: now + KICK_OFF_WAIT };
    }

    /// The kernel refused a datagram: the path carries outer packets of `path_mtu` bytes.
    pub fn handle_path_mtu(&mut self, path_mtu: u16, now: Instant) {
        let path_mtu = usize::from(path_mtu);
        if path_mtu < self.overhead + SMALLEST_PATH_MTU {
            return;
        }
        let limit = path_mtu - self.overhead;
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Asking { .. } => self.search(FLOOR, limit, true, now),
            // An echo of what is known, from datagrams that were on their way.
            Phase::Searching(_) if limit >= self.ceiling => {}
            Phase::Searching(search) => {
                let good = search.good;
                let optimistic = self.mtu > limit;
                self.search(if good <= limit { good } else { FLOOR }, limit, optimistic, now);
            }
            Phase::Settled(_) if limit < self.mtu => self.search(FLOOR, limit, true, now),
            Phase::Settled(settled) => {
                let asked = settled.kick_off.take().is_some();
                let grown = limit > self.ceiling;
                self.ceiling = limit;
                if limit > self.mtu && (asked || grown) {
                    self.search(self.mtu, limit, false, now);
                }
            }
        }
    }

    /// The neighbour received an MTU test of this size.
    pub fn handle_ack(&mut self, size: u16, now: Instant) {
        let size = usize::from(size);
        match &mut self.phase {
            Phase::Asking { .. } if size == KICK_OFF => self.settle(now),
            Phase::Idle | Phase::Asking { .. } => {}
            Phase::Searching(search) => {
                if size > search.good && size <= self.ceiling && self.probed.contains(&size) {
                    search.good = size;
                    search.failed.retain(|failed| *failed > size);
                    search.round.sizes.retain(|asked| *asked > size);
                    if !search.optimistic {
                        self.mtu = size;
                    }
                    if search.round.sizes.is_empty() {
                        self.next_round(now);
                    }
                }
            }
            Phase::Settled(settled) => {
                if settled.verification.as_ref().is_some_and(|round| round.sizes.contains(&size)) {
                    settled.verification = None;
                }
                if size == KICK_OFF {
                    settled.kick_off = None;
                }
                // Too late for its round, but true.
                if size > self.mtu && size <= self.ceiling && self.probed.contains(&size) {
                    self.search(size, self.ceiling, false, now);
                }
            }
        }
    }

    /// Asks for a test of the settled size now: something about the path has changed.
    pub fn verify(&mut self, now: Instant) {
        if let Phase::Settled(settled) = &mut self.phase {
            settled.verify_at = now;
            self.handle_timeout(now);
        }
    }

    /// When to call [`handle_timeout`](Pmtu::handle_timeout).
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.phase {
            Phase::Idle => None,
            Phase::Asking { until, .. } => Some((*until, "pmtu kick-off unanswered")),
            Phase::Searching(search) => Some((search.round.due(), "pmtu search round")),
            Phase::Settled(settled) => {
                let verify = match &settled.verification {
                    Some(round) => (round.due(), "pmtu verification repeat"),
                    None => (settled.verify_at, "pmtu verification"),
                };
                let kick_off = settled.kick_off.map(|at| (at, "pmtu kick-off unanswered"));
                [Some(verify), Some((settled.climb_at, "pmtu climb")), kick_off].into_iter().flatten().min()
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Idle => {}
            Phase::Asking { until, .. } if now < *until => {}
            Phase::Asking { attempt: KICK_OFF_ATTEMPTS, .. } => {
                self.search(FLOOR, self.longest(), false, now);
            }
            Phase::Asking { attempt, .. } => {
                let attempt = *attempt + 1;
                self.ask(attempt, now);
            }
            Phase::Searching(search) => {
                if now < search.round.due() {
                } else if search.round.repeats + 1 < search.round.schedule.len() {
                    repeat(&mut search.round, &mut self.outputs, now);
                } else {
                    search.failed.extend(search.round.sizes.drain(..));
                    search.optimistic = false;
                    self.mtu = search.good;
                    self.next_round(now);
                }
            }
            Phase::Settled(_) => self.handle_settled_timeout(now),
        }
    }

    fn handle_settled_timeout(&mut self, now: Instant) {
        let Phase::Settled(settled) = &mut self.phase else { return };
        match &mut settled.verification {
            None if now >= settled.verify_at => {
                let size = self.mtu.min(KICK_OFF);
                settled.verify_at = now + VERIFY_INTERVAL;
                settled.verification = Some(begin(vec![size], VERIFICATION, &mut self.outputs, now));
                self.probed.insert(size);
            }
            Some(round) if now >= round.due() => {
                if round.repeats + 1 < round.schedule.len() {
                    repeat(round, &mut self.outputs, now);
                } else {
                    let failed = round.sizes[0];
                    return self.search_below(failed, now);
                }
            }
            _ => {}
        }
        if settled.kick_off.is_some_and(|at| now >= at) {
            settled.kick_off = None;
            if self.mtu < self.ceiling {
                return self.search(self.mtu, self.ceiling, false, now);
            }
        }
        if now >= settled.climb_at {
            settled.climb_at = now + PROBE_UP_INTERVAL;
            if self.mtu < KICK_OFF {
                settled.kick_off = Some(now + KICK_OFF_WAIT);
                self.outputs.push_back(Output::InitialProbe);
            }
        }
    }

    /// What to do next; `None` when that is all.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Looks for the longest size between `good`, which passes, and `ceiling`.
    fn search(&mut self, good: usize, ceiling: usize, optimistic: bool, now: Instant) {
        let good = good.min(ceiling);
        self.ceiling = ceiling;
        self.mtu = if optimistic { ceiling } else { good };
        self.probed.clear();
        let round = Round { sizes: Vec::new(), schedule: ROUND, started: now, repeats: 0 };
        self.phase = Phase::Searching(Search { good, failed: BTreeSet::new(), optimistic, round });
        self.next_round(now);
    }

    /// The same after a size that used to pass has failed.
    fn search_below(&mut self, failed: usize, now: Instant) {
        let good = FLOOR.min(failed.saturating_sub(1));
        self.mtu = good;
        self.probed.clear();
        let round = Round { sizes: Vec::new(), schedule: ROUND, started: now, repeats: 0 };
        // The ceiling may be higher; the next climb looks there.
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
            return self.settle(now);
        }
        let mut sizes: Vec<usize> = COMMON
            .iter()
            .filter_map(|path_mtu| path_mtu.checked_sub(self.overhead))
            .filter(|size| (good + 1..bad).contains(size))
            .collect();
        if bad > self.ceiling {
            // In most cases all of it passes, and one probe says so.
            if search.optimistic {
                sizes.clear();
            }
            sizes.push(self.ceiling);
        } else if sizes.is_empty() {
            let between = bad - good - 1;
            let count = between.min(SPLIT);
            sizes.extend((1..=count).map(|i| good + (between + 1) * i / (count + 1)));
        }
        sizes.sort_unstable();
        sizes.dedup();
        self.probed.extend(&sizes);
        search.round = begin(sizes, ROUND, &mut self.outputs, now);
    }

    fn settle(&mut self, now: Instant) {
        self.phase = Phase::Settled(Settled {
            verify_at: now + VERIFY_INTERVAL,
            verification: None,
            climb_at: now + PROBE_UP_INTERVAL,
            kick_off: None,
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
    // Called late: the rest of the round keeps its pace.
    round.started += now - round.due();
    round.repeats += 1;
    probe(round, outputs);
}

/// Longest first: what is acknowledged spares the shorter ones.
fn probe(round: &Round, outputs: &mut VecDeque<Output>) {
    outputs.extend(round.sizes.iter().rev().map(|size| Output::Probe(*size as u16)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path with a round trip, on which longer packets vanish; the kernel knows `kernel`, in inner sizes.
    struct Sim {
        pmtu: Pmtu,
        now: Instant,
        passes: usize,
        kernel: Option<usize>,
        rtt: Duration,
        /// Every n-th probe is lost.
        lossy: usize,
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
                lossy: usize::MAX,
                probes: Vec::new(),
                in_flight: VecDeque::new(),
            }
        }

        fn drain(&mut self) {
            while let Some(output) = self.pmtu.poll_output() {
                let size = match output {
                    Output::Verified => continue,
                    Output::InitialProbe => KICK_OFF as u16,
                    Output::Probe(size) => {
                        self.probes.push(size);
                        if self.probes.len() % self.lossy == self.lossy - 1 {
                            continue;
                        }
                        size
                    }
                };
                match self.kernel {
                    Some(kernel) if usize::from(size) > kernel => {
                        self.pmtu.handle_path_mtu((kernel + self.pmtu.overhead) as u16, self.now);
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

        fn settled(&self) -> Option<usize> {
            matches!(self.pmtu.phase, Phase::Settled(_)).then_some(self.pmtu.mtu())
        }
    }

    #[test]
    fn a_clean_path_needs_one_probe() {
        for (overhead, mtu) in [(62, 1438), (86, 1414)] {
            let mut sim = Sim::new(overhead, mtu, Some(mtu));
            sim.run(ms(10));
            assert_eq!((sim.settled(), sim.probes.as_slice()), (Some(mtu), &[mtu as u16][..]));
            assert_eq!(sim.pmtu.max_payload(), 1472);
        }
    }

    #[test]
    fn every_black_hole_is_found_within_three_seconds() {
        for passes in (FLOOR..1438).step_by(7).chain([638, 1437]) {
            let mut sim = Sim::new(62, passes, Some(1438));
            sim.run(ms(3000));
            assert_eq!(sim.settled(), Some(passes));
            assert!(sim.probes.len() <= 200, "{} probes", sim.probes.len());
        }
        for passes in (FLOOR..8938).step_by(101) {
            let mut sim = Sim::new(62, passes, Some(8938));
            sim.run(ms(4000));
            assert_eq!(sim.settled(), Some(passes));
        }
    }

    #[test]
    fn packets_that_vanish_are_not_sent_for_long() {
        let mut sim = Sim::new(62, 638, Some(1438));
        sim.run(ms(10));
        assert_eq!(sim.pmtu.mtu(), 1438, "taken to work, as in the original");
        sim.run(ms(500));
        assert_eq!(sim.pmtu.mtu(), 638, "what is known to work is used at once");
        assert_eq!(sim.settled(), None);
    }

    #[test]
    fn loss_and_long_round_trips_do_no_harm() {
        for (rtt, lossy) in [(700, usize::MAX), (3000, usize::MAX), (20, 2), (20, 3), (400, 3)] {
            let mut sim = Sim::new(62, 1000, Some(1438));
            (sim.rtt, sim.lossy) = (ms(rtt), lossy);
            sim.run(Duration::from_secs(25));
            assert_eq!(sim.settled(), Some(1000), "rtt {rtt}, every {lossy}th lost");
            let mut sim = Sim::new(62, 1438, Some(1438));
            (sim.rtt, sim.lossy) = (ms(rtt), lossy);
            sim.run(Duration::from_secs(25));
            assert_eq!(sim.settled(), Some(1438), "rtt {rtt}, every {lossy}th lost");
        }
    }

    #[test]
    fn a_path_without_a_limit_stays_unlimited() {
        let mut sim = Sim::new(62, 65535, None);
        sim.run(Duration::from_secs(600));
        assert_eq!((sim.settled(), sim.pmtu.max_payload()), (Some(UNLIMITED), MAX_DATAGRAM));
    }

    #[test]
    fn a_silent_kernel_does_not_stop_the_search() {
        let mut sim = Sim::new(86, 1414, None);
        sim.run(ms(3000 + 3000));
        assert_eq!(sim.settled(), Some(1414));
    }

    #[test]
    fn a_black_hole_that_appears_later_is_noticed() {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.run(Duration::from_secs(100));
        sim.passes = 900;
        sim.run(VERIFY_INTERVAL + ms(5000 + 3000));
        assert_eq!(sim.settled(), Some(900));
    }

    #[test]
    fn climbs_back_when_the_path_has_grown() {
        // A black hole goes away.
        let mut sim = Sim::new(62, 900, Some(1438));
        sim.run(Duration::from_secs(10));
        assert_eq!(sim.settled(), Some(900));
        sim.passes = 1438;
        sim.run(PROBE_UP_INTERVAL + ms(3000));
        assert_eq!(sim.settled(), Some(1438));
        // The kernel forgets a lower path MTU.
        let mut sim = Sim::new(62, 1438, Some(1238));
        sim.run(Duration::from_secs(10));
        assert_eq!(sim.settled(), Some(1238));
        sim.kernel = Some(1438);
        sim.run(PROBE_UP_INTERVAL + ms(3000));
        assert_eq!(sim.settled(), Some(1438));
        // And after a shrink that only our own test has noticed.
        sim.passes = 700;
        sim.run(VERIFY_INTERVAL + ms(8000));
        assert_eq!(sim.settled(), Some(700));
        sim.passes = 1438;
        sim.run(PROBE_UP_INTERVAL + ms(3000));
        assert_eq!(sim.settled(), Some(1438));
    }

    #[test]
    fn the_kernel_learns_of_a_shorter_path() {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.run(ms(100));
        (sim.kernel, sim.passes) = (Some(1138), 1138);
        sim.pmtu.handle_path_mtu(1200, sim.now);
        sim.run(ms(100));
        assert_eq!(sim.settled(), Some(1138));
        // Echoes change nothing.
        let probes = sim.probes.len();
        sim.pmtu.handle_path_mtu(1200, sim.now);
        sim.pmtu.handle_path_mtu(0, sim.now);
        sim.pmtu.handle_path_mtu(100, sim.now);
        sim.run(ms(100));
        assert_eq!((sim.settled(), sim.probes.len()), (Some(1138), probes));
    }

    #[test]
    fn a_settled_link_is_quiet() {
        let mut sim = Sim::new(62, 1438, Some(1438));
        let hour = Duration::from_secs(3600);
        sim.run(hour);
        let verifications = (hour.as_secs() / VERIFY_INTERVAL.as_secs()) as usize;
        assert!(sim.probes.len() <= verifications + 1, "{} probes in an hour", sim.probes.len());
    }

    #[test]
    fn acknowledgements_of_what_was_not_asked_are_ignored() {
        let mut pmtu = Pmtu::new(62);
        pmtu.handle_ack(1438, Instant::ORIGIN);
        pmtu.start(Instant::ORIGIN);
        pmtu.handle_ack(1438, Instant::ORIGIN);
        pmtu.handle_path_mtu(1500, Instant::ORIGIN);
        for size in [0, 552, 1437, 1439, 59986, 65535] {
            pmtu.handle_ack(size, Instant::ORIGIN);
            assert!(matches!(pmtu.phase, Phase::Searching(_)), "{size}");
        }
        pmtu.handle_ack(1438, Instant::ORIGIN);
        assert_eq!(pmtu.mtu(), 1438);
        assert!(matches!(pmtu.phase, Phase::Settled(_)));
    }
}
