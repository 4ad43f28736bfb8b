use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weave_host::DeviceNames;
use weave_trace::Message;
use weave_types::PeerName;

use crate::control::Control;

/// Messages that wait for the thread. Further ones are dropped, as on the way.
const QUEUE: usize = 64;

/// Passes received messages to the thread.
#[derive(Clone, Debug)]
pub(crate) struct TraceInbox(SyncSender<(PeerName, Message)>);

impl TraceInbox {
    /// Never waits.
    pub(crate) fn deliver(&self, from: PeerName, message: Message) {
        let _ = self.0.try_send((from, message));
    }
}

/// Channel for the messages of other peers: `core` gets the first half.
pub(crate) fn inbox() -> (TraceInbox, Receiver<(PeerName, Message)>) {
    let (sender, receiver) = mpsc::sync_channel(QUEUE);
    (TraceInbox(sender), receiver)
}

/// The id of the running trace, and where answers to it go.
type Running = Option<(u64, Sender<(PeerName, Message)>)>;

/// What the threads of traces share.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) own: PeerName,
    pub(super) names: Arc<DeviceNames>,
    pub(super) control: Control,
    pub(super) inbox: TraceInbox,
    pub(super) running: Arc<Mutex<Running>>,
}

impl Context {
    pub(super) fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message to a peer, or to the thread of this one.
    pub(super) fn send(&self, to: PeerName, message: Message) {
        if to == self.own {
            self.inbox.deliver(to, message);
        } else {
            let _ = self.control.send_trace_blocking(to, message);
        }
    }
}
