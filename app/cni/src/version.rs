use serde::Serialize;

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say all")]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

/// The versions that are spoken, oldest first.
pub const SUPPORTED: [Version; 7] = [
    Version::V0_1_0,
    Version::V0_2_0,
    Version::V0_3_0,
    Version::V0_3_1,
    Version::V0_4_0,
    Version::V1_0_0,
    Version::V1_1_0,
];

impl Version {
    /// The version that a configuration names; one that names none is of the first version.
    pub fn parse(text: &str) -> Option<Version> {
        if text.is_empty() {
            return Some(Version::V0_1_0);
        }
        SUPPORTED.into_iter().find(|version| version.as_str() == text)
    }

    /// As configurations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// The version as a field of results and errors. 2.8.1 left it out in those versions that it spoke.
    pub(crate) fn field(self) -> Option<&'static str> {
        (self > Version::V0_3_0).then(|| self.as_str())
    }
}

/// Answer to `VERSION`, with its final newline.
pub fn version_text() -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        cni_version: &'static str,
        supported_versions: [&'static str; SUPPORTED.len()],
    }
    let versions = Versions {
        cni_version: Version::V1_1_0.as_str(),
        supported_versions: SUPPORTED.map(Version::as_str),
    };
    serde_json::to_string(&versions).unwrap_or_default() + "\n"
}
