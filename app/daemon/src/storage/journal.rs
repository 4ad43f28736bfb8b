//! A small map of bytes on disk that survives a crash at any point: a log of changes, rewritten when it has grown.
//!
//! ```text
//! "weave journal 1\n"                                                   16 bytes
//! length u32 | check 8 bytes | flags u8 | key length u16 | key | value   one change, again and again
//!                              bit 0: the key is gone   bit 1: synced before anything else was done
//! ```
//!
//! A change is one `write`: after SIGKILL the kernel has it. Those that others depend on are synced before anything else
//! is done; the rest follows within a second ([`Journal::flush_in_background`]). What a power loss leaves half-written at the
//! end is cut off; damage in front of something that had been synced is refused, since it cannot come from a crash.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use weave_host::{fault_injection, files};

use super::StoreError;

const HEADER: &[u8; 16] = b"weave journal 1\n";
/// Length and check.
const FRAME: usize = 12;
const DELETED: u8 = 1;
const SYNCED: u8 = 2;
/// Nothing stored is nearly as large.
const MAX_RECORD: usize = 64 << 20;
/// The log is not rewritten below this size.
const MIN_REWRITE_SIZE: u64 = 1 << 20;

/// The map, and the log that it is in.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// `None`: nothing was stored yet, or the last write failed and the next one rewrites everything.
    file: Option<File>,
    length: u64,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// There are bytes in the file that may not be on the disk.
    dirty: bool,
    /// The last write failed.
    write_failed: bool,
}

impl Journal {
    /// Reads the log at `path`; a missing one is empty. Writes nothing.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or was written by a later version.
    pub(crate) fn open(path: &Path) -> Result<Journal, StoreError> {
        let mut journal = Journal {
            path: path.to_owned(),
            file: None,
            length: 0,
            entries: BTreeMap::new(),
            dirty: false,
            write_failed: false,
        };
        let bytes = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(journal),
            Err(e) => return Err(StoreError::io("read", path)(e)),
            Ok(bytes) => bytes,
        };
        journal.entries =
            replay(&bytes).map_err(|what| StoreError::Damaged { path: path.to_owned(), what })?;
        // Whatever is at the end of the file, it is whole again with the first change.
        Ok(journal)
    }

    /// The value of `key`.
    pub(crate) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Keys that begin with `prefix` and their values, in order.
    pub(crate) fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let from = self.entries.range(prefix.to_vec()..);
        from.take_while(move |(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.as_slice(), v.as_slice()))
    }

    /// Whether nothing is stored.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Changes a value, or takes it away: SIGKILL does not undo it. `synced`: the caller will call [`Journal::sync`] before
    /// anything else is done, so that damage to it cannot come from a crash.
    ///
    /// # Errors
    /// The kernel refused. The change is kept in memory and goes out with the next.
    pub(crate) fn append(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        synced: bool,
    ) -> Result<(), StoreError> {
        match value {
            Some(value) => drop(self.entries.insert(key.to_vec(), value.to_vec())),
            None => drop(self.entries.remove(key)),
        }
        let grown = self.length >= MIN_REWRITE_SIZE && self.length >= 4 * self.encoded_size();
        let Some(file) = self.file.as_mut().filter(|_| !grown) else {
            return self.rewrite();
        };
        let record = record(key, value, synced);
        let length = record.len() as u64;
        if let Err(e) =
            fault_injection::io_fail_point(&"writing to the journal").and_then(|()| file.write_all(&record))
        {
            // The rest of a record must not stand in front of the next one.
            self.file = None;
            self.write_failed = true;
            return Err(StoreError::io("write", &self.path)(e));
        }
        self.length += length;
        self.dirty = true;
        Ok(())
    }

    /// Puts another map in place of this one, at once and on the disk.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) fn replace(&mut self, map: BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), StoreError> {
        self.entries = map;
        self.rewrite()
    }

    /// Brings everything to the disk.
    ///
    /// # Errors
    /// The kernel refused; the next change writes everything again.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        let Some(file) = self.file.as_mut().filter(|_| self.dirty) else { return Ok(()) };
        self.dirty = false;
        let result = fault_injection::io_fail_point(&"syncing the journal").and_then(|()| file.sync_data());
        result.map_err(|e| {
            self.file = None;
            self.write_failed = true;
            StoreError::io("sync", &self.path)(e)
        })
    }

    /// Brings everything to the disk without waiting; `failed` is told if it fails. The disk may be slow, and nobody waits for
    /// this.
    pub(crate) fn flush_in_background(&mut self, failed: impl FnOnce(io::Error) + Send + 'static) {
        let Some(file) = self.file.as_ref().filter(|_| self.dirty) else { return };
        self.dirty = false;
        let work = file.try_clone().map(|file| {
            move || {
                if let Err(e) = file.sync_data() {
                    failed(e);
                }
            }
        });
        let started = work.and_then(|w| std::thread::Builder::new().name("weave-sync".into()).spawn(w));
        if started.is_err() {
            // No descriptor or thread left: then it is done here.
            let _ = self.sync();
        }
    }

    /// Length of the log without what is out of date.
    fn encoded_size(&self) -> u64 {
        self.entries.iter().map(|(k, v)| (FRAME + 3 + k.len() + v.len()) as u64).sum()
    }

    /// Whether a write failed since which nothing was written.
    pub(crate) fn write_failed(&self) -> bool {
        self.write_failed
    }

    /// Writes everything again after a failure.
    ///
    /// # Errors
    /// The kernel refused once more.
    pub(crate) fn rewrite(&mut self) -> Result<(), StoreError> {
        self.write_failed = true;
        let mut bytes = HEADER.to_vec();
        for (key, value) in &self.entries {
            bytes.extend(record(key, Some(value), true));
        }
        self.file = None;
        files::write_atomically(&self.path, &bytes, 0o600).map_err(StoreError::io("write", &self.path))?;
        let file = OpenOptions::new().append(true).open(&self.path);
        let file = file.map_err(StoreError::io("open", &self.path))?;
        self.length = bytes.len() as u64;
        self.file = Some(file);
        self.dirty = false;
        self.write_failed = false;
        Ok(())
    }
}

fn record(key: &[u8], value: Option<&[u8]>, synced: bool) -> Vec<u8> {
    let flags = if value.is_none() { DELETED } else { 0 } | if synced { SYNCED } else { 0 };
    let key_length = u16::try_from(key.len()).unwrap_or(u16::MAX);
    let key = &key[..usize::from(key_length)];
    let mut payload = vec![flags];
    payload.extend(key_length.to_be_bytes());
    payload.extend(key);
    payload.extend(value.unwrap_or_default());
    let mut record = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    record.extend(check(&payload));
    record.extend(payload);
    record
}

fn check(payload: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&Sha256::digest(payload)[..8]);
    check
}

/// One change.
struct Change<'a> {
    flags: u8,
    key: &'a [u8],
    value: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

/// The change at `at`, if it is whole.
fn change_at(bytes: &[u8], at: usize) -> Option<Change<'_>> {
    let frame = bytes.get(at..at.checked_add(FRAME)?)?;
    let length = usize::try_from(u32::from_be_bytes(frame.get(..4)?.try_into().ok()?)).ok()?;
    if !(3..=MAX_RECORD).contains(&length) {
        return None;
    }
    let end = at + FRAME + length;
    let payload = bytes.get(at + FRAME..end)?;
    if frame.get(4..)? != check(payload) {
        return None;
    }
    let (head, rest) = payload.split_at_checked(3)?;
    let key_length = usize::from(u16::from_be_bytes([head[1], head[2]]));
    let (key, value) = rest.split_at_checked(key_length)?;
    Some(Change { flags: head[0], key, value, end })
}

/// The map that the log's changes make; the text says what is wrong with it.
fn replay(bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let Some((header, _)) = bytes.split_first_chunk::<16>() else {
        return Err("it has no complete header".to_owned());
    };
    if header != HEADER {
        return Err("it is no journal of this version".to_owned());
    }
    let mut entries = BTreeMap::new();
    let mut at = HEADER.len();
    while at < bytes.len() {
        let Some(change) = change_at(bytes, at) else {
            // Only what nobody waited for may be half there.
            let later = (at + 1..bytes.len()).filter_map(|i| change_at(bytes, i));
            if later.into_iter().any(|c| c.flags & SYNCED != 0) {
                return Err(format!("the record at byte {at} is not what was written"));
            }
            break;
        };
        if change.flags & DELETED != 0 {
            entries.remove(change.key);
        } else {
            entries.insert(change.key.to_vec(), change.value.to_vec());
        }
        at = change.end;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Map = BTreeMap<Vec<u8>, Vec<u8>>;

    fn contents(path: &Path) -> Map {
        Journal::open(path).unwrap().entries
    }

    /// Changes, with what the map is after each and how long the file is.
    fn story(path: &Path) -> Vec<(Map, u64)> {
        let mut journal = Journal::open(path).unwrap();
        let mut states = Vec::new();
        for (key, value, synced) in [
            ("ring", Some("first"), true),
            ("owned/c1", Some("10.32.0.1/12"), false),
            ("owned/c2", Some(""), false),
            ("owned/c1", None, false),
            ("ring", Some("second, and longer"), true),
            ("owned/c3", Some("10.32.0.3/12"), false),
        ] {
            journal.append(key.as_bytes(), value.map(str::as_bytes), synced).unwrap();
            if synced {
                journal.sync().unwrap();
            }
            states.push((journal.entries.clone(), fs::metadata(path).unwrap().len()));
        }
        states
    }

    #[test]
    fn comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        assert!(Journal::open(&path).unwrap().is_empty());
        assert!(!path.exists(), "looking makes nothing");
        let states = story(&path);
        let journal = Journal::open(&path).unwrap();
        assert_eq!(journal.entries, states.last().unwrap().0);
        assert_eq!(journal.value(b"ring"), Some(&b"second, and longer"[..]));
        let owned: Vec<_> = journal.with_prefix(b"owned/").map(|(k, _)| k.to_vec()).collect();
        assert_eq!(owned, [b"owned/c2".to_vec(), b"owned/c3".to_vec()]);
        assert!(journal.with_prefix(b"zz").next().is_none());
        assert_eq!(
            fs::metadata(&path).map(|m| std::os::unix::fs::MetadataExt::mode(&m) & 0o777).unwrap(),
            0o600
        );
        let mut journal = journal;
        journal.replace(BTreeMap::new()).unwrap();
        assert!(contents(&path).is_empty() && path.exists());
    }

    /// A process that is killed, or a machine that loses power, leaves a beginning of the log: what is there is what had
    /// been written, to the byte.
    #[test]
    fn cut_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let states = story(&path);
        let bytes = fs::read(&path).unwrap();
        let first = usize::try_from(states[0].1).unwrap();
        let cut = dir.path().join("cut.journal");
        for length in first..=bytes.len() {
            fs::write(&cut, &bytes[..length]).unwrap();
            let whole = states.iter().rev().find(|(_, end)| *end <= length as u64).unwrap();
            let mut journal = Journal::open(&cut).unwrap();
            assert_eq!(journal.entries, whole.0, "{length} bytes");
            // Going on from there hides nothing write_failed the torn end.
            journal.append(b"next", Some(b"1"), false).unwrap();
            let mut expected = whole.0.clone();
            expected.insert(b"next".to_vec(), b"1".to_vec());
            assert_eq!(contents(&cut), expected, "{length} bytes");
        }
    }

    /// After a power loss blocks of the end may be there and those before them not.
    #[test]
    fn holes_in_what_was_not_synced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.append(b"ring", Some(b"synced"), true).unwrap();
        let synced = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
        for n in 0..4u8 {
            journal.append(&[b'o', n], Some(&[n; 20]), false).unwrap();
        }
        let bytes = fs::read(&path).unwrap();
        for hole in synced..bytes.len() {
            let mut holed = bytes.clone();
            holed[hole..(hole + 30).min(bytes.len())].fill(0);
            fs::write(&path, &holed).unwrap();
            let journal = Journal::open(&path).unwrap();
            assert_eq!(journal.value(b"ring"), Some(&b"synced"[..]), "hole at {hole}");
        }
    }

    /// What had been synced cannot be lost in a crash: then the disk is at fault, and guessing would give addresses twice.
    #[test]
    fn damage_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let states = story(&path);
        let bytes = fs::read(&path).unwrap();
        let (before_synced, _) = (usize::try_from(states[3].1).unwrap(), ());
        for at in 0..before_synced {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            let error = Journal::open(&path).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "byte {at}: {error}");
            assert_eq!(fs::read(&path).unwrap(), damaged);
        }
        for (text, what) in
            [(&b""[..], "header"), (b"weave journal 2\nxx", "this version"), (b"{}", "header")]
        {
            fs::write(&path, text).unwrap();
            let error = Journal::open(&path).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    /// Rewriting touches the real file by one rename only.
    #[test]
    fn killed_while_rewriting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let states = story(&path);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(files::temporary_path(&path), &whole[..length]).unwrap();
            assert_eq!(contents(&path), states.last().unwrap().0);
        }
        let mut journal = Journal::open(&path).unwrap();
        journal.append(b"x", Some(b"y"), true).unwrap();
        assert!(!files::temporary_path(&path).exists());
    }

    #[test]
    fn stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let mut journal = Journal::open(&path).unwrap();
        let value = vec![7; 10_000];
        let mut largest = 0;
        for n in 0..1000u32 {
            journal.append(&(n % 3).to_be_bytes(), Some(&value), false).unwrap();
            largest = largest.max(fs::metadata(&path).unwrap().len());
        }
        assert!(largest < 2 * MIN_REWRITE_SIZE, "{largest}");
        assert_eq!(contents(&path).len(), 3);
    }

    #[test]
    fn a_failed_write_goes_out_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let mut journal = Journal::open(&path).unwrap();
        // A directory in the way of the temporary file fails for root, too.
        fs::create_dir(files::temporary_path(&path)).unwrap();
        assert!(journal.append(b"a", Some(b"1"), true).is_err());
        fs::remove_dir(files::temporary_path(&path)).unwrap();
        journal.append(b"b", Some(b"2"), false).unwrap();
        assert_eq!(contents(&path).len(), 2);
        journal.append(b"c", Some(b"3"), false).unwrap();
        assert!(journal.dirty);
        journal.flush_in_background(|e| panic!("{e}"));
        assert!(!journal.dirty);
        assert_eq!(contents(&path).len(), 3);
    }
}
