//! The kernel path of fastdp: eBPF programs forward VXLAN with no process in the path (docs/spec/data-plane.md, Appendix A).
//!
//! ```text
//!                                       programs                           underlay
//!   bridge -- vethwe-bridge == vethwe-datapath [uplink] --+-------------> vxlan-6784 --> neighbours
//!                                     ^                   |  +----------> TAP        --> user space
//!                                     |                   |
//!                                     +-------------- [tunnel] vxlan-6784 <------------- neighbours
//!                                                         |  +----------> vxlan-6784 (relay)
//!                                                         +-------------> TAP        --> user space
//!   user space  -- publish: routes, MACs -->  maps  -- events, counters -->  user space
//! ```
//!
//! * [`Fastdp`] loads the programs, makes and removes devices, publishes tables and reads what the programs know;
//! * [`check_kernel`] finds out whether this kernel has what they need;
//! * [`EventReader`] receives their events: MACs, conflicts, control frames, traffic;
//! * [`Shortcuts`] lets frames of containers bypass the bridge.
//!
//! The programs (`bpf/fastdp.bpf.c`) decide as [`weave_switch::local_frame`] and [`weave_switch::peer_frame`] do, and learn MACs by
//! themselves, so that the answer to the first frame is not flooded; [`MacTable`](weave_switch::MacTable) has the last word. Programs, maps and devices outlive the
//! process: the next one takes them over.
//!
//! System calls are made here and not by a library: maps are adopted by their numbers and given to newly loaded programs, for which the
//! known ones need a mounted bpffs.
#![warn(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod check;
mod devices;
mod error;
mod events;
mod fastdp;
mod layout;
mod maps;
mod object;
mod send;
mod shortcut;
#[expect(unsafe_code, reason = "system calls that take pointers")]
mod sys;
mod time;

pub use check::check_kernel;
pub use error::Error;
pub use events::EventReader;
pub use fastdp::{Count, Fastdp, FastdpConfig, Flow, MacActivity, Vport, device_names, remove_all};
pub use layout::Counter;
pub use send::SendError;
pub use shortcut::Shortcuts;

#[cfg(test)]
mod decide_tests;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod layout_tests;
#[cfg(test)]
#[path = "../../datapath/src/namespace.rs"]
mod namespace;
#[cfg(test)]
mod shortcut_tests;
#[cfg(test)]
mod testbed;
