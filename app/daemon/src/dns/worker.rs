//! A thread that answers over UDP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rand_chacha::ChaCha12Rng;
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
/// A worker closes its sockets in this time unless it hangs.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The sockets to serve. The sender is dropped when the former ones are closed.
type Command = (Vec<Arc<ServerSocket>>, mpsc::Sender<()>);

pub(super) struct WorkerHandle {
    commands: Option<mpsc::Sender<Command>>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// Ends when a worker has closed the sockets that it no longer serves.
pub(super) struct Acknowledgement(mpsc::Receiver<()>);

impl Acknowledgement {
    pub(super) fn wait(self) {
        // Nothing is sent: the receiver is disconnected when the worker drops the sender.
        let _ = self.0.recv_timeout(ACKNOWLEDGE_TIMEOUT);
    }
}

impl WorkerHandle {
    pub(super) fn set_sockets(&self, sockets: Vec<Arc<ServerSocket>>) -> Acknowledgement {
        let (done, acknowledged) = mpsc::channel();
        if let Some(commands) = &self.commands {
            let _ = commands.send((sockets, done));
            self.wake();
        }
        Acknowledgement(acknowledged)
    }

    fn wake(&self) {
        // A full buffer wakes as well.
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread that answers DNS queries has panicked");
        }
    }
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    responder: Responder<ChaCha12Rng>,
    sockets: Vec<Arc<ServerSocket>>,
    commands: mpsc::Receiver<Command>,
    wake: UnixStream,
    buffers: ServerBuffers,
    answers: Vec<Vec<u8>>,
    /// Whom the answers of this batch are for.
    clients: Vec<(SocketAddr, IpAddr)>,
}

impl Worker {
    pub(super) fn start(shared: &Arc<Shared>, number: usize) -> io::Result<WorkerHandle> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let (commands, receiver) = mpsc::channel();
        let (shared, responder) = (shared.clone(), shared.responder()?);
        let run = move || {
            let worker = Worker {
                shared,
                responder,
                sockets: Vec::new(),
                commands: receiver,
                wake: woken,
                buffers: ServerBuffers::new(BATCH, MAX_QUERY),
                answers: (0..BATCH).map(|_| Vec::with_capacity(MAX_ANSWER)).collect(),
                clients: Vec::with_capacity(BATCH),
            };
            worker.run();
        };
        let thread = std::thread::Builder::new().name(format!("weave-dns-{number}")).spawn(run)?;
        Ok(WorkerHandle { commands: Some(commands), wake, thread: Some(thread) })
    }

    fn run(mut self) {
        loop {
            match self.commands.try_recv() {
                Ok((sockets, _done)) => self.sockets = sockets,
                Err(mpsc::TryRecvError::Empty) => {}
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
            let mut idle = true;
            for n in 0..self.sockets.len() {
                idle &= !self.serve(n);
            }
            if idle {
                self.wait();
            }
        }
    }

    fn wait(&mut self) {
        let mut fds: Vec<_> =
            self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        fds.push(PollFd::new(self.wake.as_fd(), PollFlags::POLLIN));
        // An interrupted call is repeated by the caller.
        let _ = poll(&mut fds, PollTimeout::NONE);
        drop(fds);
        while (&self.wake).read(&mut [0; 64]).is_ok_and(|len| len > 0) {}
    }

    /// Answers one batch. Returns whether there was one.
    fn serve(&mut self, number: usize) -> bool {
        let socket = &self.sockets[number];
        // An error that is not `WouldBlock` was reported for an earlier answer, and reading clears it.
        let Ok(count) = socket.receive(&mut self.buffers) else { return false };
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
                    let client = Client::Udp { socket: Arc::downgrade(socket), to: from, local };
                    let job = Job { client, query: request.data.to_vec() };
                    dropped += u64::from(self.shared.forward.try_send(job).is_err());
                    continue;
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
        dropped += socket.send(&mut self.buffers, &answers) as u64;
        add(&counters.dropped, dropped);
        true
    }
}
