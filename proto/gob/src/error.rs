use thiserror::Error;

use crate::kind::{Kind, TypeId};

/// The sender's stream is malformed or exceeds a limit. No more values can be read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A value, a length or a definition reaches beyond the end of its message, or the stream ends inside a message or
    /// between a definition and its value.
    #[error("unexpected EOF")]
    UnexpectedEof,
    /// An integer with more than eight bytes.
    #[error("gob: encoded unsigned integer out of range")]
    BadInteger,
    /// A message is longer than [`Limits::max_message`](crate::Limits::max_message).
    #[error("gob: message of {length} bytes exceeds maximum size: {limit}")]
    MessageTooLong {
        /// Announced length in bytes.
        length: u64,
        /// Allowed length in bytes.
        limit: usize,
    },
    /// A stream defines an id twice.
    #[error("gob: duplicate type received")]
    DuplicateType(TypeId),
    /// A value has, or a definition refers to, a type that is not defined.
    #[error("gob: unknown type id or corrupted data")]
    UnknownType(TypeId),
    /// A malformed type definition.
    #[error("gob: bad type definition: {0}")]
    BadDefinition(&'static str),
    /// A field number beyond those in the sender's own definition.
    #[error("gob: bad data: field numbers out of bounds")]
    NoSuchField,
    /// A top-level value that is not a struct lacks the zero byte in front.
    #[error("gob: decode: corrupted data: non-zero delta for singleton")]
    BadSingleton,
    /// An array whose number of elements differs from its type.
    #[error("gob: length mismatch in array")]
    ArrayLength,
    /// Values nested deeper than [`Limits::max_depth`](crate::Limits::max_depth).
    #[error("gob: values nested too deeply")]
    TooDeep,
    /// More definitions than [`Limits::max_types`](crate::Limits::max_types), or larger ones than
    /// [`Limits::max_definition_bytes`](crate::Limits::max_definition_bytes).
    #[error("gob: too many type definitions")]
    TooManyTypes,
    /// The decoded value would take more than [`Limits::max_memory`](crate::Limits::max_memory).
    #[error("gob: decoded value too large")]
    TooMuchMemory,
}

/// A well-formed value is not what the receiver expects (docs/spec/mesh.md 3.5).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FieldError {
    /// The value or the field has another kind in the sender's definition.
    #[error("gob: wrong type{}", kinds(field, *wanted, *found))]
    WrongKind {
        /// Field name; empty for a value that is not a field.
        field: String,
        /// Kind that the receiver expects.
        wanted: Kind,
        /// Kind that the sender declared.
        found: Kind,
    },
    /// An integer that does not fit the receiver's type.
    #[error("value {}out of range", for_field(field))]
    OutOfRange {
        /// Field name; empty for a value that is not a field.
        field: String,
    },
    /// A struct that has fields, but none that the receiver knows.
    #[error("gob: type mismatch: no fields matched")]
    NoFieldsMatched,
}

impl FieldError {
    /// Adds the name of the field to an error about its value.
    pub(crate) fn in_field(self, name: &str) -> FieldError {
        match self {
            FieldError::WrongKind { wanted, found, .. } => {
                FieldError::WrongKind { field: name.to_owned(), wanted, found }
            }
            FieldError::OutOfRange { .. } => FieldError::OutOfRange { field: name.to_owned() },
            other => other,
        }
    }
}

fn kinds(field: &str, wanted: Kind, found: Kind) -> String {
    if field.is_empty() {
        format!(": wanted {wanted}, received {found}")
    } else {
        format!(" ({wanted}) for received field {field} ({found})")
    }
}

fn for_field(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!("for {field:?} ") }
}
