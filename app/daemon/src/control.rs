//! What the HTTP side asks of the peer. The peer lives in one task; questions travel over a channel with their answer's
//! way back.

use tokio::sync::{mpsc, oneshot};
use weave_api::Report;

/// One question.
#[derive(Debug)]
pub enum Request {
    /// Everything there is to know.
    Report(oneshot::Sender<Report>),
    /// Connect to more peers; the texts of those refused come back.
    Connect {
        /// As typed.
        peers: Vec<String>,
        /// Forget all others first.
        replace: bool,
        /// What was refused and why.
        answer: oneshot::Sender<Vec<String>>,
    },
    /// Do not connect to these again.
    Forget {
        /// As typed when they were added.
        peers: Vec<String>,
        /// Done.
        answer: oneshot::Sender<()>,
    },
}

/// The way to the peer. Everything answers `None` once the peer ends.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Request>);

impl Control {
    /// A way and its other end; at most `bound` questions wait.
    pub fn new(bound: usize) -> (Control, mpsc::Receiver<Request>) {
        let (tx, rx) = mpsc::channel(bound);
        (Control(tx), rx)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, result) = oneshot::channel();
        self.0.send(request(answer)).await.ok()?;
        result.await.ok()
    }

    /// Everything there is to know.
    pub async fn report(&self) -> Option<Report> {
        self.ask(Request::Report).await
    }

    /// Connect to more peers; the texts of those refused.
    pub async fn connect(&self, peers: Vec<String>, replace: bool) -> Option<Vec<String>> {
        self.ask(|answer| Request::Connect { peers, replace, answer }).await
    }

    /// Do not connect to these again.
    pub async fn forget(&self, peers: Vec<String>) -> Option<()> {
        self.ask(|answer| Request::Forget { peers, answer }).await
    }
}
