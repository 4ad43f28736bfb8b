//! Tests of several modules together.

mod harness;
mod mesh;
mod replay;
mod routes;
mod topology;
