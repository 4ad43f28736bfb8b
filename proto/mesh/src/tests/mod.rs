//! Tests that need more than one file of the crate.

mod routes;
mod support;
