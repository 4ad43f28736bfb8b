//! Go's gob stream, as far as Weave Net writes it and a little more: what any Go program could send in its place is
//! decoded or skipped, never trusted.
//!
//! A stream is a sequence of messages, each `uint length ++ body`; a body is a type definition (`int -id ++ wireType`)
//! or a value (`int id ++ value`). Definitions hold for the rest of the stream. The reader is driven by the *sender's*
//! definitions: it accepts any ids, any order, unknown fields, and gives a tree of [`Value`]s from which the caller
//! picks struct fields by name (docs/spec/mesh.md 3.5).
//!
//! * [`Decoder`] reads a complete stream held in memory, [`StreamDecoder`] one that arrives in pieces.
//! * [`Encoder`] writes one; its output depends on nothing but the calls made.
//! * [`Reader`] and the `put_` functions are the direct path for large messages of known shape.
//! * [`Limits`] bound what hostile input can cost: message size, nesting, definitions, and decoded memory.
//!
//! Not here: reflection, interfaces with content on the writing side, and Go's text of every error.
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod error;
mod read;
mod types;
mod value;

pub use decode::{Decoder, StreamDecoder};
pub use encode::{Encoder, Field, Type, put_bytes, put_int, put_uint};
pub use error::{DecodeError, FieldError};
pub use read::Reader;
pub use types::{Kind, Limits, Shape, ShapeField, TypeId, Types};
pub use value::{Struct, Value};
