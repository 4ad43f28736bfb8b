//! Signals as events: blocked, and read from a file descriptor.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Why [`Signals::next_or_readable`] returns.
pub(crate) enum Wakeup {
    Signal(Signal),
    Readable,
    Timeout,
}

/// Blocked signals of this thread and of those that it starts. Dropping it restores the previous mask.
pub(crate) struct Signals {
    fd: SignalFd,
    previous: SigSet,
}

impl Signals {
    pub(crate) fn block(signals: &[Signal]) -> nix::Result<Signals> {
        let set: SigSet = signals.iter().copied().collect();
        let previous = SigSet::thread_get_mask()?;
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { fd, previous })
    }

    /// The next signal; `None` if there is none within `timeout`.
    pub(crate) fn next(&self, timeout: PollTimeout) -> nix::Result<Option<Signal>> {
        Signals::wait(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout)?;
        self.read()
    }

    /// What comes first: a signal, something to read from `other` or its end, or the end of `timeout`.
    pub(crate) fn next_or_readable(
        &self,
        other: BorrowedFd<'_>,
        timeout: PollTimeout,
    ) -> nix::Result<Wakeup> {
        let mut fds = [self.fd.as_fd(), other].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        Signals::wait(&mut fds, timeout)?;
        Ok(match self.read()? {
            Some(signal) => Wakeup::Signal(signal),
            None if fds[1].any() == Some(true) => Wakeup::Readable,
            None => Wakeup::Timeout,
        })
    }

    fn wait(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> nix::Result<()> {
        match poll(fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn read(&self) -> nix::Result<Option<Signal>> {
        let info = self.fd.read_signal()?;
        Ok(info.and_then(|info| Signal::try_from(info.ssi_signo.cast_signed()).ok()))
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.previous.thread_set_mask();
    }
}
