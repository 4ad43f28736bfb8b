//! How Docker's containers are attached, so that those that Docker starts again get their network again.
//!
//! ```text
//! /var/lib/weave/attachments.json
//!   {"format":1,"containers":{"<id>":{"addresses":[["net:default","10.32.0.1/12"]],"multicast_route":true,...}}}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_api::host_requests::{AttachRequest, HostsFile};
use weave_runtime::AddressRequest;
use weave_types::Cidr;

use super::{StoreError, json_file};

pub(super) const FILE_NAME: &str = "attachments.json";
const FORMAT: u32 = 1;
/// Some 100,000 containers.
const MAX_SIZE: u64 = 64 << 20;

/// The last request to attach each container, together with the addresses of earlier requests that it still has.
#[derive(Debug)]
pub(crate) struct AttachmentStore {
    path: PathBuf,
    containers: BTreeMap<String, Attachment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Attachment {
    /// Addresses as they were requested, and what was obtained.
    addresses: Vec<(String, String)>,
    bridge: String,
    multicast_route: bool,
    hairpin: bool,
    hosts_file: Option<HostsFile>,
    name: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Content<C> {
    format: u32,
    containers: C,
}

impl AttachmentStore {
    /// Reads the file in `dir`, if there is one.
    pub(crate) fn open(dir: &Path) -> Result<AttachmentStore, StoreError> {
        let path = dir.join(FILE_NAME);
        let content: Option<Content<_>> = json_file::read(&path, FORMAT, MAX_SIZE)?;
        Ok(AttachmentStore {
            path,
            containers: content.map(|content| content.containers).unwrap_or_default(),
        })
    }

    /// Records a container that has been attached with these addresses, in the order of the request.
    pub(crate) fn attached(&mut self, request: &AttachRequest, cidrs: &[Cidr]) {
        let before = self.containers.get(&request.container);
        let mut addresses = before.map(|before| before.addresses.clone()).unwrap_or_default();
        let cidrs: Vec<String> = cidrs.iter().map(Cidr::to_string).collect();
        addresses.retain(|(_, cidr)| !cidrs.contains(cidr));
        addresses.extend(request.addresses.iter().cloned().zip(cidrs));
        let attachment = Attachment {
            addresses,
            bridge: request.bridge.clone(),
            multicast_route: request.multicast_route,
            hairpin: request.hairpin,
            hosts_file: request.hosts_file.clone().or_else(|| before?.hosts_file.clone()),
            name: request.name.clone().or_else(|| before?.name.clone()),
        };
        if before != Some(&attachment) {
            self.containers.insert(request.container.clone(), attachment);
            self.write();
        }
    }

    /// Forgets addresses that have been detached from a container, and the container with the last one.
    pub(crate) fn detached(&mut self, container: &str, cidrs: &[Cidr]) {
        let Some(attachment) = self.containers.get_mut(container) else { return };
        let count = attachment.addresses.len();
        attachment.addresses.retain(|(_, had)| cidrs.iter().all(|cidr| cidr.to_string() != *had));
        if attachment.addresses.is_empty() {
            self.containers.remove(container);
        } else if attachment.addresses.len() == count {
            return;
        }
        self.write();
    }

    /// Forgets a container that does not exist any more.
    pub(crate) fn removed(&mut self, container: &str) {
        if self.containers.remove(container).is_some() {
            self.write();
        }
    }

    pub(crate) fn containers(&self) -> Vec<String> {
        self.containers.keys().cloned().collect()
    }

    /// The addresses of a container as they were requested, `net:default` if it is not known.
    pub(crate) fn addresses(&self, container: &str) -> Vec<String> {
        match self.containers.get(container) {
            Some(attachment) => attachment.addresses.iter().map(|(request, _)| request.clone()).collect(),
            None => vec![AddressRequest::Net(None).to_string()],
        }
    }

    /// The addresses of a request, behind those with which the container was attached before.
    pub(crate) fn and_former(&self, request: &AttachRequest) -> Vec<String> {
        let former = self.containers.get(&request.container).map(|attachment| &attachment.addresses);
        let former = former.into_iter().flatten();
        let others =
            former.filter(|(text, cidr)| !request.addresses.iter().any(|new| new == text || new == cidr));
        others.map(|(text, _)| text.clone()).chain(request.addresses.iter().cloned()).collect()
    }

    pub(crate) fn contains(&self, container: &str) -> bool {
        self.containers.contains_key(container)
    }

    pub(crate) fn name(&self, container: &str) -> Option<String> {
        self.containers.get(container)?.name.clone()
    }

    /// The request that attaches a container as it was attached before. `naming`: see [`AttachRequest`].
    pub(crate) fn request(&self, container: &str, naming: String) -> Option<AttachRequest> {
        let attachment = self.containers.get(container)?.clone();
        Some(AttachRequest {
            container: container.to_owned(),
            naming,
            bridge: attachment.bridge,
            addresses: self.addresses(container),
            former: false,
            record: true,
            multicast_route: attachment.multicast_route,
            hairpin: attachment.hairpin,
            hosts_file: attachment.hosts_file,
            name: attachment.name,
            starting: false,
        })
    }

    /// A failing disk must not stop the network; the next change writes everything.
    fn write(&self) {
        if let Err(e) =
            json_file::write(&self.path, &Content { format: FORMAT, containers: &self.containers })
        {
            tracing::error!(
                "after a restart of the peer, containers that Docker starts again may not be attached again: {e}"
            );
        }
    }
}

/// Whether the peer whose state is in `dir` attaches a container when Docker starts it again.
pub fn was_attached(dir: &Path, container: &str) -> bool {
    AttachmentStore::open(dir).is_ok_and(|store| store.contains(container))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn request(addresses: &[&str], name: Option<&str>) -> AttachRequest {
        AttachRequest {
            container: "c1".to_owned(),
            naming: "77".to_owned(),
            bridge: "weave".to_owned(),
            addresses: addresses.iter().map(|text| (*text).to_owned()).collect(),
            former: false,
            record: true,
            multicast_route: true,
            hairpin: true,
            hosts_file: None,
            name: name.map(str::to_owned),
            starting: false,
        }
    }

    #[test]
    fn a_container_is_attached_again_with_all_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = AttachmentStore::open(dir.path()).unwrap();
        store.attached(
            &request(&["net:default", "10.2.1.1/24"], Some("c1.weave.local")),
            &cidrs(&["10.32.0.1/12", "10.2.1.1/24"]),
        );
        let more =
            AttachRequest { former: true, ..request(&["10.2.3.1/24", "10.2.1.1/24", "net:default"], None) };
        assert_eq!(store.and_former(&more), ["10.2.3.1/24", "10.2.1.1/24", "net:default"], "each once");
        assert_eq!(
            store.and_former(&request(&["10.32.0.1/12", "10.2.3.1/24"], None)),
            ["10.2.1.1/24", "10.32.0.1/12", "10.2.3.1/24"]
        );
        let unknown = AttachRequest { container: "c2".to_owned(), ..request(&["10.2.3.1/24"], None) };
        assert_eq!(store.and_former(&unknown), ["10.2.3.1/24"]);
        let later = AttachRequest { multicast_route: false, ..request(&["10.2.2.1/24"], None) };
        store.attached(&later, &cidrs(&["10.2.2.1/24"]));
        store.detached("c1", &cidrs(&["10.2.1.1/24"]));
        store.detached("c2", &cidrs(&["10.2.1.1/24"]));
        let mut store = AttachmentStore::open(dir.path()).unwrap();
        let again = store.request("c1", "78".to_owned()).unwrap();
        let expected = AttachRequest {
            naming: "78".to_owned(),
            multicast_route: false,
            ..request(&["net:default", "10.2.2.1/24"], Some("c1.weave.local"))
        };
        assert_eq!(again, expected);
        // What is attached again has the same addresses, and its record stays as it is.
        std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        store.attached(&again, &cidrs(&["10.32.0.1/12", "10.2.2.1/24"]));
        assert!(!dir.path().join(FILE_NAME).exists(), "not written without a change");
        store.detached("c1", &cidrs(&["10.32.0.1/12", "10.2.2.1/24"]));
        assert_eq!(AttachmentStore::open(dir.path()).unwrap().containers(), [""; 0]);
    }

    #[test]
    fn removed_containers_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = AttachmentStore::open(dir.path()).unwrap();
        store.attached(&request(&["10.2.1.1/24"], None), &cidrs(&["10.2.1.1/24"]));
        assert_eq!(AttachmentStore::open(dir.path()).unwrap().containers(), ["c1"]);
        store.removed("c1");
        assert!(AttachmentStore::open(dir.path()).unwrap().request("c1", String::new()).is_none());
    }
}
