/// Why a request is refused. The texts are those of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is not JSON.
    #[error("{0}")]
    Json(String),
    /// A field has another type than Docker's API says.
    #[error("Wrong type for {field} field, expected {expected}, but got {found}")]
    Type {
        /// Name of the field.
        field: String,
        /// The type that the API says.
        expected: &'static str,
        /// What was found, as Go names it.
        found: &'static str,
    },
    /// Neither the request nor the image names a program.
    #[error("No command specified")]
    NoCommand,
    /// Docker does not have the image.
    #[error("No such image: {0}")]
    NoSuchImage(String),
    /// Docker does not have the container.
    #[error("No such container: {0}")]
    NoSuchContainer(String),
}

impl Error {
    /// The status of the response. What is wrong with the request itself is 400, as Docker answers; 2.8.1 answered 500.
    pub fn status(&self) -> u16 {
        match self {
            Error::Json(_) | Error::Type { .. } => 400,
            Error::NoSuchImage(_) | Error::NoSuchContainer(_) => 404,
            Error::NoCommand => 500,
        }
    }
}
