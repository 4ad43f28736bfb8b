//! Unix sockets that replace those of an earlier daemon.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use weave_host::fault_injection::io_fail_point;

/// Removes the file of a unix socket when it is dropped, unless another listener has replaced the file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> SocketFile {
        SocketFile { path: path.to_owned(), id: file_id(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Listens at `path`, in place of a stale socket. `what` names the socket; `restrict` sets the owner and mode of its file.
pub(crate) fn bind(
    path: &Path,
    what: &str,
    restrict: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<(UnixListener, SocketFile)> {
    io_fail_point(&format_args!("removing a stale {what}"))?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    io_fail_point(&format_args!("creating the {what}"))?;
    // Created under another name and renamed when its mode is set, so that no other user connects in between.
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    // Removes the file if a step before the rename fails.
    let _unfinished = SocketFile::new(&temporary);
    io_fail_point(&format_args!("restricting the {what}"))?;
    restrict(&temporary)?;
    io_fail_point(&format_args!("renaming the {what}"))?;
    std::fs::rename(&temporary, path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, SocketFile::new(path)))
}
