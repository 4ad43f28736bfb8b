use std::borrow::Cow;

use crate::kind::{Kind, TypeId};
use crate::value::{Struct, Value};

/// Appends an unsigned integer (docs/spec/mesh.md 3.1).
pub fn put_uint(out: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        out.push(value as u8);
        return;
    }
    let bytes = value.to_be_bytes();
    let skipped = value.leading_zeros() as usize / 8;
    // The number of bytes, negated.
    out.push((skipped as u8).wrapping_sub(8));
    out.extend_from_slice(&bytes[skipped..]);
}

/// Appends a signed integer (docs/spec/mesh.md 3.1).
pub fn put_int(out: &mut Vec<u8>, value: i64) {
    put_uint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends bytes or a string with their length (docs/spec/mesh.md 3.1).
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A type to be written. Receivers ignore the names of types, which may be empty, and use those of fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// A bool.
    Bool,
    /// A signed integer of any size.
    Int,
    /// An unsigned integer of any size.
    Uint,
    /// A floating-point number.
    Float,
    /// `[]byte`.
    Bytes,
    /// A string.
    String,
    /// A complex number.
    Complex,
    /// A slice.
    Slice {
        /// Name of the type.
        name: Cow<'static, str>,
        /// Type of the elements.
        elem: Box<Type>,
    },
    /// An array.
    Array {
        /// Name of the type.
        name: Cow<'static, str>,
        /// Type of the elements.
        elem: Box<Type>,
        /// Number of elements.
        len: usize,
    },
    /// A map.
    Map {
        /// Name of the type.
        name: Cow<'static, str>,
        /// Type of the keys.
        key: Box<Type>,
        /// Type of the values.
        elem: Box<Type>,
    },
    /// A struct.
    Struct {
        /// Name of the type.
        name: Cow<'static, str>,
        /// Fields in the order of their numbers.
        fields: Vec<Field>,
    },
}

/// A field of a struct type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name of the field, case-sensitive.
    pub name: Cow<'static, str>,
    /// Type of the field.
    pub ty: Type,
}

impl Type {
    /// A slice type without a name.
    pub fn slice(elem: Type) -> Type {
        Type::Slice { name: "".into(), elem: Box::new(elem) }
    }

    /// A map type without a name.
    pub fn map(key: Type, elem: Type) -> Type {
        Type::Map { name: "".into(), key: Box::new(key), elem: Box::new(elem) }
    }

    /// A struct type.
    pub fn structure(name: &'static str, fields: impl IntoIterator<Item = (&'static str, Type)>) -> Type {
        let fields = fields.into_iter().map(|(name, ty)| Field { name: name.into(), ty }).collect();
        Type::Struct { name: name.into(), fields }
    }

    /// The kind of values of this type.
    pub fn kind(&self) -> Kind {
        match self {
            Type::Bool => Kind::Bool,
            Type::Int => Kind::Int,
            Type::Uint => Kind::Uint,
            Type::Float => Kind::Float,
            Type::Bytes => Kind::Bytes,
            Type::String => Kind::String,
            Type::Complex => Kind::Complex,
            Type::Slice { .. } | Type::Array { .. } => Kind::List,
            Type::Map { .. } => Kind::Map,
            Type::Struct { .. } => Kind::Struct,
        }
    }

    fn builtin(&self) -> Option<TypeId> {
        Some(match self {
            Type::Bool => TypeId::BOOL,
            Type::Int => TypeId::INT,
            Type::Uint => TypeId::UINT,
            Type::Float => TypeId::FLOAT,
            Type::Bytes => TypeId::BYTES,
            Type::String => TypeId::STRING,
            Type::Complex => TypeId::COMPLEX,
            _ => return None,
        })
    }

    /// The zero value, which is sent in the place of a value that does not fit.
    fn zero(&self) -> Value {
        match self {
            Type::Bool => Value::Bool(false),
            Type::Int => Value::Int(0),
            Type::Uint => Value::Uint(0),
            Type::Float => Value::Float(0.0),
            Type::Bytes => Value::Bytes(Vec::new()),
            Type::String => Value::String(String::new()),
            Type::Complex => Value::Complex(0.0, 0.0),
            Type::Slice { .. } => Value::List(Vec::new()),
            Type::Array { elem, len, .. } => Value::List(vec![elem.zero(); *len]),
            Type::Map { .. } => Value::Map(Vec::new()),
            Type::Struct { .. } => Value::Struct(Struct::new::<String>([])),
        }
    }
}

/// Writes a stream. Type ids start at 65; ids are assigned and definitions sent in the order of a Go process that has
/// just started, so that the bytes are the same.
///
/// A value that does not fit its type is a bug of the caller: debug builds panic, release builds send a zero value.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    out: Vec<u8>,
    /// Composite types of this stream; the index is the id minus 65.
    types: Vec<Type>,
    /// For each type, whether its definition has been sent.
    sent: Vec<bool>,
}

/// Id of the first type that a Go process defines.
const FIRST_ID: i64 = 65;

impl Encoder {
    /// An empty stream.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// Writes a top-level unsigned integer.
    pub fn uint(&mut self, value: u64) {
        self.value(&Type::Uint, &Value::Uint(value));
    }

    /// Writes a top-level string.
    pub fn string(&mut self, value: &str) {
        self.singleton(TypeId::STRING, value.as_bytes());
    }

    /// Writes a top-level `[]byte`.
    pub fn bytes(&mut self, value: &[u8]) {
        self.singleton(TypeId::BYTES, value);
    }

    fn singleton(&mut self, id: TypeId, bytes: &[u8]) {
        let mut head = Vec::with_capacity(16);
        put_int(&mut head, id.0);
        head.push(0);
        put_uint(&mut head, bytes.len() as u64);
        put_uint(&mut self.out, (head.len() + bytes.len()) as u64);
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(bytes);
    }

    /// Writes a top-level value after the definitions that the stream does not have yet.
    pub fn value(&mut self, ty: &Type, value: &Value) {
        let id = self.assign_id(ty);
        self.send_definition(ty);
        let mut body = Vec::new();
        put_int(&mut body, id);
        if ty.kind() != Kind::Struct {
            body.push(0);
        }
        put_value(&mut body, ty, value);
        put_bytes(&mut self.out, &body);
    }

    /// Returns the stream.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    /// Returns the bytes written since the last call; the stream continues.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn index_of(&self, ty: &Type) -> Option<usize> {
        self.types.iter().position(|known| known == ty)
    }

    /// Id of a type, assigned at the first call. As in Go, a struct has a lower id than the types of its fields, but
    /// lists and maps have higher ids than their elements.
    fn assign_id(&mut self, ty: &Type) -> i64 {
        if let Some(id) = ty.builtin() {
            return id.0;
        }
        if let Some(index) = self.index_of(ty) {
            return FIRST_ID + index as i64;
        }
        match ty {
            Type::Slice { elem, .. } | Type::Array { elem, .. } => {
                self.assign_id(elem);
            }
            Type::Map { key, elem, .. } => {
                self.assign_id(key);
                self.assign_id(elem);
            }
            _ => {}
        }
        let index = self.types.len();
        self.types.push(ty.clone());
        self.sent.push(false);
        if let Type::Struct { fields, .. } = ty {
            for field in fields {
                self.assign_id(&field.ty);
            }
        }
        FIRST_ID + index as i64
    }

    /// Sends the definition of `ty`, then those of its inner types, each once.
    fn send_definition(&mut self, ty: &Type) {
        let Some(index) = self.index_of(ty) else { return };
        if std::mem::replace(&mut self.sent[index], true) {
            return;
        }
        let mut body = Vec::new();
        let id = FIRST_ID + index as i64;
        put_int(&mut body, -id);
        match ty {
            Type::Array { name, elem, len } => {
                body.push(1);
                put_common_type(&mut body, name, id);
                put_int_field(&mut body, self.assign_id(elem));
                put_int_field(&mut body, *len as i64);
            }
            Type::Slice { name, elem } => {
                body.push(2);
                put_common_type(&mut body, name, id);
                put_int_field(&mut body, self.assign_id(elem));
            }
            Type::Struct { name, fields } => {
                body.push(3);
                put_common_type(&mut body, name, id);
                if !fields.is_empty() {
                    body.push(1);
                    put_uint(&mut body, fields.len() as u64);
                    for field in fields {
                        let id = self.assign_id(&field.ty);
                        put_name_and_id(&mut body, &field.name, id);
                    }
                }
            }
            Type::Map { name, key, elem } => {
                body.push(4);
                put_common_type(&mut body, name, id);
                put_int_field(&mut body, self.assign_id(key));
                put_int_field(&mut body, self.assign_id(elem));
            }
            _ => {}
        }
        // The ends of the definition and of the `wireType` around it.
        body.extend_from_slice(&[0, 0]);
        put_bytes(&mut self.out, &body);
        match ty {
            Type::Slice { elem, .. } | Type::Array { elem, .. } => self.send_definition(elem),
            Type::Map { key, elem, .. } => {
                self.send_definition(key);
                self.send_definition(elem);
            }
            Type::Struct { fields, .. } => {
                for field in fields {
                    self.send_definition(&field.ty);
                }
            }
            _ => {}
        }
    }
}

/// Writes field 0 of a definition, the struct `CommonType`.
fn put_common_type(out: &mut Vec<u8>, name: &str, id: i64) {
    out.push(1);
    put_name_and_id(out, name, id);
}

fn put_name_and_id(out: &mut Vec<u8>, name: &str, id: i64) {
    if name.is_empty() {
        out.push(2);
    } else {
        out.push(1);
        put_bytes(out, name.as_bytes());
        out.push(1);
    }
    put_int(out, id);
    out.push(0);
}

/// Writes an integer field that follows the field before it directly.
fn put_int_field(out: &mut Vec<u8>, value: i64) {
    out.push(1);
    put_int(out, value);
}

fn put_float(out: &mut Vec<u8>, value: f64) {
    put_uint(out, value.to_bits().swap_bytes());
}

fn put_value(out: &mut Vec<u8>, ty: &Type, value: &Value) {
    match (ty, value) {
        (Type::Bool, Value::Bool(v)) => out.push(u8::from(*v)),
        (Type::Int, Value::Int(v)) => put_int(out, *v),
        (Type::Uint, Value::Uint(v)) => put_uint(out, *v),
        (Type::Float, Value::Float(v)) => put_float(out, *v),
        (Type::Bytes, Value::Bytes(v)) => put_bytes(out, v),
        (Type::String, Value::String(v)) => put_bytes(out, v.as_bytes()),
        (Type::Complex, Value::Complex(re, im)) => {
            put_float(out, *re);
            put_float(out, *im);
        }
        (Type::Slice { elem, .. }, Value::List(v)) => put_list(out, elem, v),
        (Type::Array { elem, len, .. }, Value::List(v)) if v.len() == *len => put_list(out, elem, v),
        (Type::Map { key, elem, .. }, Value::Map(v)) => {
            put_uint(out, v.len() as u64);
            for (k, v) in v {
                put_value(out, key, k);
                put_value(out, elem, v);
            }
        }
        (Type::Struct { fields, .. }, Value::Struct(v)) => put_struct(out, fields, v),
        _ => {
            debug_assert!(false, "a value of kind {} does not fit its type {ty:?}", value.kind());
            put_value(out, ty, &ty.zero());
        }
    }
}

fn put_list(out: &mut Vec<u8>, elem: &Type, elements: &[Value]) {
    put_uint(out, elements.len() as u64);
    for element in elements {
        put_value(out, elem, element);
    }
}

fn put_struct(out: &mut Vec<u8>, fields: &[Field], value: &Struct) {
    debug_assert!(
        value.iter().all(|(name, _)| fields.iter().any(|field| field.name == name)),
        "a field of {value:?} is not in its type"
    );
    let mut delta = 0;
    for field in fields {
        delta += 1;
        let Some(value) = value.get(&field.name).filter(|value| is_sent(&field.ty, value)) else { continue };
        put_uint(out, delta);
        delta = 0;
        put_value(out, &field.ty, value);
    }
    out.push(0);
}

/// Whether a field with this value is sent (docs/spec/mesh.md 3.3).
fn is_sent(ty: &Type, value: &Value) -> bool {
    match (ty, value) {
        (_, Value::Bool(v)) => *v,
        (_, Value::Int(v)) => *v != 0,
        (_, Value::Uint(v)) => *v != 0,
        (_, Value::Float(v)) => *v != 0.0,
        (_, Value::Complex(re, im)) => *re != 0.0 || *im != 0.0,
        (_, Value::Bytes(v)) => !v.is_empty(),
        (_, Value::String(v)) => !v.is_empty(),
        (Type::Slice { .. }, Value::List(v)) => !v.is_empty(),
        _ => true,
    }
}
