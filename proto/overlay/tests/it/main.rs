//! Tests of the public surface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod corpus;
mod exercise;
mod forward;
mod link;
mod live;
mod properties;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod support;
mod vectors;
