//! Files that survive a restart, and the pid file.

mod allocation_store;
mod attachment_store;
mod error;
mod host_state;
mod interface_store;
mod journal;
mod json_file;
mod name_store;
mod network_store;
mod peer_state;
pub mod pid_file;

pub(crate) use allocation_store::AllocationStore;
pub(crate) use attachment_store::AttachmentStore;
pub use attachment_store::was_attached;
pub(crate) use error::StoreError;
pub use host_state::HostState;
pub(crate) use interface_store::{Attached, InterfaceStore};
pub(crate) use name_store::{NameStore, NamesByContainer};
pub(crate) use network_store::NetworkStore;
pub use peer_state::Original;
pub use peer_state::PeerState;

/// Names of the files in the state directory that belong to the peer.
pub const PEER_FILES: [&str; 6] = [
    peer_state::FILE_NAME,
    ALLOCATION_FILE,
    name_store::FILE_NAME,
    attachment_store::FILE_NAME,
    network_store::FILE_NAME,
    interface_store::FILE_NAME,
];
/// Name of the one among them that exists once addresses have been allocated.
pub const ALLOCATION_FILE: &str = allocation_store::FILE_NAME;
/// Name of the file in the state directory that describes changes of the host.
pub const HOST_FILE: &str = host_state::FILE_NAME;
