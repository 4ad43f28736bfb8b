//! Containers: who they are and where their namespaces are; attach and detach.
#![warn(clippy::undocumented_unsafe_blocks)]
