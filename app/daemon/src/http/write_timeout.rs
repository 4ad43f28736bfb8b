//! A stream that fails if the client does not read. Otherwise such a client would occupy one of a limited number of connections.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Bytes that the client has to read within the timeout, unless fewer are left.
const MIN_PROGRESS: usize = 16 << 10;

/// Writing fails with `TimedOut` when the other side reads too slowly. Reading is not limited.
#[derive(Debug)]
pub(crate) struct WriteTimeout<S> {
    stream: S,
    timeout: Duration,
    /// Set when nothing could be written.
    deadline: Option<Pin<Box<Sleep>>>,
    progress: usize,
}

impl<S> WriteTimeout<S> {
    pub(crate) fn new(stream: S, timeout: Duration) -> WriteTimeout<S> {
        WriteTimeout { stream, timeout, deadline: None, progress: 0 }
    }

    fn reset_deadline(&mut self) {
        self.deadline = None;
        self.progress = 0;
    }

    fn poll_deadline<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let timeout = self.timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, buf) {
            Poll::Pending => self.poll_deadline(cx),
            Poll::Ready(result) => {
                if let (Ok(n), true) = (&result, self.deadline.is_some()) {
                    self.progress += n;
                    if self.progress >= MIN_PROGRESS {
                        self.reset_deadline();
                    }
                }
                Poll::Ready(result)
            }
        }
    }

    /// Called when the server has written everything.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => self.poll_deadline(cx),
            ready => {
                self.reset_deadline();
                ready
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_shutdown(cx) {
            Poll::Pending => self.poll_deadline(cx),
            ready => ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_client_that_does_not_read_times_out() {
        let (server, mut client) = tokio::io::duplex(1024);
        let mut server = WriteTimeout::new(server, TIMEOUT);
        let write = async {
            let result = server.write_all(&[7; 100_000]).await;
            drop(server);
            result
        };
        let mut got = Vec::new();
        let (written, read) = tokio::join!(write, client.read_to_end(&mut got));
        assert!(written.is_ok() && read.is_ok_and(|n| n == 100_000));

        let (server, _client) = tokio::io::duplex(1024);
        let mut server = WriteTimeout::new(server, TIMEOUT);
        let error = server.write_all(&[7; 100_000]).await.expect_err("the client does not read");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_reads_too_slowly_times_out() {
        let (server, mut client) = tokio::io::duplex(1024);
        let mut server = WriteTimeout::new(server, TIMEOUT);
        let read_slowly = async {
            loop {
                tokio::time::sleep(TIMEOUT / 10).await;
                let _ = client.read_u8().await;
            }
        };
        let result = tokio::select! {
            result = server.write_all(&[7; 100_000]) => result,
            () = read_slowly => Ok(()),
        };
        assert_eq!(result.expect_err("too slow").kind(), io::ErrorKind::TimedOut);
    }
}
