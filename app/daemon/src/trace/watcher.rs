//! The thread that looks for frames on behalf of peers.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use weave_overlay::forward::FrameWatch;
use weave_trace::{Flow, MAX_WATCHES, Message, WATCH_LIFETIME};
use weave_types::PeerName;

use super::context::Context;
use super::watch::Watch;

/// The thread looks at least so often which watches have expired.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn start(context: Context, messages: Receiver<(PeerName, Message)>) -> io::Result<()> {
    let mut watcher = Watcher { context, watches: BTreeMap::new() };
    let thread = std::thread::Builder::new().name("weave-trace".to_owned());
    thread.spawn(move || watcher.run(&messages)).map(drop)
}

struct Watcher {
    context: Context,
    /// By who asked, and the id of the trace.
    watches: BTreeMap<(PeerName, u64), (Instant, Watch)>,
}

impl Watcher {
    fn run(&mut self, messages: &Receiver<(PeerName, Message)>) {
        loop {
            let received = if self.watches.is_empty() {
                messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                messages.recv_timeout(EXPIRY_INTERVAL)
            };
            match received {
                Ok((from, message)) => self.handle(from, message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let before = self.watches.len();
            self.watches.retain(|_, (begin, _)| begin.elapsed() < WATCH_LIFETIME);
            if self.watches.len() != before {
                self.publish();
            }
        }
    }

    fn handle(&mut self, from: PeerName, message: Message) {
        match message {
            Message::Watch { id, flow, toward } => {
                let answer = match self.watch(from, id, flow) {
                    Ok(()) => match self.context.control.trace_hop_blocking(flow, toward) {
                        Some(hop) => Message::Hop { id, toward, hop },
                        // The daemon is ending.
                        None => return,
                    },
                    Err(reason) => Message::Refused { id, reason },
                };
                self.answer(from, answer);
            }
            Message::Collect { id } => {
                let Some((_, watch)) = self.watches.remove(&(from, id)) else { return };
                let report = watch.report();
                self.publish();
                self.answer(from, Message::Report { id, report });
            }
            answer => self.deliver(from, answer),
        }
    }

    /// Begins to look for frames, unless that has begun already.
    fn watch(&mut self, from: PeerName, id: u64, flow: Flow) -> Result<(), String> {
        if self.watches.contains_key(&(from, id)) {
            return Ok(());
        }
        if self.watches.len() >= MAX_WATCHES {
            return Err("too many traces at the same time".to_owned());
        }
        let watch = Watch::start(&self.context.names, flow).map_err(|e| e.to_string())?;
        self.watches.insert((from, id), (Instant::now(), watch));
        self.publish();
        Ok(())
    }

    /// Has the data path look for the frames of all watches.
    fn publish(&self) {
        let in_user_space = |(_, watch): &(Instant, Watch)| watch.in_user_space();
        let watches: Vec<Arc<dyn FrameWatch>> = self.watches.values().map(in_user_space).collect();
        let _ = self.context.control.set_frame_watches_blocking(watches);
    }

    fn answer(&self, to: PeerName, message: Message) {
        if to == self.context.own {
            self.deliver(to, message);
        } else {
            self.context.send(to, message);
        }
    }

    /// Passes an answer to the running trace.
    fn deliver(&self, from: PeerName, answer: Message) {
        if let Some((_, answers)) = self.context.running().as_ref().filter(|(id, _)| *id == answer.id()) {
            let _ = answers.send((from, answer));
        }
    }
}
