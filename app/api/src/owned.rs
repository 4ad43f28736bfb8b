//! `GET /ip`: which container has which addresses.

use serde::{Deserialize, Serialize};

/// All containers with addresses; `null` if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// By container id.
    pub owned: Option<Vec<OwnedBy>>,
}

/// One container and its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedBy {
    /// Container id.
    #[serde(rename = "containerid")]
    pub container: String,
    /// Addresses with prefix lengths.
    pub addrs: Vec<String>,
}

impl Owned {
    /// The answer that lists `all`.
    pub fn new(all: Vec<OwnedBy>) -> Owned {
        Owned { owned: (!all.is_empty()).then_some(all) }
    }

    /// Parses an answer.
    ///
    /// # Errors
    /// If `text` is not the JSON of an answer.
    pub fn from_json(text: &str) -> Result<Owned, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The answer's body.
    pub fn to_json(&self) -> String {
        crate::report::to_go_json(self, false) + "\n"
    }

    /// The addresses of one container, as in the JSON.
    pub fn of(&self, container: &str) -> impl Iterator<Item = &str> {
        let all = self.owned.iter().flatten().filter(move |o| o.container == container);
        all.flat_map(|o| o.addrs.iter().map(String::as_str))
    }
}
