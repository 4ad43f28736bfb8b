//! The default name of a peer (docs/spec/mesh.md 2.2): the address of the bridge if it exists, else a hash of the ids of the machine,
//! which do not change with a reboot.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use weave_types::PeerName;

use crate::{Error, link_mac};

const SALT: &[u8] = b"9oBJ0Jmip-";
/// The text of 2.8.1, and what helps.
const NO_IDS: &str = "All system IDs are blank: this host has neither /etc/machine-id nor a product UUID; make the file with \
'systemd-machine-id-setup' or 'dbus-uuidgen --ensure=/etc/machine-id', or give the peer a --name";

/// Where the ids of the machine are read.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Root of the host's file system (`--host-root`), with the machine id.
    pub host_root: PathBuf,
    /// Mount point of sysfs, with the product UUID.
    pub sys: PathBuf,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources { host_root: "/".into(), sys: "/sys".into() }
    }
}

/// The ids of the machine: exact contents of files, with newlines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemIds {
    /// `/etc/machine-id`, or that of D-Bus.
    pub machine_id: Vec<u8>,
    /// The product UUID of the firmware, or that of the hypervisor.
    pub system_uuid: Vec<u8>,
}

impl SystemIds {
    /// Reads the ids. A file that does not exist counts as empty; one that cannot be read is an error.
    pub fn read(sources: &Sources) -> Result<SystemIds, Error> {
        let root = &sources.host_root;
        Ok(SystemIds {
            machine_id: first_of([root.join("etc/machine-id"), root.join("var/lib/dbus/machine-id")])?,
            system_uuid: first_of([
                sources.sys.join("class/dmi/id/product_uuid"),
                sources.sys.join("hypervisor/uuid"),
            ])?,
        })
    }

    /// The name derived from the ids. `persisted` is the name in a database of 2.8.1, which is kept if it was derived from the UUID alone,
    /// as versions before 1.9 did.
    pub fn peer_name(&self, persisted: Option<PeerName>) -> Result<PeerName, Error> {
        if !self.system_uuid.is_empty() {
            let from_uuid_alone = derive(&self.system_uuid);
            if persisted == Some(from_uuid_alone) {
                return Ok(from_uuid_alone);
            }
        }
        if self.machine_id.is_empty() && self.system_uuid.is_empty() {
            return Err(Error::State(NO_IDS.into()));
        }
        Ok(derive(&[&self.machine_id[..], &self.system_uuid].concat()))
    }
}

/// The name of the peer of this host: the address of the interface `bridge` if it exists, else [`SystemIds::peer_name`].
pub fn peer_name(bridge: &str, sources: &Sources, persisted: Option<PeerName>) -> Result<PeerName, Error> {
    match link_mac(bridge)? {
        Some(mac) => Ok(PeerName::from_bytes(mac.0)),
        None => SystemIds::read(sources)?.peer_name(persisted),
    }
}

/// The name of an instance, one of several peers that share a host: derived from the ids of the machine and the name of the instance.
pub fn instance_peer_name(bridge: &str, sources: &Sources, instance: &str) -> Result<PeerName, Error> {
    if let Some(mac) = link_mac(bridge)? {
        return Ok(PeerName::from_bytes(mac.0));
    }
    let mut ids = SystemIds::read(sources)?;
    // Without ids of the machine, instances of different hosts would get the same name.
    if !(ids.machine_id.is_empty() && ids.system_uuid.is_empty()) {
        ids.system_uuid.extend_from_slice(instance.as_bytes());
    }
    ids.peer_name(None)
}

/// The hash of `id` as a locally administered unicast address.
pub fn derive(id: &[u8]) -> PeerName {
    let hash = Sha256::new().chain_update(SALT).chain_update(id).finalize();
    PeerName::from_bytes([hash[0] & 0xfe | 0x02, hash[1], hash[2], hash[3], hash[4], hash[5]])
}

fn first_of(paths: [PathBuf; 2]) -> Result<Vec<u8>, Error> {
    for path in &paths {
        if let Some(bytes) = read(path)? {
            return Ok(bytes);
        }
    }
    Ok(Vec::new())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names_equal_those_of_2_8_1() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/mesh/peer_names.json");
        let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = vectors["derived"].as_array().unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let bytes = |key: &str| case[key].as_str().unwrap().as_bytes().to_vec();
            let ids = SystemIds { machine_id: bytes("machine_id"), system_uuid: bytes("system_uuid") };
            let name = case["name"].as_str().unwrap();
            assert_eq!(ids.peer_name(None).unwrap().to_string(), name);
            assert_eq!(derive(&bytes("hash_input_after_salt")).to_string(), name);
        }
    }

    #[test]
    fn name_of_versions_before_1_9_is_kept_on_the_same_machine() {
        let ids = SystemIds { machine_id: b"m\n".into(), system_uuid: b"u\n".into() };
        let (old, new) = (derive(b"u\n"), derive(b"m\nu\n"));
        assert_eq!(ids.peer_name(Some(old)), Ok(old));
        assert_eq!(ids.peer_name(Some(derive(b"another"))), Ok(new));
        assert_eq!(ids.peer_name(None), Ok(new));
        let blank = SystemIds::default().peer_name(Some(derive(b"")));
        assert_eq!(blank, Err(Error::State(NO_IDS.into())));
    }

    #[test]
    fn ids_are_read_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { host_root: dir.path().join("root"), sys: dir.path().join("sys") };
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(SystemIds::read(&sources), Ok(SystemIds::default()));
        put("root/var/lib/dbus/machine-id", "d\n");
        put("sys/hypervisor/uuid", "h\n");
        let ids = SystemIds::read(&sources).unwrap();
        assert_eq!((&ids.machine_id[..], &ids.system_uuid[..]), (&b"d\n"[..], &b"h\n"[..]));
        put("root/etc/machine-id", "m\n");
        put("sys/class/dmi/id/product_uuid", "p\n");
        let ids = SystemIds::read(&sources).unwrap();
        assert_eq!((&ids.machine_id[..], &ids.system_uuid[..]), (&b"m\n"[..], &b"p\n"[..]));
        // A directory instead of a file is an error.
        std::fs::remove_file(dir.path().join("root/etc/machine-id")).unwrap();
        std::fs::create_dir(dir.path().join("root/etc/machine-id")).unwrap();
        assert!(SystemIds::read(&sources).is_err());
    }
}
