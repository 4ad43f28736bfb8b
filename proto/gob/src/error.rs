use std::fmt;

use crate::types::{Kind, TypeId};

/// The stream is not acceptable. The sender is to blame in every case; the stream is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// A value, a length or a definition reaches beyond the end of its message, or the stream ends inside a message or
    /// between a definition and its value.
    UnexpectedEof,
    /// An integer with more than eight bytes.
    BadInteger,
    /// A message is longer than [`Limits::max_message`](crate::Limits::max_message).
    MessageTooLong {
        /// Length that the sender announced, in bytes.
        length: u64,
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// One id defined twice.
    DuplicateType(TypeId),
    /// A value of, or a definition that refers to, a type never defined.
    UnknownType(TypeId),
    /// A type definition that makes no sense.
    BadDefinition(&'static str),
    /// A field number that the sender's own definition does not have.
    NoSuchField,
    /// A top-level value that is not a struct lacks the zero byte in front.
    BadSingleton,
    /// An array with another number of elements than its type says.
    ArrayLength,
    /// Values nested deeper than [`Limits::max_depth`](crate::Limits::max_depth).
    TooDeep,
    /// More definitions than [`Limits::max_types`](crate::Limits::max_types), or larger ones than
    /// [`Limits::max_definition_bytes`](crate::Limits::max_definition_bytes).
    TooManyTypes,
    /// The decoded value would take more than [`Limits::max_memory`](crate::Limits::max_memory).
    TooMuchMemory,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::UnexpectedEof => f.write_str("unexpected EOF"),
            DecodeError::BadInteger => f.write_str("gob: encoded unsigned integer out of range"),
            DecodeError::MessageTooLong { length, limit } => {
                write!(f, "gob: message of {length} bytes exceeds maximum size: {limit}")
            }
            DecodeError::DuplicateType(_) => f.write_str("gob: duplicate type received"),
            DecodeError::UnknownType(_) => f.write_str("gob: unknown type id or corrupted data"),
            DecodeError::BadDefinition(why) => write!(f, "gob: bad type definition: {why}"),
            DecodeError::NoSuchField => f.write_str("gob: bad data: field numbers out of bounds"),
            DecodeError::BadSingleton => {
                f.write_str("gob: decode: corrupted data: non-zero delta for singleton")
            }
            DecodeError::ArrayLength => f.write_str("gob: length mismatch in array"),
            DecodeError::TooDeep => f.write_str("gob: values nested too deeply"),
            DecodeError::TooManyTypes => f.write_str("gob: too many type definitions"),
            DecodeError::TooMuchMemory => f.write_str("gob: decoded value too large"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// A well-formed value is not what the receiver wants (docs/spec/mesh.md 3.5). The sender is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldError {
    /// The value, or the field of that name, has another kind in the sender's definition.
    WrongKind {
        /// Field name; empty for a value that is not a field.
        field: String,
        /// What the receiver wants.
        wanted: Kind,
        /// What the sender declared.
        found: Kind,
    },
    /// An integer that does not fit the receiver's type.
    OutOfRange {
        /// Field name; empty for a value that is not a field.
        field: String,
    },
    /// A struct that has fields, but none that the receiver knows.
    NoFieldsMatched,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldError::WrongKind { field, wanted, found } if field.is_empty() => {
                write!(f, "gob: wrong type: wanted {wanted}, received {found}")
            }
            FieldError::WrongKind { field, wanted, found } => {
                write!(f, "gob: wrong type ({wanted}) for received field {field} ({found})")
            }
            FieldError::OutOfRange { field } if field.is_empty() => f.write_str("value out of range"),
            FieldError::OutOfRange { field } => write!(f, "value for {field:?} out of range"),
            FieldError::NoFieldsMatched => f.write_str("gob: type mismatch: no fields matched"),
        }
    }
}

impl std::error::Error for FieldError {}
