//! Tests of the public API, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod checksum;
mod coalesce;
mod corpus;
mod fragment;
mod frame;
mod fuzz_entry;
mod mac;
mod offload;
mod packet;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod segment;
mod vectors;
mod verdict;
