use std::io;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

use weave_api::trace::{TraceReport, TraceRequest};
use weave_host::{DeviceNames, NetNs};
use weave_trace::Message;
use weave_types::PeerName;

use super::context::{Context, TraceInbox};
use super::run;
use super::watcher;
use crate::control::Control;

/// Runs traces of this host.
#[derive(Clone, Debug)]
pub(crate) struct Tracer {
    context: Context,
}

impl Tracer {
    /// Starts the thread that looks for frames, and gets messages by `inbox`.
    pub(crate) fn start(
        own: PeerName,
        names: DeviceNames,
        control: Control,
        (inbox, messages): (TraceInbox, Receiver<(PeerName, Message)>),
    ) -> io::Result<Tracer> {
        let running = Arc::new(Mutex::new(None));
        let context = Context { own, names: Arc::new(names), control, inbox, running };
        watcher::start(context.clone(), messages)?;
        Ok(Tracer { context })
    }

    /// Traces from a namespace, or from the host itself, one at a time. Every wait in it has an end.
    pub(crate) fn trace(&self, request: &TraceRequest, ns: Option<NetNs>) -> Result<TraceReport, String> {
        let mut seed = [0; 10];
        getrandom::fill(&mut seed).map_err(|e| format!("cannot get random numbers: {e}"))?;
        let [a, b, c, d, e, f, g, h, high, low] = seed;
        let (id, icmp_id) = (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u16::from_ne_bytes([high, low]));
        let (answers, received) = mpsc::channel();
        if self.context.running().get_or_insert((id, answers)).0 != id {
            return Err("another trace is running on this host; try again when it has ended".to_owned());
        }
        let result = run::trace(&self.context, request, ns, (id, icmp_id), &received);
        *self.context.running() = None;
        result
    }
}
