//! Hosts made of namespaces: real binaries on a real kernel, many hosts on one machine.
//!
//! ```text
//!        host h1                 wire (router)               host h2
//!  +----------------+        +------------------+        +----------------+
//!  | c1  c2         |        |  FORWARD: LAB    |        |         c3     |
//!  |  |   |  eth0 --+--------+- h1  ...     h2 -+--------+-- eth0  |      |
//!  |  bridge weave  | veth   |  cuts, blocks,   |  veth  |  bridge weave  |
//!  +----------------+        |  loss, path MTU  |        +----------------+
//!                            +------------------+
//! ```
//!
//! A host is a network, mount, pid, uts and ipc namespace held by a small init (`lab init`). It has its own `/run`
//! (empty after a reboot), its own disk (`/var/lib`, `/var/log`, `/etc`, `/opt`; private copies that exist as long as the lab) and its
//! own machine id. All hosts of a lab are in 198.18.0.0/24, and a *router* between them answers ARP for all of them. With a router
//! rather than a bridge one iptables chain simulates every failure of the network (cut, one-way block, loss, firewall, NAT), and a
//! small path MTU behaves as on the Internet, with or without ICMP messages. The rules of the hosts themselves stay untouched, so
//! that only a daemon changes them.
//!
//! A container is a network namespace in a host with a process that holds it: `netns:<name>` and `pid:<pid>` name it.
//!
//! Commands run in a host by `nsenter` (not `ip netns exec`, which mounts another `/sys`). Everything ends with the [`Lab`] value,
//! also when the test is killed: the init of a host ends when its pipe to the test closes.
//!
//! Tests wait only by [`eventually`], whose error names the condition. A failing test prints logs and status of every host.
#![forbid(unsafe_code)]

mod claims;
mod host;
mod lab;
mod programs;
mod run;
mod state;
mod wait;

pub mod bench;
pub mod demo;
pub mod init;
pub mod packet;
pub mod probe;
pub mod systemd;
pub mod without;

pub use claims::claims;
pub use host::{Chat, Connection, Container, Host, Pinger, capture, docker};
pub use lab::{Lab, Topology};
pub use programs::weave_binary;
pub use run::{Background, Outcome};
pub use state::{LabState, labs_up};
pub use wait::{Attempt, eventually, step, throughout, within};

/// Whether this process may make namespaces. If not, it prints a notice, or panics with `WEAVE_LAB_REQUIRED=1`, so that a run that
/// must include the lab cannot pass without it.
pub fn privileged() -> bool {
    let reason = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if std::env::var_os("WEAVE_LAB_SKIP").is_some() {
        "WEAVE_LAB_SKIP is set"
    } else {
        return true;
    };
    assert!(
        std::env::var("WEAVE_LAB_REQUIRED").as_deref() != Ok("1"),
        "lab tests are required, but: {reason}"
    );
    eprintln!("SKIPPED: lab test needs namespaces: {reason}");
    false
}

/// A script of the guide: the block of `docs/guide/<chapter>.md` after `<!-- script: <name> -->`.
#[track_caller]
pub fn guide_script(chapter: &str, name: &str) -> String {
    let path = format!("{}/../../docs/guide/{chapter}.md", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let block = text.split_once(&format!("<!-- script: {name} -->\n")).and_then(|(_, rest)| {
        let (_, rest) = rest.split_once("```sh\n")?;
        rest.split_once("```").map(|(block, _)| block)
    });
    block.unwrap_or_else(|| panic!("{path} has no script {name}")).to_owned()
}
