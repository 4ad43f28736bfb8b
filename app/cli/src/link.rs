//! Links by which other programs find this one.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use weave_host::fault_injection::io_fail_point;

use crate::Failure;
use crate::service::files::failed;

/// Makes `path` a link to `target`, whatever it was.
pub(crate) fn replace(target: &Path, path: &Path) -> Result<(), Failure> {
    if fs::read_link(path).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let made = io_fail_point(&format_args!("creating {}", path.display()))
        .and_then(|()| match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        })
        .and_then(|()| symlink(target, &temporary))
        .and_then(|()| fs::rename(&temporary, path));
    made.map_err(|e| failed("create", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("weave-net");
        fs::write(&path, "of 2.8.1").expect("written");
        replace(Path::new("weave-plugin-1"), &path).expect("linked");
        replace(Path::new("weave-plugin-2"), &path).expect("linked");
        assert_eq!(fs::read_link(&path).expect("a link"), Path::new("weave-plugin-2"));
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "no temporary file stays");
    }
}
