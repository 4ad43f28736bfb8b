//! Any bytes as Docker's answer, any text as a container. Shared by the fuzz targets and the tests that replay their
//! corpora.

use weave_runtime::{Docker, Reference};

/// What is made of an answer to "describe this container": a description, nobody, or a reason that can be shown.
pub(crate) fn docker_answer(data: &[u8]) {
    match Docker::read_inspect("web", data) {
        Ok(Some(info)) => drop(info.fqdn()),
        Ok(None) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
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
