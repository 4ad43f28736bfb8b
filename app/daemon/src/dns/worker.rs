//! A thread that answers the queries of one UDP socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use weave_datapath::{Answer, ServerBuffers, ServerSocket};
use weave_dns::{ErrorCode, Responder, Transport, Verdict, answer_with_error};

use super::Shared;
use super::counters::{AnswerCounts, add};
use super::job::{Client, Job};

/// Datagrams in one call. More would make the first of them wait.
const BATCH: usize = 32;
/// Longest query. Those that programs send have less than 512 bytes.
const MAX_QUERY: usize = 4096;
/// Capacity of an answer's buffer: the longest answer over UDP.
const MAX_ANSWER: usize = 4096;
/// Pause after a failed receive (no memory left, say).
const RECEIVE_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The thread. Dropping this ends it and closes the socket.
pub(super) struct WorkerHandle {
    socket: Arc<ServerSocket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.socket.shut_down();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that answers DNS queries has panicked");
        }
    }
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    responder: Responder,
    socket: Arc<ServerSocket>,
    stop: Arc<AtomicBool>,
    buffers: ServerBuffers,
    answers: Vec<Vec<u8>>,
    /// Whom the answers of this batch are for.
    clients: Vec<(SocketAddr, IpAddr)>,
}

impl Worker {
    pub(super) fn start(shared: &Arc<Shared>, socket: ServerSocket) -> io::Result<WorkerHandle> {
        let (socket, stop) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let mut handle = WorkerHandle { socket: socket.clone(), stop: stop.clone(), thread: None };
        let (shared, responder) = (shared.clone(), shared.responder()?);
        let run = move || {
            let worker = Worker {
                shared,
                responder,
                socket,
                stop,
                buffers: ServerBuffers::new(BATCH, MAX_QUERY),
                answers: (0..BATCH).map(|_| Vec::with_capacity(MAX_ANSWER)).collect(),
                clients: Vec::with_capacity(BATCH),
            };
            worker.run();
        };
        let thread = std::thread::Builder::new().name("weave-dns-udp".to_owned()).spawn(run)?;
        handle.thread = Some(thread);
        Ok(handle)
    }

    fn run(mut self) {
        loop {
            let received = self.socket.receive(&mut self.buffers);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            match received {
                Ok(count) => self.answer(count),
                Err(_) => std::thread::sleep(RECEIVE_RETRY_DELAY),
            }
        }
    }

    /// Answers the `count` datagrams of the last call.
    fn answer(&mut self, count: usize) {
        let names = self.shared.names.load();
        let (mut counts, mut dropped, mut not_allowed) = (AnswerCounts::default(), 0, 0);
        self.clients.clear();
        for index in 0..count {
            let Some(request) = self.buffers.request(index) else {
                dropped += 1;
                continue;
            };
            let answer = &mut self.answers[self.clients.len()];
            let (from, local) = (request.from, request.local);
            match self.responder.answer(request.data, &names, Transport::Udp, answer) {
                Verdict::Ignore => {
                    dropped += 1;
                    continue;
                }
                Verdict::Answer(kind) => counts.add(kind),
                Verdict::Forward if (self.shared.config.may_recurse)(from.ip()) => {
                    let client = Client::Udp { socket: Arc::downgrade(&self.socket), to: from, local };
                    let job = Job { client, query: request.data.to_vec() };
                    if self.shared.enqueue(job) {
                        continue;
                    }
                    answer_with_error(request.data, ErrorCode::ServerFailure, answer);
                }
                Verdict::Forward => {
                    not_allowed += 1;
                    answer_with_error(request.data, ErrorCode::Refused, answer);
                }
            }
            self.clients.push((from, local));
        }
        let answers = self.clients.iter().zip(&self.answers);
        let answers: Vec<_> = answers.map(|(&(to, local), data)| Answer { data, to, local }).collect();
        // Counted before the answers leave, so that whoever has an answer finds it counted.
        let counters = &self.shared.counters;
        counters.add_answers(&counts);
        add(&counters.not_allowed, not_allowed);
        dropped += self.socket.send(&mut self.buffers, &answers) as u64;
        add(&counters.dropped, dropped);
    }
}
