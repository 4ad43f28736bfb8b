//! Files that `launch` writes, and restores if the daemon does not become ready.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use weave_host::fault_injection;
use weave_host::files::write_atomically;

use crate::{Failure, notice};

/// Bytes and mode of a file.
type Content = (Vec<u8>, u32);

/// Previous contents of changed files. Dropping it restores them unless [`Undo::keep`] is called.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    before: Vec<(PathBuf, Option<Content>)>,
    created: Vec<PathBuf>,
}

impl Undo {
    /// Replaces `path` as a whole by a file with this content and mode, or removes it.
    pub(crate) fn replace(&mut self, path: &Path, content: Option<&[u8]>, mode: u32) -> Result<(), Failure> {
        let before = match fs::read(path) {
            Ok(bytes) => {
                let mode = fs::metadata(path).map_or(mode, |m| m.permissions().mode() & 0o7777);
                Some((bytes, mode))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("read", path, &e)),
        };
        let same = |(bytes, m): &Content| Some(bytes.as_slice()) == content && *m == mode;
        if before.as_ref().is_some_and(same) || (before.is_none() && content.is_none()) {
            return Ok(());
        }
        // Before the change, because the new content may be in place although syncing its directory fails.
        self.before.push((path.to_owned(), before));
        write(path, content, mode)
    }

    /// Creates a directory and its parents. Restoring removes it only if it is empty then.
    pub(crate) fn directory(&mut self, path: &Path, mode: u32) -> Result<(), Failure> {
        if path.is_dir() {
            return Ok(());
        }
        fault_injection::io_fail_point(&format_args!("creating {}", path.display()))
            .and_then(|()| fs::DirBuilder::new().recursive(true).mode(mode).create(path))
            .map_err(|e| failed("create", path, &e))?;
        self.created.push(path.to_owned());
        Ok(())
    }

    /// Keeps all changes.
    pub(crate) fn keep(mut self) {
        self.before.clear();
        self.created.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for (path, before) in self.before.drain(..).rev() {
            let _ = match before {
                Some((bytes, mode)) => write(&path, Some(&bytes), mode),
                None => write(&path, None, 0),
            };
        }
        for path in self.created.drain(..).rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

fn write(path: &Path, content: Option<&[u8]>, mode: u32) -> Result<(), Failure> {
    let Some(content) = content else {
        return remove(path);
    };
    write_atomically(path, content, mode).map_err(|e| failed("write", path, &e))
}

/// Removes a file if it exists.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    // Fault injection counts only removals of existing files.
    if path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    let removed = fault_injection::io_fail_point(&format_args!("removing {}", path.display()));
    match removed.and_then(|()| fs::remove_file(path)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &e)),
        _ => Ok(()),
    }
}

/// Removes a file outside the folders of the peer. One on a read-only file system stays, which is told but is no failure, since neither
/// this command nor the operator can remove it.
pub(crate) fn remove_if_writable(path: &Path) -> Result<(), Failure> {
    if path.symlink_metadata().is_ok() && path.parent().is_some_and(is_read_only) {
        notice_stays(path);
        return Ok(());
    }
    remove(path)
}

/// Tells that a file stays although it should be removed.
pub(crate) fn notice_stays(path: &Path) {
    notice(format_args!("Notice: {} stays, its file system is read-only", path.display()));
}

/// Whether files in `dir`, or in the nearest directory above it that exists, cannot be written because the file system is read-only.
pub(crate) fn is_read_only(dir: &Path) -> bool {
    let existing = dir.ancestors().find(|dir| dir.is_dir());
    existing.is_some_and(|dir| access(dir, AccessFlags::W_OK) == Err(Errno::EROFS))
}

pub(crate) fn failed(step: &str, path: &Path, e: &io::Error) -> Failure {
    Failure::new(1, format_args!("cannot {step} {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weave-files-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).expect("temporary directory");
        dir
    }

    #[test]
    fn changes_are_undone_unless_kept() {
        let dir = scratch("undo");
        let (old, new, gone) = (dir.join("old"), dir.join("new"), dir.join("gone"));
        fs::write(&old, "1").expect("write");
        fs::write(&gone, "2").expect("write");
        let change = |undo: &mut Undo| {
            undo.directory(&dir.join("a/b"), 0o700).expect("directory");
            undo.replace(&old, Some(b"changed"), 0o600).expect("replace");
            undo.replace(&new, Some(b"secret"), 0o600).expect("replace");
            undo.replace(&gone, None, 0).expect("remove");
        };
        let mut undo = Undo::default();
        change(&mut undo);
        assert_eq!(fs::metadata(&new).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(!gone.exists());
        drop(undo);
        assert_eq!(fs::read(&old).expect("there"), b"1");
        assert_eq!(fs::read(&gone).expect("there"), b"2");
        assert!(!new.exists() && !dir.join("a/b").exists());
        let mut undo = Undo::default();
        change(&mut undo);
        undo.keep();
        assert_eq!(fs::read(&old).expect("there"), b"changed");
        assert!(new.exists() && !gone.exists() && dir.join("a/b").exists());
        let left: Vec<_> = fs::read_dir(&dir).expect("list").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left.len(), 3, "no temporary file stays: {left:?}");
        fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn failed_changes_name_the_step() {
        let dir = scratch("refused");
        let path = dir.join("is-a-directory");
        fs::create_dir(&path).expect("directory");
        let error = Undo::default().replace(&path, Some(b"x"), 0o600).expect_err("refused");
        assert!(error.message.starts_with("cannot read "), "{error:?}");
        let missing = Undo::default().replace(&dir.join("no/such"), Some(b"x"), 0o600).expect_err("refused");
        assert!(missing.message.starts_with("cannot write "), "{missing:?}");
        fs::remove_dir_all(&dir).expect("clean up");
    }
}
