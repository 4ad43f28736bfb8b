//! Log, report and metrics.

pub(crate) mod failed_handshakes;
pub(crate) mod ipam_report;
pub mod log;
mod log_file;
pub(crate) mod metrics;
#[cfg(test)]
mod monitoring_tests;
pub(crate) mod printable;
mod process_stats;
pub(crate) mod recent_events;
pub(crate) mod report;
