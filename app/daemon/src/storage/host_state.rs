//! Changes of the host that must be known after a restart: exposed addresses, and the configuration of the firewall rules.
//!
//! ```text
//! /var/lib/weave/host.json   {"format":1,"exposed":[{"address":"10.2.1.102/24","masquerade":true}],
//!                             "firewall":{"bridge":"weave","port":6783,...}}
//! ```
//!
//! The file is written before a change is begun and after it is undone, so that the next start completes a change that was
//! interrupted.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_host::firewall::{DockerBridge, ExposedAddress, FirewallConfig};
use weave_types::ParseCidrError;

use super::{StoreError, json_file};

pub(super) const FILE_NAME: &str = "host.json";
const FORMAT: u32 = 1;
/// Far more than any state needs.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    dir: PathBuf,
    /// In the order in which they were exposed.
    pub exposed: Vec<ExposedAddress>,
    /// Configuration of the rules that were installed last.
    pub firewall: Option<FirewallConfig>,
}

#[derive(Deserialize, Serialize)]
struct Content {
    format: u32,
    #[serde(default)]
    exposed: Vec<Address>,
    #[serde(default)]
    firewall: Option<Rules>,
}

#[derive(Deserialize, Serialize)]
struct Address {
    address: String,
    masquerade: bool,
}

#[derive(Deserialize, Serialize)]
struct Rules {
    #[serde(default)]
    instance: Option<String>,
    bridge: String,
    port: u16,
    control_port: Option<u16>,
    docker: Option<(String, Ipv4Addr)>,
    expect_npc: bool,
    no_masq_local: bool,
    #[serde(default)]
    dns_port: Option<u16>,
}

impl HostState {
    /// Reads the file in `dir`. Without a file the state is empty.
    pub fn open(dir: &Path) -> Result<HostState, StoreError> {
        let path = dir.join(FILE_NAME);
        let empty = HostState { dir: dir.to_owned(), exposed: Vec::new(), firewall: None };
        let Some(content) = json_file::read::<Content>(&path, FORMAT, MAX_SIZE)? else { return Ok(empty) };
        let mut exposed: Vec<ExposedAddress> = Vec::new();
        for Address { address, masquerade } in content.exposed {
            let address = address.parse().map_err(|e: ParseCidrError| StoreError::Damaged {
                path: path.clone(),
                what: e.to_string(),
            })?;
            if !exposed.iter().any(|e| e.address == address) {
                exposed.push(ExposedAddress { address, masquerade });
            }
        }
        let firewall = content.firewall.map(|r| FirewallConfig {
            instance: r.instance,
            bridge: r.bridge,
            port: r.port,
            control_port: r.control_port,
            docker: r.docker.map(|(name, address)| DockerBridge { name, address }),
            expect_npc: r.expect_npc,
            no_masq_local: r.no_masq_local,
            dns_port: r.dns_port,
        });
        Ok(HostState { exposed, firewall, ..empty })
    }

    pub fn write(&self) -> Result<(), StoreError> {
        let exposed = self.exposed.iter();
        let content = Content {
            format: FORMAT,
            exposed: exposed
                .map(|e| Address { address: e.address.to_string(), masquerade: e.masquerade })
                .collect(),
            firewall: self.firewall.as_ref().map(|s| Rules {
                instance: s.instance.clone(),
                bridge: s.bridge.clone(),
                port: s.port,
                control_port: s.control_port,
                docker: s.docker.as_ref().map(|d| (d.name.clone(), d.address)),
                expect_npc: s.expect_npc,
                no_masq_local: s.no_masq_local,
                dns_port: s.dns_port,
            }),
        };
        json_file::write(&self.dir.join(FILE_NAME), &content)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn written_state_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = HostState::open(dir.path()).unwrap();
        assert_eq!((&state.exposed[..], &state.firewall), (&[][..], &None));
        state.exposed = [("10.2.1.102/24", true), ("10.2.2.102/24", false)]
            .map(|(a, masquerade)| ExposedAddress { address: a.parse().unwrap(), masquerade })
            .to_vec();
        state.firewall = Some(FirewallConfig {
            instance: Some("b".into()),
            bridge: "w".into(),
            port: 7000,
            control_port: Some(7001),
            docker: Some(DockerBridge { name: "docker0".into(), address: Ipv4Addr::LOCALHOST }),
            expect_npc: true,
            no_masq_local: false,
            dns_port: Some(53),
        });
        state.write().unwrap();
        assert_eq!(HostState::open(dir.path()).unwrap(), state);
    }

    #[test]
    fn damaged_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for text in
            ["", "{", "{\"format\":1,\"exposed\":[{\"address\":\"10.2.1/24\",\"masquerade\":true}]}", "7"]
        {
            fs::write(&path, text).unwrap();
            assert!(matches!(HostState::open(dir.path()), Err(StoreError::Damaged { .. })), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, "{\"format\":2}").unwrap();
        assert!(matches!(HostState::open(dir.path()), Err(StoreError::LaterFormat { format: 2, .. })));
        fs::write(&path, "{\"format\":1,\"more\":{}}").unwrap();
        assert!(HostState::open(dir.path()).is_ok(), "unknown fields are ignored");
    }
}
