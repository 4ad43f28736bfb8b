//! Tests of the public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod answer;
mod corpus;
mod forwarder;
mod forwarder_faults;
mod fuzz_entry;
mod registry;
mod registry_properties;
mod registry_support;
mod registry_vectors;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod support;
