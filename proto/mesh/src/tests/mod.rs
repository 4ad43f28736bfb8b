//! Tests that need more than one file of the crate.

mod harness;
mod mesh;
mod replay;
mod routes;
pub(crate) mod support;
mod topology;
