//! Go's gob stream format, as far as Weave Net uses it. Everything else that a Go program could send is decoded or
//! skipped.
//!
//! A stream is a sequence of messages, each `uint length ++ body`; a body is a type definition (`int -id ++ wireType`)
//! or a value (`int id ++ value`). Definitions are valid for the rest of the stream. The reader follows the *sender's*
//! definitions: it accepts any ids, any order and unknown fields, and returns a tree of [`Value`]s from which the caller
//! takes struct fields by name (docs/spec/mesh.md 3.5).
//!
//! * [`Decoder`] reads a complete stream from memory, [`StreamDecoder`] one that arrives in pieces.
//! * [`Encoder`] writes a stream. The same calls give the same bytes.
//! * [`Reader`] and the `put_` functions read and write large messages of known shape without [`Value`]s.
//! * [`Limits`] bound the memory that hostile input can use.
//!
//! Not supported: writing interfaces that have content.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod cursor;
mod decode;
mod encode;
mod error;
mod kind;
mod read;
mod types;
mod value;

pub use decode::{Decoder, StreamDecoder};
pub use encode::{Encoder, Field, Type, put_bytes, put_int, put_uint};
pub use error::{DecodeError, FieldError};
pub use kind::{Kind, TypeId};
pub use read::Reader;
pub use types::{Limits, Shape, ShapeField, Types};
pub use value::{Struct, Value};
