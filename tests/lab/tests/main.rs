//! Real binaries on hosts made of namespaces. Files are named `NN-subject-hosts.rs`; `claims!` in a file lists the rows of the claims
//! table that its tests show. Run all: `cargo test -p weave-lab -- --test-threads 4`; they spend most of their time waiting.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
#![expect(unreachable_pub, reason = "helpers of a test program")]

mod common;

#[path = "00-lab-1.rs"]
mod lab;

#[path = "10-mesh-3.rs"]
mod mesh;

#[path = "11-line-5.rs"]
mod line;

#[path = "12-nat-4.rs"]
mod nat;

#[path = "13-port-2.rs"]
mod port;

#[path = "20-attach-2.rs"]
mod attach;

#[path = "21-isolation-2.rs"]
mod isolation;

#[path = "22-move-3.rs"]
mod mobility;

#[path = "23-expose-2.rs"]
mod expose;

#[path = "24-services-4.rs"]
mod services;

#[path = "30-partition-4.rs"]
mod partition;

#[path = "31-reroute-3.rs"]
mod reroute;

#[path = "32-restart-2.rs"]
mod restart;

#[path = "33-chain-3.rs"]
mod chain;

#[path = "33-targets-4.rs"]
mod targets;

#[path = "34-life-1.rs"]
mod life;

#[path = "35-docker-2.rs"]
mod docker;

#[path = "36-systemd-1.rs"]
mod systemd;

#[path = "37-booted-2.rs"]
mod booted;

#[path = "40-password-3.rs"]
mod password;

#[path = "41-trusted-2.rs"]
mod trusted;

#[path = "42-firewall-4.rs"]
mod firewall;

#[path = "43-rules-1.rs"]
mod rules;

#[path = "44-local-2.rs"]
mod local;

#[path = "50-mtu-2.rs"]
mod mtu;

#[path = "51-checksum-2.rs"]
mod checksums;

#[path = "60-bad-input-1.rs"]
mod bad_input;

#[path = "61-garbage-2.rs"]
mod garbage;

#[path = "62-missing-1.rs"]
mod missing;

#[path = "63-commands-2.rs"]
mod commands;
#[path = "63-faults-1.rs"]
mod faults;

#[path = "70-original-2.rs"]
mod original;

#[path = "75-addresses-1.rs"]
mod one_host;

#[path = "76-bootstrap-3.rs"]
mod bootstrap;

#[path = "76-growth-8.rs"]
mod growth;

#[path = "77-dynamic-9.rs"]
mod dynamic;

#[path = "78-counts-4.rs"]
mod counts;

#[path = "78-takeover-3.rs"]
mod takeover;

#[path = "78-full-2.rs"]
mod full;

#[path = "79-containers-1.rs"]
mod containers;
