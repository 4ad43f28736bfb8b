//! Answers to Docker.

use serde_json::{Value, json};

/// Why a request is refused. The texts are those of 2.8.1 where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is not the JSON of such a request.
    #[error("Unable to decode JSON payload: {0}")]
    Json(String),
    /// There is no such call on this socket.
    #[error("404 page not found")]
    NoSuchCall,
    /// The call cannot be carried out.
    #[error("{0}")]
    Refused(String),
}

/// What Docker gets, as `text/plain; charset=utf-8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status of the HTTP response.
    pub status: u16,
    /// Body of the HTTP response.
    pub body: String,
}

impl Answer {
    pub(crate) fn of(value: &Value) -> Answer {
        Answer { status: 200, body: format!("{value}\n") }
    }

    /// Success without data.
    pub fn done() -> Answer {
        Answer::of(&json!({}))
    }
}

/// Docker's network driver reads `Err`, and its IPAM driver `Error`.
impl From<Error> for Answer {
    fn from(error: Error) -> Answer {
        let text = error.to_string();
        match error {
            Error::Json(_) => Answer { status: 400, body: text + "\n" },
            Error::NoSuchCall => Answer { status: 404, body: text + "\n" },
            Error::Refused(_) => {
                Answer { status: 500, body: format!("{}\n", json!({ "Err": text, "Error": text })) }
            }
        }
    }
}
