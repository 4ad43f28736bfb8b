//! Tests of several modules together.

mod changed_addresses;
mod forged_versions;
mod harness;
mod mesh;
mod replay;
mod routes;
mod topology;
