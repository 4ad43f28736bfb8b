//! Any bytes as Docker's answer, any text as a container. Shared by the fuzz targets and the tests that replay their
//! corpora.

use weave_runtime::{ContainerInfo, Docker, Reference};

/// Any bytes as the description of a container.
pub(crate) fn docker_answer(data: &[u8]) {
    if let Ok(info) = ContainerInfo::from_json(data) {
        drop(info.fqdn());
    }
}

/// A container as typed, and `DOCKER_HOST`.
pub(crate) fn reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().ok().as_ref(), Some(&reference));
    }
    let _ = Docker::at(Some(&text));
}
