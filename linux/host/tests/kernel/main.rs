//! The effects of the operations on a kernel, each test in network namespaces of its own. Without root the tests are skipped, with a
//! message.
#![expect(clippy::unwrap_used, reason = "the lint spares tests, but not what they share")]

mod attach;
mod bridge;
mod firewall;
mod legacy_devices;
mod netns;
mod support;
