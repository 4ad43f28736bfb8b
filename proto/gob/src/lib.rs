//! Go's gob stream: type descriptors, values, deterministic encoding, hard limits on hostile input.
#![forbid(unsafe_code)]
