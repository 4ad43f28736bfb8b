//! A unix stream that keeps the file descriptors it receives (`SCM_RIGHTS`).

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixStream;
use weave_host::fd_passing;

/// File descriptors that a client has sent on its connection.
#[derive(Clone, Debug, Default)]
pub(super) struct ReceivedFds(Arc<Mutex<Vec<OwnedFd>>>);

impl ReceivedFds {
    /// The first descriptor since the last call; others are closed.
    pub(super) fn take(&self) -> Option<OwnedFd> {
        let mut fds = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        (!fds.is_empty()).then(|| fds.swap_remove(0))
    }
}

#[derive(Debug)]
pub(super) struct FdStream {
    stream: UnixStream,
    fds: ReceivedFds,
}

impl FdStream {
    pub(super) fn new(stream: UnixStream) -> FdStream {
        FdStream { stream, fds: ReceivedFds::default() }
    }

    pub(super) fn fds(&self) -> ReceivedFds {
        self.fds.clone()
    }
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let mut fds = self.fds.0.lock().unwrap_or_else(PoisonError::into_inner);
            let read = self.stream.try_io(Interest::READABLE, || {
                fd_passing::receive(&self.stream, buf.initialize_unfilled(), &mut fds)
            });
            match read {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
