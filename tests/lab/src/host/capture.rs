//! Captures of all frames on a device.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Host;
use crate::packet::{Udp, pcap_frames};
use crate::run::Background;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    probe: Background,
    file: Temporary,
}

/// A file that is removed when the value is dropped.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The frames of a capture.
#[derive(Debug)]
pub struct Captured {
    bytes: Vec<u8>,
}

impl Capture {
    #[track_caller]
    pub(crate) fn start(host: &Host, container: Option<&str>, device: &str) -> Capture {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("weave-lab-{}-{number}.pcap", std::process::id()));
        let path = file.to_string_lossy().into_owned();
        let net = container.map(|name| format!("/run/netns/{name}"));
        let command = host.enter_probe(net.as_deref(), &["capture", device, &path]);
        let probe = Background::start(command, true)
            .unwrap_or_else(|e| panic!("capture on {device} of {}: {e:#}", host.name()));
        Capture { probe, file: Temporary(file) }
    }

    /// Ends the capture.
    #[track_caller]
    pub fn finish(self) -> Captured {
        let Capture { probe, file } = self;
        let outcome = probe.finish();
        let bytes = std::fs::read(&file.0);
        outcome.unwrap_or_else(|e| panic!("{e:#}"));
        Captured { bytes: bytes.unwrap_or_else(|e| panic!("{}: {e}", file.0.display())) }
    }
}

impl Captured {
    pub fn frames(&self) -> Vec<&[u8]> {
        pcap_frames(&self.bytes)
    }

    /// Number of frames in which `needle` occurs.
    pub fn count(&self, needle: &[u8]) -> usize {
        self.frames().iter().filter(|f| f.windows(needle.len()).any(|w| w == needle)).count()
    }

    pub fn datagrams(&self) -> Vec<Udp<'_>> {
        self.frames().into_iter().filter_map(Udp::parse).collect()
    }

    /// Writes a pcap file, for a person to look at.
    pub fn save(&self, path: &str) -> std::io::Result<()> {
        std::fs::write(path, &self.bytes)
    }
}
