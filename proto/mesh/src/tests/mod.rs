//! Tests of several modules together.

mod changed_addresses;
mod departed_peers;
mod forged_versions;
mod harness;
mod late;
mod limits;
mod mesh;
mod paths;
mod replay;
mod routes;
mod topology;
