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

#[path = "30-partition-4.rs"]
mod partition;

#[path = "31-reroute-3.rs"]
mod reroute;

#[path = "32-restart-2.rs"]
mod restart;

#[path = "33-targets-4.rs"]
mod targets;

#[path = "40-password-3.rs"]
mod password;

#[path = "41-trusted-2.rs"]
mod trusted;

#[path = "42-firewall-4.rs"]
mod firewall;

#[path = "50-mtu-2.rs"]
mod mtu;

#[path = "51-checksum-2.rs"]
mod checksums;

#[path = "60-bad-input-1.rs"]
mod bad_input;

#[path = "61-garbage-2.rs"]
mod garbage;
