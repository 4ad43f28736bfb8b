//! Tests of the public API, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod corpus;
mod forward;
mod fuzz_entry;
mod live;
mod properties;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod sleeve_control;
mod support;
mod vectors;
