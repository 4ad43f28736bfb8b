//! Captures: everything that passes a device, for tests to search.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::host::{Host, probe_argv};
use crate::packet::{Udp, pcap_frames};
use crate::run::Background;

/// A capture that is going on.
#[derive(Debug)]
pub struct Capture {
    probe: Background,
    file: Temporary,
}

/// A file that is gone with the value.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What a capture saw.
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
        let command = host.enter_net(net.as_deref(), &probe_argv(&["capture", device, &path]));
        let probe = Background::start(command, true)
            .unwrap_or_else(|e| panic!("capture on {device} of {}: {e:#}", host.name()));
        Capture { probe, file: Temporary(file) }
    }

    /// Ends it and gives what it saw.
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
    /// All frames in order.
    pub fn frames(&self) -> Vec<&[u8]> {
        pcap_frames(&self.bytes)
    }

    /// Number of frames in which `needle` occurs.
    pub fn count(&self, needle: &[u8]) -> usize {
        self.frames().iter().filter(|f| f.windows(needle.len()).any(|w| w == needle)).count()
    }

    /// All UDP datagrams in order.
    pub fn datagrams(&self) -> Vec<Udp<'_>> {
        self.frames().into_iter().filter_map(Udp::parse).collect()
    }

    /// Keeps the capture as a pcap file, for a person to look at.
    pub fn save(&self, path: &str) -> std::io::Result<()> {
        std::fs::write(path, &self.bytes)
    }
}
