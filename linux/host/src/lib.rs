//! Links, bridge, veth, namespaces, addresses, routes, sysctls, firewall: idempotent verbs that undo themselves.
#![warn(clippy::undocumented_unsafe_blocks)]
