//! The side that asks: finds the peers on the way and back, then collects what they have seen.
//!
//! ```text
//!  there: ask the origin, then whom it names, ... up to the target
//!  back:  ask the target, ...                      up to the origin
//!  ready: the driver sends the probes
//!  collect: ask all of them at the same time
//! ```
//! A peer that does not answer, or cannot be asked, is passed over: the topology says who follows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use weave_types::{Instant, PeerName};

use crate::flow::{Direction, Flow};
use crate::message::{Hop, Message, Report};

/// Longest way, in peers.
pub const MAX_HOPS: usize = 16;
/// A question that is not answered after this time is sent once more.
const REPEAT_AFTER: Duration = Duration::from_millis(400);
/// A peer that has not answered after this time is passed over.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1200);
/// After this time no further peers are asked, so that those asked first still look for the frames.
const WALK_TIMEOUT: Duration = Duration::from_secs(8);

/// What is traced.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// Identifies the trace; random, so that nobody else can answer.
    pub id: u64,
    /// This peer, whose container sends the probes.
    pub origin: PeerName,
    /// The peer that has the destination.
    pub target: PeerName,
    /// The frames.
    pub flow: Flow,
    /// The ways there and back according to the topology, with both ends, by [`Direction`]. They are used where a peer cannot be asked.
    pub expected: [Vec<PeerName>; 2],
}

/// Why a peer has told nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Its version has no traces.
    Unsupported,
    /// It has not answered in time.
    NoAnswer,
    /// It has refused.
    Refused(String),
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to a peer; to this one, too.
    Send(PeerName, Message),
    /// All peers look for the frames: send the probes, then call [`Trace::collect`].
    Ready,
    /// Everything is known.
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Walking(Direction, Question),
    Probing,
    Collecting(BTreeSet<PeerName>, Question),
    Done,
}

/// An open question: when it is asked again, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    repeat_at: Option<Instant>,
    until: Instant,
}

impl Question {
    fn new(now: Instant) -> Question {
        Question { repeat_at: Some(now + REPEAT_AFTER), until: now + ANSWER_TIMEOUT }
    }

    fn due(&self) -> Instant {
        self.repeat_at.unwrap_or(self.until)
    }
}

/// The questions of one trace, and what was answered.
#[derive(Debug)]
pub struct Trace {
    config: TraceConfig,
    phase: Phase,
    paths: [Vec<PeerName>; 2],
    hops: [BTreeMap<PeerName, Hop>; 2],
    reports: BTreeMap<PeerName, Report>,
    silent: BTreeMap<PeerName, Silence>,
    walk_until: Instant,
    outputs: VecDeque<Output>,
}

impl Trace {
    /// Begins with the question to this peer.
    pub fn new(config: TraceConfig, now: Instant) -> Trace {
        let mut trace = Trace {
            paths: [vec![config.origin], vec![config.target]],
            phase: Phase::Walking(Direction::There, Question::new(now)),
            config,
            hops: Default::default(),
            reports: BTreeMap::new(),
            silent: BTreeMap::new(),
            walk_until: now + WALK_TIMEOUT,
            outputs: VecDeque::new(),
        };
        trace.ask(Direction::There, now);
        trace
    }

    /// What is traced.
    pub fn config(&self) -> &TraceConfig {
        &self.config
    }

    /// The peers on the way, with those that cannot be asked as far as they are known.
    pub fn path(&self, direction: Direction) -> &[PeerName] {
        &self.paths[direction as usize]
    }

    /// How the way goes on at a peer, if it has told.
    pub fn hop(&self, direction: Direction, peer: PeerName) -> Option<&Hop> {
        self.hops[direction as usize].get(&peer)
    }

    /// What a peer has seen, if it has told.
    pub fn report(&self, peer: PeerName) -> Option<&Report> {
        self.reports.get(&peer)
    }

    /// Why a peer has not told.
    pub fn silence(&self, peer: PeerName) -> Option<&Silence> {
        self.silent.get(&peer)
    }

    /// A message of another peer, or of this one. One that answers no open question is ignored.
    pub fn handle_message(&mut self, from: PeerName, message: Message, now: Instant) {
        if message.id() != self.config.id {
            return;
        }
        match (&mut self.phase, message) {
            (Phase::Walking(direction, _), Message::Hop { toward, hop, .. })
                if self.paths[*direction as usize].last() == Some(&from)
                    && toward == end(&self.config, *direction) =>
            {
                let direction = *direction;
                self.hops[direction as usize].insert(from, hop);
                self.go_on(direction, now);
            }
            (Phase::Walking(direction, _), Message::Refused { reason, .. })
                if self.paths[*direction as usize].last() == Some(&from) =>
            {
                let direction = *direction;
                self.silent.insert(from, Silence::Refused(reason));
                self.pass_over(direction, now);
            }
            (Phase::Collecting(waiting, _), Message::Report { report, .. }) => {
                if waiting.remove(&from) {
                    self.reports.insert(from, report);
                }
                self.finish_if_complete();
            }
            _ => {}
        }
    }

    /// The probes have been sent, and their answers awaited.
    pub fn collect(&mut self, now: Instant) {
        if self.phase != Phase::Probing {
            return;
        }
        let asked = self.paths.iter().flatten().filter(|peer| !self.silent.contains_key(*peer));
        let waiting: BTreeSet<PeerName> = asked.copied().collect();
        self.send_collect(&waiting);
        self.phase = Phase::Collecting(waiting, Question::new(now));
        self.finish_if_complete();
    }

    /// When to call [`Trace::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.phase {
            Phase::Walking(_, question) => Some((question.due(), "hop of a trace")),
            Phase::Collecting(_, question) => Some((question.due(), "report of a trace")),
            Phase::Probing | Phase::Done => None,
        }
    }

    /// Handles timers that are due. Calling it late or too often is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (Phase::Walking(_, question) | Phase::Collecting(_, question)) = &mut self.phase else { return };
        let is_over = question.until <= now;
        let repeats = question.repeat_at.take_if(|at| *at <= now).is_some();
        match &self.phase {
            Phase::Walking(direction, _) if is_over => {
                let direction = *direction;
                if let Some(peer) = self.paths[direction as usize].last() {
                    self.silent.insert(*peer, Silence::NoAnswer);
                }
                self.pass_over(direction, now);
            }
            Phase::Walking(direction, _) if repeats => self.send_watch(*direction),
            Phase::Collecting(waiting, _) if is_over => {
                self.silent.extend(waiting.iter().map(|peer| (*peer, Silence::NoAnswer)));
                self.finish();
            }
            Phase::Collecting(waiting, _) if repeats => self.send_collect(&waiting.clone()),
            _ => {}
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Asks the last peer of the path, unless it is known that it does not answer.
    fn ask(&mut self, direction: Direction, now: Instant) {
        let last = self.paths[direction as usize].last();
        if last.is_some_and(|peer| self.silent.contains_key(peer)) {
            return self.pass_over(direction, now);
        }
        self.phase = Phase::Walking(direction, Question::new(now));
        self.send_watch(direction);
    }

    fn send_watch(&mut self, direction: Direction) {
        let (id, flow, toward) = (self.config.id, self.config.flow, end(&self.config, direction));
        if let Some(peer) = self.paths[direction as usize].last() {
            self.outputs.push_back(Output::Send(*peer, Message::Watch { id, flow, toward }));
        }
    }

    fn send_collect(&mut self, to: &BTreeSet<PeerName>) {
        let id = self.config.id;
        self.outputs.extend(to.iter().map(|peer| Output::Send(*peer, Message::Collect { id })));
    }

    /// Goes where the last peer of the path says.
    fn go_on(&mut self, direction: Direction, now: Instant) {
        let path = &self.paths[direction as usize];
        let next = path.last().and_then(|last| self.hops[direction as usize].get(last)?.next.as_ref().ok());
        let Some(link) = next.filter(|link| !path.contains(&link.peer) && path.len() < MAX_HOPS) else {
            return self.turn(direction, now);
        };
        let (peer, traces) = (link.peer, link.traces);
        if !traces {
            self.silent.insert(peer, Silence::Unsupported);
        }
        self.paths[direction as usize].push(peer);
        self.ask(direction, now);
    }

    /// Goes where the topology says.
    fn pass_over(&mut self, direction: Direction, now: Instant) {
        let path = &self.paths[direction as usize];
        let target = end(&self.config, direction);
        let may_go_on = now < self.walk_until && path.len() < MAX_HOPS;
        let Some(&last) = path.last().filter(|last| **last != target && may_go_on) else {
            return self.turn(direction, now);
        };
        let expected = &self.config.expected[direction as usize];
        let next = expected.iter().skip_while(|peer| **peer != last).nth(1).copied().unwrap_or(target);
        if path.contains(&next) {
            return self.turn(direction, now);
        }
        self.paths[direction as usize].push(next);
        self.ask(direction, now);
    }

    fn turn(&mut self, direction: Direction, now: Instant) {
        let reached = self.paths[0].last() == Some(&self.config.target);
        match direction {
            Direction::There if reached && self.config.origin != self.config.target => {
                self.ask(Direction::Back, now);
            }
            _ => {
                self.phase = Phase::Probing;
                self.outputs.push_back(Output::Ready);
            }
        }
    }

    fn finish_if_complete(&mut self) {
        if matches!(&self.phase, Phase::Collecting(waiting, _) if waiting.is_empty()) {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.phase = Phase::Done;
        self.outputs.push_back(Output::Done);
    }
}

/// The last peer of the way.
fn end(config: &TraceConfig, direction: Direction) -> PeerName {
    match direction {
        Direction::There => config.target,
        Direction::Back => config.origin,
    }
}
