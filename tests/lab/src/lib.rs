//! Hosts made of namespaces: lab library, the lab binary, tests of real binaries on a real kernel.
#![forbid(unsafe_code)]
