//! The stream of views of the network, as server-sent events: the latest view at once, then at most one in a second while something changes.
//!
//! ```text
//!   node -- one view in a second, while there are readers --> watch -+-> reader --> body of an answer
//!                                                                    +-> reader --> body of an answer
//! ```
//!
//! A reader that is slower than the views misses some of them; one that does not read at all is disconnected by the time-out for writing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{mpsc, watch};
use weave_api::NetworkView;

use super::connection_limits::{ConnectionLimits, Place};
use super::origin::Holder;
use crate::control::Control;

/// Readers of one listener besides root's, and as many of root; a quarter for a user or host.
const MAX_READERS: usize = 32;
/// Interval of the views.
const INTERVAL: Duration = Duration::from_secs(1);
/// A reader hears at least so often from the daemon.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Clients ignore events without data.
const HEARTBEAT: &[u8] = b"event: heartbeat\ndata: -\n\n";

#[derive(Debug)]
pub(super) struct ViewFeed {
    control: Control,
    readers: Arc<ConnectionLimits>,
    /// The latest view as an event; empty until there is one.
    latest: watch::Sender<Bytes>,
    /// Whether views are made.
    is_running: Mutex<bool>,
}

impl ViewFeed {
    pub(super) fn new(control: Control) -> Arc<ViewFeed> {
        Arc::new(ViewFeed {
            control,
            readers: ConnectionLimits::new(MAX_READERS),
            latest: watch::Sender::new(Bytes::new()),
            is_running: Mutex::new(false),
        })
    }

    /// `None` if this holder, or all together, have too many streams.
    pub(super) fn subscribe(self: &Arc<ViewFeed>, holder: Holder) -> Option<EventStream> {
        let place = self.readers.try_admit(holder)?;
        let mut is_running = self.is_running.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_running {
            *is_running = true;
            self.latest.send_replace(Bytes::new());
            tokio::spawn(self.clone().make_views());
        }
        let mut views = self.latest.subscribe();
        views.mark_changed();
        let (to, from) = mpsc::channel(1);
        tokio::spawn(pass_on(views, to, self.control.clone(), place));
        Some(EventStream(from))
    }

    /// Makes views while somebody reads them.
    async fn make_views(self: Arc<ViewFeed>) {
        let (mut last, mut has_changed) = (None, false);
        loop {
            if let Some(view) = self.control.network_view().await {
                let content = NetworkView { time: 0, ..view.clone() };
                let had_changed = std::mem::replace(&mut has_changed, last.as_ref() != Some(&content));
                // One more after a change, because readers compute rates.
                if has_changed || had_changed {
                    last = Some(content);
                    self.latest.send_replace(format!("data: {}\n\n", view.to_json()).into());
                }
            }
            tokio::time::sleep(INTERVAL).await;
            let mut is_running = self.is_running.lock().unwrap_or_else(PoisonError::into_inner);
            if self.latest.receiver_count() == 0 {
                *is_running = false;
                return;
            }
        }
    }
}

/// Passes views on until the client disconnects, or the node has ended.
async fn pass_on(
    mut views: watch::Receiver<Bytes>,
    to: mpsc::Sender<Bytes>,
    control: Control,
    _place: Place,
) {
    while !control.has_ended() {
        let event = tokio::select! {
            () = to.closed() => return,
            changed = views.changed() => match changed {
                Ok(()) => views.borrow_and_update().clone(),
                Err(_) => return,
            },
            () = tokio::time::sleep(HEARTBEAT_INTERVAL) => Bytes::from_static(HEARTBEAT),
        };
        if !event.is_empty() && to.send(event).await.is_err() {
            return;
        }
    }
}

/// The body of an answer that does not end by itself.
#[derive(Debug)]
pub(crate) struct EventStream(mpsc::Receiver<Bytes>);

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}
