//! Tests of several modules together.

mod changed_addresses;
mod forged_versions;
mod harness;
mod late;
mod limits;
mod mesh;
mod paths;
mod replay;
mod routes;
mod topology;
