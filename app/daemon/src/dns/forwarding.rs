//! The task that asks the servers of the host.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use weave_datapath::Answer;
use weave_dns::{ExchangeId, Forwarder, ForwarderConfig, ForwarderOutput, Transport};
use weave_types::Instant;

use super::Shared;
use super::job::{Client, Job, with_length};

/// Answers that wait for the task.
const ANSWER_QUEUE: usize = 256;
/// Longest answer over UDP that is read; servers are asked for less.
const MAX_DATAGRAM: usize = 4096;
/// How long it may take to connect to a server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a server sent, or `None` if it cannot be asked.
type Received = (ExchangeId, Option<Vec<u8>>);

pub(super) async fn run(
    shared: Arc<Shared>,
    config: ForwarderConfig,
    seed: [u8; 32],
    mut jobs: mpsc::Receiver<Job>,
) {
    let origin = tokio::time::Instant::now();
    let now = || Instant::from_origin(origin.elapsed());
    let mut forwarder = Forwarder::new(config, seed);
    let mut exchanges: BTreeMap<ExchangeId, AbortHandle> = BTreeMap::new();
    let (answers_tx, mut answers) = mpsc::channel::<Received>(ANSWER_QUEUE);
    loop {
        // Before the answers leave, so that whoever has an answer finds it counted.
        shared.counters.set_forwarder(forwarder.stats());
        while let Some(output) = forwarder.poll_output() {
            match output {
                ForwarderOutput::Ask { exchange, server, transport, query } => {
                    let answers = answers_tx.clone();
                    let task = tokio::spawn(async move {
                        let result = match transport {
                            Transport::Udp => ask_over_udp(exchange, server, &query, &answers).await,
                            Transport::Tcp => ask_over_tcp(exchange, server, &query, &answers).await,
                        };
                        if let Err(error) = result {
                            tracing::debug!("cannot ask the DNS server {server}: {error}");
                            let _ = answers.send((exchange, None)).await;
                        }
                    });
                    exchanges.insert(exchange, task.abort_handle());
                }
                ForwarderOutput::Close(exchange) => {
                    if let Some(task) = exchanges.remove(&exchange) {
                        task.abort();
                    }
                }
                ForwarderOutput::Reply { client, answer } => reply(client, answer),
            }
        }
        let wake = async {
            match forwarder.poll_timeout() {
                Some((at, _)) => tokio::time::sleep_until(origin + at.since_origin()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((exchange, answer)) = answers.recv() => match answer {
                Some(answer) => forwarder.handle_answer(exchange, &answer, now()),
                None => forwarder.handle_failure(exchange, now()),
            },
            job = jobs.recv() => {
                let Some(Job { client, query }) = job else { return };
                forwarder.set_servers(shared.resolv_conf.servers());
                let (from, transport) = match &client {
                    Client::Udp { to, .. } => (to.ip(), Transport::Udp),
                    Client::Tcp { from, .. } => (*from, Transport::Tcp),
                };
                forwarder.handle_query(client, from, transport, &query, now());
            }
            () = wake => forwarder.handle_timeout(now()),
        }
    }
}

fn reply(client: Client, answer: Vec<u8>) {
    match client {
        Client::Udp { socket, to, local } => {
            // The socket is gone if the address is no longer listened on.
            if let Some(socket) = socket.upgrade()
                && !socket.send_one(Answer { data: &answer, to, local })
            {
                tracing::debug!("cannot send a DNS answer to {to}");
            }
        }
        // The client may have closed its connection.
        Client::Tcp { reply, .. } => drop(reply.send(answer)),
    }
}

/// Sends a datagram and reports what comes from the server until the task is aborted: the first datagram may be forged.
async fn ask_over_udp(
    exchange: ExchangeId,
    server: SocketAddr,
    query: &[u8],
    answers: &mpsc::Sender<Received>,
) -> io::Result<()> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // The kernel chooses a random port.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    loop {
        socket.readable().await?;
        match receive(&socket) {
            Ok(answer) => {
                if answers.send((exchange, Some(answer))).await.is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// The buffer is on the stack, so that an exchange that waits holds none.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = [0; MAX_DATAGRAM];
    socket.try_recv(&mut buffer).map(|len| buffer[..len].to_vec())
}

async fn ask_over_tcp(
    exchange: ExchangeId,
    server: SocketAddr,
    query: &[u8],
    answers: &mpsc::Sender<Received>,
) -> io::Result<()> {
    let connect = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(server));
    let mut stream = connect.await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.write_all(&with_length(query)).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let _ = answers.send((exchange, Some(answer))).await;
    Ok(())
}
