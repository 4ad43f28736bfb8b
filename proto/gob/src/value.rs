use std::fmt;
use std::sync::Arc;

use crate::error::FieldError;
use crate::kind::{Kind, TypeId};
use crate::types::{Shape, ShapeField};

/// A value of any type, as its sender described it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A bool.
    Bool(bool),
    /// A signed integer of any size.
    Int(i64),
    /// An unsigned integer of any size.
    Uint(u64),
    /// A floating-point number.
    Float(f64),
    /// `[]byte`.
    Bytes(Vec<u8>),
    /// A string. Invalid UTF-8 has been replaced by U+FFFD.
    String(String),
    /// A complex number.
    Complex(f64, f64),
    /// A slice or an array.
    List(Vec<Value>),
    /// A map, in the order of the stream.
    Map(Vec<(Value, Value)>),
    /// A struct.
    Struct(Struct),
    /// The name of an interface's concrete type, empty for nil. The content has been skipped.
    Interface(String),
    /// The bytes that a type with its own marshaller wrote.
    Opaque(Vec<u8>),
}

macro_rules! accessor {
    ($name:ident, $variant:ident, $type:ty, $doc:literal, |$v:ident| $get:expr) => {
        #[doc = $doc]
        ///
        /// # Errors
        /// The value is of another kind.
        pub fn $name(&self) -> Result<$type, FieldError> {
            match self {
                Value::$variant($v) => Ok($get),
                other => Err(other.wrong_kind(Kind::$variant)),
            }
        }
    };
}

impl Value {
    /// The kind of this value.
    pub fn kind(&self) -> Kind {
        match self {
            Value::Bool(_) => Kind::Bool,
            Value::Int(_) => Kind::Int,
            Value::Uint(_) => Kind::Uint,
            Value::Float(_) => Kind::Float,
            Value::Bytes(_) => Kind::Bytes,
            Value::String(_) => Kind::String,
            Value::Complex(..) => Kind::Complex,
            Value::List(_) => Kind::List,
            Value::Map(_) => Kind::Map,
            Value::Struct(_) => Kind::Struct,
            Value::Interface(_) => Kind::Interface,
            Value::Opaque(_) => Kind::Opaque,
        }
    }

    fn wrong_kind(&self, wanted: Kind) -> FieldError {
        FieldError::WrongKind { field: String::new(), wanted, found: self.kind() }
    }

    accessor!(as_bool, Bool, bool, "The bool.", |v| *v);
    accessor!(as_float, Float, f64, "The floating-point number.", |v| *v);
    accessor!(as_bytes, Bytes, &[u8], "The bytes.", |v| v);
    accessor!(as_str, String, &str, "The string.", |v| v);
    accessor!(as_list, List, &[Value], "The elements of a slice or array.", |v| v);
    accessor!(as_map, Map, &[(Value, Value)], "The pairs of a map, in the order of the stream.", |v| v);
    accessor!(as_struct, Struct, &Struct, "The struct.", |v| v);

    /// The unsigned integer.
    ///
    /// # Errors
    /// The value is of another kind or does not fit `T`.
    pub fn as_uint<T: TryFrom<u64>>(&self) -> Result<T, FieldError> {
        match self {
            Value::Uint(v) => T::try_from(*v).map_err(|_| FieldError::OutOfRange { field: String::new() }),
            other => Err(other.wrong_kind(Kind::Uint)),
        }
    }

    /// The signed integer.
    ///
    /// # Errors
    /// The value is of another kind or does not fit `T`.
    pub fn as_int<T: TryFrom<i64>>(&self) -> Result<T, FieldError> {
        match self {
            Value::Int(v) => T::try_from(*v).map_err(|_| FieldError::OutOfRange { field: String::new() }),
            other => Err(other.wrong_kind(Kind::Int)),
        }
    }
}

/// The fields present in a struct. Fields that the sender declared but did not send are zero; as in Go, the accessors
/// check the declared kind of those too.
#[derive(Clone)]
pub struct Struct {
    shape: Arc<Shape>,
    /// Field numbers and values, ascending by number.
    fields: Vec<(u32, Value)>,
}

macro_rules! field_accessor {
    ($name:ident, $kind:ident, $type:ty, $zero:expr, $as:ident, $doc:literal) => {
        #[doc = $doc]
        ///
        /// # Errors
        /// The sender declared the field as another kind.
        pub fn $name(&self, name: &str) -> Result<$type, FieldError> {
            match self.checked(name, Kind::$kind)? {
                None => Ok($zero),
                Some(value) => value.$as().map_err(|error| error.in_field(name)),
            }
        }
    };
}

impl Struct {
    /// Makes a struct to be encoded from its fields in any order. Zero values are not sent, except structs, arrays and
    /// maps (docs/spec/mesh.md 3.3).
    pub fn new<N: Into<String>>(fields: impl IntoIterator<Item = (N, Value)>) -> Struct {
        let mut shape = Shape::default();
        let mut values = Vec::new();
        for (number, (name, value)) in fields.into_iter().enumerate() {
            // There is no stream yet, so there is no type id; only the kind is used.
            shape.fields.push(ShapeField { name: name.into(), id: TypeId(0), kind: value.kind() });
            values.push((number as u32, value));
        }
        Struct { shape: Arc::new(shape), fields: values }
    }

    pub(crate) fn from_parts(shape: Arc<Shape>, fields: Vec<(u32, Value)>) -> Struct {
        Struct { shape, fields }
    }

    /// All fields that the sender declared.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Names and values of the fields present, in the sender's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.fields.iter().map(|(number, value)| (self.shape.fields[*number as usize].name.as_str(), value))
    }

    /// The field with this name, if it is present.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.by_number(self.shape.position(name)?)
    }

    fn by_number(&self, number: usize) -> Option<&Value> {
        let at = self.fields.binary_search_by_key(&number, |(number, _)| *number as usize).ok()?;
        Some(&self.fields[at].1)
    }

    /// Refuses a struct that has fields, but none of `names`. Go does so for top-level values (docs/spec/mesh.md 3.5).
    ///
    /// # Errors
    /// [`FieldError::NoFieldsMatched`].
    pub fn require_any(&self, names: &[&str]) -> Result<(), FieldError> {
        let fields = &self.shape.fields;
        if fields.is_empty() || fields.iter().any(|field| names.contains(&field.name.as_str())) {
            Ok(())
        } else {
            Err(FieldError::NoFieldsMatched)
        }
    }

    fn checked(&self, name: &str, wanted: Kind) -> Result<Option<&Value>, FieldError> {
        let Some(number) = self.shape.position(name) else { return Ok(None) };
        let found = self.shape.fields[number].kind;
        if found != wanted {
            return Err(FieldError::WrongKind { field: name.to_owned(), wanted, found });
        }
        Ok(self.by_number(number))
    }

    field_accessor!(bool, Bool, bool, false, as_bool, "A bool field; false if absent.");
    field_accessor!(float, Float, f64, 0.0, as_float, "A floating-point field; 0 if absent.");
    field_accessor!(bytes, Bytes, &[u8], &[], as_bytes, "A bytes field; empty if absent.");
    field_accessor!(string, String, &str, "", as_str, "A string field; empty if absent.");
    field_accessor!(list, List, &[Value], &[], as_list, "A slice or array field; empty if absent.");

    /// A map field; `None` if absent, since some receivers distinguish that from an empty map.
    ///
    /// # Errors
    /// The sender declared the field as another kind.
    pub fn map(&self, name: &str) -> Result<Option<&[(Value, Value)]>, FieldError> {
        self.checked(name, Kind::Map)?
            .map(|value| value.as_map().map_err(|error| error.in_field(name)))
            .transpose()
    }

    /// A struct field; `None` if absent, as for a nil pointer.
    ///
    /// # Errors
    /// The sender declared the field as another kind.
    pub fn nested(&self, name: &str) -> Result<Option<&Struct>, FieldError> {
        self.checked(name, Kind::Struct)?
            .map(|value| value.as_struct().map_err(|error| error.in_field(name)))
            .transpose()
    }

    /// An unsigned field; 0 if absent.
    ///
    /// # Errors
    /// The sender declared the field as another kind, or it does not fit `T`.
    pub fn uint<T: TryFrom<u64>>(&self, name: &str) -> Result<T, FieldError> {
        let zero = Value::Uint(0);
        self.checked(name, Kind::Uint)?.unwrap_or(&zero).as_uint().map_err(|error| error.in_field(name))
    }

    /// A signed field; 0 if absent.
    ///
    /// # Errors
    /// The sender declared the field as another kind, or it does not fit `T`.
    pub fn int<T: TryFrom<i64>>(&self, name: &str) -> Result<T, FieldError> {
        let zero = Value::Int(0);
        self.checked(name, Kind::Int)?.unwrap_or(&zero).as_int().map_err(|error| error.in_field(name))
    }
}

impl PartialEq for Struct {
    /// Compares names and values of the fields present; fields that were declared but not sent do not count.
    fn eq(&self, other: &Struct) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Struct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
