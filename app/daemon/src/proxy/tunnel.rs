//! Bytes between a client and Docker.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use weave_http::Stream;

use super::message::Reader;

/// How long a client may be silent after Docker has closed its side.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const BUFFER_SIZE: usize = 32 << 10;

/// Copies in both directions until both sides have ended; the end of one side is passed on. What was read ahead goes first.
pub(super) async fn tunnel(client: &mut Reader<Box<dyn Stream>>, docker: Reader<Box<dyn Stream>>) {
    let Reader { stream: docker, ahead: answer } = docker;
    let request = std::mem::take(&mut client.ahead);
    let (client_read, client_write) = tokio::io::split(&mut client.stream);
    let (docker_read, docker_write) = tokio::io::split(docker);
    let sent = AtomicUsize::new(0);
    let mut upload = pin!(copy(client_read, docker_write, request, &sent));
    let received = AtomicUsize::new(0);
    let mut download = pin!(copy(docker_read, client_write, answer, &received));
    let client_is_there = tokio::select! {
        ended = &mut upload => {
            match ended {
                Ended::Reset => false,
                // Docker may have closed its side, or answers yet.
                Ended::AtEnd | Ended::NotRead => { (&mut download).await; return; }
            }
        }
        ended = &mut download => ended == Ended::AtEnd,
    };
    if !client_is_there {
        return;
    }
    // Docker has said everything. A client that only read does not close its side by itself.
    loop {
        let before = sent.load(Ordering::Relaxed);
        if tokio::time::timeout(LINGER_TIMEOUT, &mut upload).await.is_ok()
            || sent.load(Ordering::Relaxed) == before
        {
            return;
        }
    }
}

/// How a direction of a tunnel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The sender has closed its side, and the receiver knows.
    AtEnd,
    /// The sender has gone.
    Reset,
    /// The receiver does not read any more.
    NotRead,
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    ahead: Vec<u8>,
    count: &AtomicUsize,
) -> Ended {
    let mut buffer = ahead;
    loop {
        if !buffer.is_empty() && (to.write_all(&buffer).await.is_err() || to.flush().await.is_err()) {
            return Ended::NotRead;
        }
        count.fetch_add(buffer.len(), Ordering::Relaxed);
        buffer.clear();
        buffer.reserve(BUFFER_SIZE);
        match from.read_buf(&mut buffer).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Ended::Reset,
        }
    }
    if to.shutdown().await.is_err() { Ended::NotRead } else { Ended::AtEnd }
}
