//! File descriptors that accompany the data of a unix socket (`SCM_RIGHTS`, unix(7)).

use std::io;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Most descriptors that the kernel passes with one message.
const SCM_MAX_FD: usize = 253;
/// Most descriptors that are kept; others are closed.
const MAX_FDS: usize = 2;

/// Reads from a unix socket. Descriptors that arrive with the data are added to `fds`, which holds at most two;
/// further ones are closed.
///
/// # Errors
/// The same errors as for `read`.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; SCM_MAX_FD]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    for message in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = message {
            // SAFETY: the kernel has just opened these descriptors for this call; nothing else owns them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    fds.truncate(MAX_FDS);
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_data_and_are_limited() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let send = |fds: &[std::os::fd::RawFd]| {
            let control = ControlMessage::ScmRights(fds);
            let parts = [io::IoSlice::new(b"data")];
            sendmsg::<()>(ours.as_raw_fd(), &parts, &[control], MsgFlags::empty(), None).unwrap();
        };
        let mut buffer = [0; 16];
        let (one, own) = (ours.as_raw_fd(), ours.as_raw_fd());
        for sent in [1, MAX_FDS, MAX_FDS + 3] {
            send(&vec![one; sent]);
            let mut fds = Vec::new();
            assert_eq!(receive(&theirs, &mut buffer, &mut fds).unwrap(), 4);
            assert_eq!(fds.len(), sent.min(MAX_FDS));
            assert!(fds.iter().all(|fd| fd.as_raw_fd() != own));
        }
        drop(ours);
        assert_eq!(receive(&theirs, &mut buffer, &mut Vec::new()).unwrap(), 0);
    }
}
