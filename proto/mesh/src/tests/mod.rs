//! Tests that need more than one file of the crate.

mod routes;
pub(crate) mod support;
