//! Tests of the public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod behaviour;
mod corpus;
mod database;
mod disputes;
mod fuzz_entry;
mod messages;
mod properties;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod ring;
mod scenarios;
mod search;
mod space;
mod support;
