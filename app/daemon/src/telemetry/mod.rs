//! What the daemon shows of itself: log, report and metrics.

pub(crate) mod failed_handshakes;
pub(crate) mod ipam_report;
pub mod log;
mod log_file;
pub mod metrics;
mod process_stats;
pub(crate) mod report;
