//! Images of an engine.

use std::io;

use serde::Deserialize;
use weave_http::encode;

use super::{Docker, null_is_default};
use crate::Error;

pub(super) fn keys<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let map = Option::<std::collections::BTreeMap<String, serde::de::IgnoredAny>>::deserialize(from)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

/// An engine's description of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EngineInfo {
    /// Log driver of new containers: `json-file`, `journald`, ...
    pub logging_driver: String,
    /// Version of the engine.
    pub server_version: String,
    /// Names of its OCI runtimes.
    #[serde(deserialize_with = "keys")]
    pub runtimes: Vec<String>,
}

/// What an image runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageInfo {
    /// The program and its first arguments; empty if the image has no entrypoint.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the command without an entrypoint.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectImage {
    #[serde(deserialize_with = "null_is_default")]
    config: ImageInfo,
}

impl Docker {
    /// The engine's description of itself.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn info(&self) -> Result<EngineInfo, Error> {
        self.request("GET", "/info", None, "describe itself")?.read()
    }

    /// Whether there is an image of a name.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn has_image(&self, name: &str) -> Result<bool, Error> {
        let path = format!("/images/{}/json", encode(name));
        let found: Option<serde::de::IgnoredAny> = self.find(&path, &format!("look for image {name}"))?;
        Ok(found.is_some())
    }

    /// What an image runs; `None` if there is no such image.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn inspect_image(&self, name: &str) -> Result<Option<ImageInfo>, Error> {
        let path = format!("/images/{}/json", encode(name));
        let found: Option<InspectImage> = self.find(&path, &format!("describe image {name}"))?;
        Ok(found.map(|image| image.config))
    }

    /// Creates the image `name:tag`, which consists of `program` (an executable that needs no libraries) at `/<file>` and
    /// runs it. No registry is asked.
    ///
    /// # Errors
    /// The engine does not answer, or refuses the image.
    pub fn import_program(
        &self,
        name: &str,
        tag: &str,
        file: &str,
        program: &[u8],
        label: &str,
    ) -> Result<(), Error> {
        let purpose = format!("create image {name}:{tag}");
        let tar = archive(file, program).map_err(|e| Error::Docker(format!("cannot {purpose}: {e}")))?;
        let changes = [format!("ENTRYPOINT [\"/{file}\"]"), format!("LABEL {label}")];
        let changes: String = changes.iter().map(|c| format!("&changes={}", encode(c))).collect();
        let path = format!("/images/create?fromSrc=-&repo={}&tag={}{changes}", encode(name), encode(tag));
        let reply = self.request("POST", &path, Some(("application/x-tar", &tar)), &purpose)?;
        // The answer is a stream of progress messages; an error may be one of them although the status says success.
        #[derive(Deserialize)]
        struct Progress {
            error: String,
        }
        let mut lines = reply.response.body.split(|b| *b == b'\n');
        match lines.find_map(|line| serde_json::from_slice::<Progress>(line).ok()) {
            Some(progress) => Err(reply.failure(&progress.error)),
            None => reply.success().map(drop),
        }
    }

    /// Names (or ids, where there is no name) of all images with a label.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn images_labelled(&self, label: &str) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Row {
            id: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
        }
        let path = format!("/images/json?filters={}", label_filter(label));
        let rows: Vec<Row> = self.request("GET", &path, None, "list images")?.read()?;
        let names = |row: Row| match row.repo_tags {
            Some(tags) if !tags.is_empty() => tags,
            _ => vec![row.id],
        };
        Ok(rows.into_iter().flat_map(names).collect())
    }

    /// Removes an image. It is no error if it is gone.
    ///
    /// # Errors
    /// The engine does not answer, or the image is in use.
    pub fn remove_image(&self, name: &str) -> Result<(), Error> {
        self.change("DELETE", &format!("/images/{}", encode(name)), None, &format!("remove image {name}"))
    }
}

pub(super) fn label_filter(label: &str) -> String {
    encode(&serde_json::json!({ "label": [label] }).to_string())
}

/// A tar archive with one executable.
fn archive(file: &str, program: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    let mut tar = tar::Builder::new(Vec::with_capacity(program.len() + 4096));
    tar.append_data(&mut header, file, program)?;
    tar.into_inner()
}
