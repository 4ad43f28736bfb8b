//! Resolves references to containers to their network namespaces, and attaches them.
//!
//! A person names a container in one of three ways ([`Reference`]):
//!
//! | written | means |
//! | --- | --- |
//! | `netns:<name>` or `netns:<path>` | a namespace, as `ip netns` names it or by the file that stands for it |
//! | `pid:<number>` | the namespace of a process |
//! | anything else | the name or id of a Docker container |
//!
//! [`ContainerNetwork`] attaches and detaches them, with addresses of an [`Allocator`].
//!
//! [`resolve`] finds out which namespace that is, refuses the host's own, and gives a [`Target`]: what `weave-host` needs
//! to attach, and the id under which addresses and names are kept. Only the third way needs Docker, over [`Docker`].
#![warn(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

mod addresses;
mod attachment;
mod docker;
mod error;
pub mod etc_hosts;
mod interface;
mod legacy;
mod pending;
mod reference;

pub use addresses::{AddressRequest, Allocator, EXPOSE, NoAllocator, look_up};
pub use attachment::{Attachment, ContainerNetwork, INTERFACE, Outcome, Recovered};
pub use docker::{ContainerInfo, ContainerState, Docker, EndpointInfo, EngineInfo, ImageInfo, Network};
pub use error::Error;
pub use etc_hosts::HostsFile;
pub use interface::{CreatedInterface, NewInterface};
pub use legacy::{LegacyProcess, legacy_processes};
pub use pending::{Change, Namespace, PendingOperation, pending_files};
pub use reference::{Kind, Reference, Target, resolve};
