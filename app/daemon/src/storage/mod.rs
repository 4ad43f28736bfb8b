//! Files that survive a restart, and the pid file.

pub mod allocation_store;
mod journal;
pub mod pid_file;
pub mod store;

pub use store::StoreError;
