//! What the verbs really do to a kernel, each test in network namespaces of its own. Needs root; says so and passes
//! without.
#![expect(clippy::unwrap_used, reason = "the lint spares tests, but not what they share")]

mod attach;
mod bridge;
mod firewall;
mod legacy_devices;
mod netns;
mod support;
