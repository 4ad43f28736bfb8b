//! A compressed tar archive in memory.

use std::io;

use flate2::Compression;
use flate2::write::GzEncoder;

pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<Vec<u8>>>,
    folder: String,
    modified: u64,
}

impl Archive {
    /// `folder` is that of all files, `modified` their time in seconds since the Unix epoch.
    pub(super) fn new(folder: &str, modified: u64) -> Archive {
        let tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        Archive { tar, folder: folder.to_owned(), modified }
    }

    /// Adds a file that only its owner can read.
    pub(super) fn add(&mut self, file: &str, content: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.modified);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        self.tar.append_data(&mut header, format!("{}/{file}", self.folder), content)
    }

    pub(super) fn finish(self) -> io::Result<Vec<u8>> {
        self.tar.into_inner()?.finish()
    }
}
