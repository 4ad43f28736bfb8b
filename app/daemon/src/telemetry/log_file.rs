//! The log file. When it reaches its size limit, it is renamed to `.1`, and a new file is started. A file that another program
//! (logrotate) or an operator has renamed or removed is started anew, too, without a signal to the daemon.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::config::LogFile;

static WRITER: OnceLock<Mutex<Writer>> = OnceLock::new();

pub(super) fn begin(to: &LogFile) -> io::Result<()> {
    let writer = Writer::open(to)?;
    if WRITER.get().is_none() {
        writer.redirect_stderr();
        let _ = WRITER.set(Mutex::new(writer));
    }
    Ok(())
}

/// `false` if there is no log file. A full disk must not stop the network, so write errors are ignored.
pub(super) fn write(line: &[u8]) -> bool {
    let Some(writer) = WRITER.get() else { return false };
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    if writer.prepare(line.len() as u64) {
        writer.redirect_stderr();
    }
    let _ = writer.file.write_all(line);
    true
}

#[derive(Debug)]
struct Writer {
    to: LogFile,
    file: File,
}

impl Writer {
    fn open(to: &LogFile) -> io::Result<Writer> {
        Ok(Writer { file: open(&to.path)?, to: to.clone() })
    }

    /// Redirects stderr and stdout, so that the message of a panic is in the log.
    fn redirect_stderr(&self) {
        let _ = nix::unistd::dup2_stderr(&self.file);
        let _ = nix::unistd::dup2_stdout(&self.file);
    }

    /// Starts a new file if `more` bytes would exceed the limit, or the file was renamed or removed. Returns whether it did.
    fn prepare(&mut self, more: u64) -> bool {
        let there = fs::metadata(&self.to.path).ok();
        let ours = self.file.metadata().ok();
        let same = match (&there, &ours) {
            (Some(there), Some(ours)) => (there.dev(), there.ino()) == (ours.dev(), ours.ino()),
            _ => false,
        };
        let size = ours.map_or(0, |m| m.len());
        let full = self.to.max_size > 0 && size > 0 && size + more > self.to.max_size;
        if same && !full {
            return false;
        }
        if same {
            self.rotate();
        }
        match open(&self.to.path) {
            Ok(file) => {
                self.file = file;
                true
            }
            // The lines continue in the old file.
            Err(_) => false,
        }
    }

    fn rotate(&self) {
        let name = |n: u32| -> PathBuf {
            if n == 0 {
                return self.to.path.clone();
            }
            let mut name: OsString = self.to.path.clone().into();
            name.push(format!(".{n}"));
            name.into()
        };
        for n in (0..self.to.keep).rev() {
            let _ = fs::rename(name(n), name(n + 1));
        }
        if self.to.keep == 0 {
            let _ = fs::remove_file(name(0));
        }
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(writer: &mut Writer, text: &str) {
        writer.prepare(text.len() as u64);
        writer.file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn size_and_number_of_files_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.log");
        let mut writer = Writer::open(&LogFile { path: path.clone(), max_size: 100, keep: 2 }).unwrap();
        for n in 0..50 {
            line(&mut writer, &format!("line number {n:02} ...\n"));
        }
        let mut files: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["weave.log", "weave.log.1", "weave.log.2"]);
        let text: String = ["weave.log.2", "weave.log.1", "weave.log"]
            .map(|f| fs::read_to_string(dir.path().join(f)).unwrap())
            .concat();
        // The last lines, in order and without a gap.
        let numbers: Vec<u32> = text.lines().map(|l| l[12..14].parse().unwrap()).collect();
        assert!(numbers.len() >= 10, "{text}");
        assert_eq!(numbers, (50 - numbers.len() as u32..50).collect::<Vec<_>>());
        for file in files {
            assert!(fs::metadata(dir.path().join(file)).unwrap().len() <= 100);
        }
        // A line that is longer than the limit is written nevertheless.
        line(&mut writer, &"x".repeat(200));
        assert_eq!(fs::metadata(&path).unwrap().len(), 200);
    }

    #[test]
    fn no_earlier_files_and_no_size_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.log");
        let mut writer = Writer::open(&LogFile { path: path.clone(), max_size: 10, keep: 0 }).unwrap();
        line(&mut writer, "12345678\n");
        line(&mut writer, "abcdefgh\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "abcdefgh\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut writer = Writer::open(&LogFile { path: path.clone(), max_size: 0, keep: 3 }).unwrap();
        (0..1000).for_each(|_| line(&mut writer, "abcdefgh\n"));
        assert_eq!(fs::metadata(&path).unwrap().len(), 9 * 1001);
    }

    #[test]
    fn renamed_or_removed_file_is_started_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weave.log");
        let mut writer = Writer::open(&LogFile { path: path.clone(), max_size: 1000, keep: 2 }).unwrap();
        line(&mut writer, "one\n");
        fs::rename(&path, dir.path().join("old")).unwrap();
        line(&mut writer, "two\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        fs::remove_dir_all(dir.path()).unwrap();
        // Without a directory the line is lost, and that is no error.
        line(&mut writer, "three\n");
    }
}
