//! A small map on disk that survives a crash at any point: a log of changes, which is rewritten when it has grown.
//!
//! ```text
//! "weave journal 1\n"                                                     16 bytes
//! length u32 | checksum 8 bytes | flags u8 | key length u16 | key | value   one change, repeated
//!                                 bit 0: the key is deleted   bit 1: synced before the next output is carried out
//! ```
//!
//! A change is one `write`, so it survives SIGKILL. Changes that other peers depend on are synced at once, the rest within a second
//! ([`Journal::flush_in_background`]). After a power loss an incomplete change at the end is ignored. Damage in front of a synced
//! change cannot come from a crash, and is an error.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use weave_host::{fault_injection, files};

use super::StoreError;

const HEADER: &[u8; 16] = b"weave journal 1\n";
/// Size of length and checksum.
const FRAME: usize = 12;
const DELETED: u8 = 1;
const SYNCED: u8 = 2;
/// Far more than any change needs.
const MAX_RECORD: usize = 64 << 20;
/// A smaller log is not rewritten.
const MIN_REWRITE_SIZE: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// `None` before the first write, and after a failed one: the next write rewrites everything.
    file: Option<File>,
    length: u64,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Whether there are unsynced changes.
    dirty: bool,
    write_failed: bool,
}

impl Journal {
    /// Reads the log at `path`; a missing one is empty. Writes nothing.
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
        // The file may end with an incomplete change. The first change rewrites the file.
        Ok(journal)
    }

    pub(crate) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Entries whose key begins with `prefix`, in order.
    pub(crate) fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let from = self.entries.range(prefix.to_vec()..);
        from.take_while(move |(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.as_slice(), v.as_slice()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets a value, or deletes the key. `synced` announces that the caller calls [`Journal::sync`] before the next output is carried
    /// out, so that damage to the change cannot come from a crash. After an error the change is kept in memory, and the next one
    /// writes both.
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
            // The next change must not follow a partly written one, so it rewrites the file.
            self.file = None;
            self.write_failed = true;
            return Err(StoreError::io("write", &self.path)(e));
        }
        self.length += length;
        self.dirty = true;
        Ok(())
    }

    /// Replaces the whole map, and syncs it.
    pub(crate) fn replace(&mut self, map: BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), StoreError> {
        self.entries = map;
        self.rewrite()
    }

    /// After an error the next change rewrites the file.
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

    /// Syncs in another thread, because the disk may be slow. Calls `failed` on an error.
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
            // There is no descriptor or thread left.
            let _ = self.sync();
        }
    }

    /// Size of the log without outdated changes.
    fn encoded_size(&self) -> u64 {
        self.entries.iter().map(|(k, v)| (FRAME + 3 + k.len() + v.len()) as u64).sum()
    }

    /// Whether the last write failed.
    pub(crate) fn write_failed(&self) -> bool {
        self.write_failed
    }

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
    record.extend(checksum(&payload));
    record.extend(payload);
    record
}

fn checksum(payload: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&Sha256::digest(payload)[..8]);
    sum
}

struct Change<'a> {
    flags: u8,
    key: &'a [u8],
    value: &'a [u8],
    /// Offset of the next change.
    end: usize,
}

/// The change at offset `at`, if it is complete and undamaged.
fn change_at(bytes: &[u8], at: usize) -> Option<Change<'_>> {
    let frame = bytes.get(at..at.checked_add(FRAME)?)?;
    let length = usize::try_from(u32::from_be_bytes(frame.get(..4)?.try_into().ok()?)).ok()?;
    if !(3..=MAX_RECORD).contains(&length) {
        return None;
    }
    let end = at + FRAME + length;
    let payload = bytes.get(at + FRAME..end)?;
    if frame.get(4..)? != checksum(payload) {
        return None;
    }
    let (head, rest) = payload.split_at_checked(3)?;
    let key_length = usize::from(u16::from_be_bytes([head[1], head[2]]));
    let (key, value) = rest.split_at_checked(key_length)?;
    Some(Change { flags: head[0], key, value, end })
}

/// Applies all changes of the log. The error says what is wrong with it.
fn replay(bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let Some((header, _)) = bytes.split_first_chunk::<16>() else {
        return Err("it has no complete header".to_owned());
    };
    if header != HEADER {
        return Err("it is not a journal of this version".to_owned());
    }
    let mut entries = BTreeMap::new();
    let mut at = HEADER.len();
    while at < bytes.len() {
        let Some(change) = change_at(bytes, at) else {
            // A crash damages only unsynced changes at the end.
            let later = (at + 1..bytes.len()).filter_map(|i| change_at(bytes, i));
            if later.into_iter().any(|c| c.flags & SYNCED != 0) {
                return Err(format!("the record at byte {at} is damaged"));
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

    /// Writes some changes. Returns the map and the size of the file after each.
    fn write_changes(path: &Path) -> Vec<(Map, u64)> {
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
    fn written_entries_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        assert!(Journal::open(&path).unwrap().is_empty());
        assert!(!path.exists(), "reading creates no file");
        let states = write_changes(&path);
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

    /// A killed process, or a power loss, truncates the log at any byte.
    #[test]
    fn truncated_log_contains_all_complete_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let states = write_changes(&path);
        let bytes = fs::read(&path).unwrap();
        let first = usize::try_from(states[0].1).unwrap();
        let cut = dir.path().join("cut.journal");
        for length in first..=bytes.len() {
            fs::write(&cut, &bytes[..length]).unwrap();
            let complete = states.iter().rev().find(|(_, end)| *end <= length as u64).unwrap();
            let mut journal = Journal::open(&cut).unwrap();
            assert_eq!(journal.entries, complete.0, "{length} bytes");
            // A change after the truncated end must be readable.
            journal.append(b"next", Some(b"1"), false).unwrap();
            let mut expected = complete.0.clone();
            expected.insert(b"next".to_vec(), b"1".to_vec());
            assert_eq!(contents(&cut), expected, "{length} bytes");
        }
    }

    /// After a power loss, blocks at the end may be written although earlier ones are not.
    #[test]
    fn holes_in_unsynced_changes_are_accepted() {
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

    /// Synced changes cannot be lost in a crash. With damaged ones addresses could be allocated twice.
    #[test]
    fn damage_of_synced_changes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let states = write_changes(&path);
        let bytes = fs::read(&path).unwrap();
        let before_synced = usize::try_from(states[3].1).unwrap();
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

    #[test]
    fn temporary_file_of_a_killed_rewrite_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipam.journal");
        let states = write_changes(&path);
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
    fn size_of_the_log_is_limited() {
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
    fn next_write_includes_a_failed_one() {
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
