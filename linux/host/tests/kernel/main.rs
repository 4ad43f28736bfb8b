//! The effects of the operations on a kernel, each test in network namespaces of its own. Without root the tests are skipped, with a
//! message.
#![expect(
    clippy::unwrap_used,
    reason = "clippy allows unwrap in tests, but not in functions that they share"
)]

mod attach;
mod bridge;
mod endpoint;
mod firewall;
mod frame_socket;
mod host_checks;
mod legacy_devices;
mod netns;
mod support;
