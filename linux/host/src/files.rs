//! Replacing a file so that a crash at any point leaves its old content or its new content.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::fault_injection::io_fail_point;

/// The file that [`write_atomically`] writes before it renames it to `path`. A crash may leave it behind. Programs that read
/// all files of a directory skip it, because its name begins with a dot and ends in `.new`.
pub fn temporary_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    path.with_file_name(name)
}

/// Replaces `path` by a file with this content and mode, on the disk when it returns.
///
/// # Errors
/// The file cannot be written; it is as it was before. If only the directory cannot be synced, the new content is there, but a
/// power loss may bring back the old one.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_path(path);
    write_temporary(&temporary, content, mode)
        .and_then(|()| io_fail_point(&format_args!("replacing {}", path.display())))
        .and_then(|()| fs::rename(&temporary, path))
        // On a full disk the temporary file would take what little space there is.
        .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    io_fail_point(&format_args!("syncing {}", directory.display()))?;
    File::open(directory)?.sync_all()
}

/// Writes everything that [`write_atomically`] would write, and removes it again, to find out whether it can be written.
///
/// # Errors
/// It cannot.
pub fn check_writable(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_path(path);
    let written = write_temporary(&temporary, content, mode);
    let removed = fs::remove_file(&temporary);
    written.and(removed)
}

fn write_temporary(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // What a crash left may have another mode.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    io_fail_point(&format_args!("writing {}", path.display()))?;
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(path)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_mode_are_replaced_and_no_temporary_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(temporary_path(&path), "left by a crash").unwrap();
        for (content, mode) in [("old", 0o600), ("new", 0o644)] {
            write_atomically(&path, content.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        check_writable(&path, b"other", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failure_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write_atomically(&path, b"old", 0o600).unwrap();
        // A directory in the place of the temporary file makes writing fail for root, too.
        fs::create_dir(temporary_path(&path)).unwrap();
        assert!(write_atomically(&path, b"new", 0o600).is_err());
        assert!(check_writable(&path, b"new", 0o600).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        fs::remove_dir(temporary_path(&path)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(write_atomically(&path, b"new", 0o600).is_err());
        assert!(!temporary_path(&path).exists());
    }
}
