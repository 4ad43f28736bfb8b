//! A report as the tree of values that Go's template engine sees: structs differ from maps, nil slices from nil pointers.

use std::collections::BTreeMap;

use serde::ser::{
    Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple, Serializer,
};

use crate::Report;
use crate::report::NIL_SLICE;
use crate::time::TIME;

/// A Go value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// The result of looking up a missing key of a map.
    Missing,
    /// A nil pointer, map or interface.
    Nil,
    /// A nil pointer that JSON omits.
    Absent,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    /// RFC 3339.
    Time(String),
    /// The flag marks a nil slice.
    List(Vec<Value>, bool),
    Map(BTreeMap<String, Value>),
    Struct(&'static str, Vec<(&'static str, Value)>),
}

/// Converts a report.
pub(super) fn of(report: &Report) -> Value {
    // Conversion succeeds for every report: see `Never`.
    report.serialize(ToValue).unwrap_or(Value::Nil)
}

impl Value {
    /// Compact JSON, as Go's encoder writes it.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Value::Missing | Value::Nil | Value::Absent | Value::List(_, true) => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(n) => match (u64::try_from(*n), i64::try_from(*n)) {
                (Ok(n), _) => n.into(),
                (_, Ok(n)) => n.into(),
                _ => Json::Null,
            },
            Value::Float(x) => (*x).into(),
            Value::Text(s) | Value::Time(s) => s.as_str().into(),
            Value::List(items, false) => items.iter().map(Value::to_json).collect(),
            Value::Map(map) => map.iter().map(|(k, v)| (k.clone(), v.to_json())).collect(),
            Value::Struct(_, fields) => fields
                .iter()
                .filter(|(_, v)| *v != Value::Absent)
                .map(|(k, v)| ((*k).to_owned(), v.to_json()))
                .collect(),
        }
    }

    /// Compact JSON text. Struct fields keep their order, which a JSON tree would not.
    pub(super) fn json_text(&self) -> String {
        match self {
            Value::List(items, false) => {
                let items: Vec<_> = items.iter().map(Value::json_text).collect();
                format!("[{}]", items.join(","))
            }
            Value::Map(map) => {
                let fields: Vec<_> = map.iter().map(|(k, v)| field(k, v)).collect();
                format!("{{{}}}", fields.join(","))
            }
            Value::Struct(_, fields) => {
                let fields: Vec<_> =
                    fields.iter().filter(|(_, v)| *v != Value::Absent).map(|(k, v)| field(k, v)).collect();
                format!("{{{}}}", fields.join(","))
            }
            leaf => crate::report::to_go_json(&leaf.to_json(), false),
        }
    }
}

fn field(key: &str, value: &Value) -> String {
    format!("{}:{}", crate::report::to_go_json(&key, false), value.json_text())
}

struct ToValue;

/// The error of conversions, which cannot fail; serde needs a type.
#[derive(Debug)]
pub(super) struct Never;

impl std::fmt::Display for Never {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not a report")
    }
}

impl std::error::Error for Never {}

impl serde::ser::Error for Never {
    fn custom<T: std::fmt::Display>(_: T) -> Never {
        Never
    }
}

macro_rules! ints {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(self, v: $type) -> Result<Value, Never> { Ok(Value::Int(v.into())) })*
    };
}

impl Serializer for ToValue {
    type Ok = Value;
    type Error = Never;
    type SerializeSeq = Seq;
    type SerializeTuple = Seq;
    type SerializeTupleStruct = Impossible<Value, Never>;
    type SerializeTupleVariant = Impossible<Value, Never>;
    type SerializeMap = MapOf;
    type SerializeStruct = StructOf;
    type SerializeStructVariant = Impossible<Value, Never>;

    ints!(serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_u8: u8,
          serialize_u16: u16, serialize_u32: u32, serialize_u64: u64);

    fn serialize_bool(self, v: bool) -> Result<Value, Never> {
        Ok(Value::Bool(v))
    }

    fn serialize_f32(self, v: f32) -> Result<Value, Never> {
        Ok(Value::Float(v.into()))
    }

    fn serialize_f64(self, v: f64) -> Result<Value, Never> {
        Ok(Value::Float(v))
    }

    fn serialize_char(self, v: char) -> Result<Value, Never> {
        Ok(Value::Text(v.into()))
    }

    fn serialize_str(self, v: &str) -> Result<Value, Never> {
        Ok(Value::Text(v.to_owned()))
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<Value, Never> {
        Err(Never)
    }

    fn serialize_none(self) -> Result<Value, Never> {
        Ok(Value::Nil)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, v: &T) -> Result<Value, Never> {
        v.serialize(self)
    }

    fn serialize_unit(self) -> Result<Value, Never> {
        Ok(Value::Nil)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Value, Never> {
        Ok(Value::Nil)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Value, Never> {
        Ok(Value::Text(name.to_owned()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        v: &T,
    ) -> Result<Value, Never> {
        match (name, v.serialize(ToValue)?) {
            (NIL_SLICE, _) => Ok(Value::List(Vec::new(), true)),
            (TIME, Value::Text(text)) => Ok(Value::Time(text)),
            (_, value) => Ok(value),
        }
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Value, Never> {
        Err(Never)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Seq, Never> {
        Ok(Seq(Vec::new()))
    }

    fn serialize_tuple(self, _: usize) -> Result<Seq, Never> {
        Ok(Seq(Vec::new()))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, Never> {
        Err(Never)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Never> {
        Err(Never)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<MapOf, Never> {
        Ok(MapOf { map: BTreeMap::new(), key: String::new() })
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<StructOf, Never> {
        Ok(StructOf { name, fields: Vec::new() })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Never> {
        Err(Never)
    }
}

pub(super) struct Seq(Vec<Value>);

impl SerializeSeq for Seq {
    type Ok = Value;
    type Error = Never;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, v: &T) -> Result<(), Never> {
        self.0.push(v.serialize(ToValue)?);
        Ok(())
    }

    fn end(self) -> Result<Value, Never> {
        Ok(Value::List(self.0, false))
    }
}

impl SerializeTuple for Seq {
    type Ok = Value;
    type Error = Never;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, v: &T) -> Result<(), Never> {
        SerializeSeq::serialize_element(self, v)
    }

    fn end(self) -> Result<Value, Never> {
        SerializeSeq::end(self)
    }
}

pub(super) struct MapOf {
    map: BTreeMap<String, Value>,
    key: String,
}

impl SerializeMap for MapOf {
    type Ok = Value;
    type Error = Never;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Never> {
        self.key = match key.serialize(ToValue)? {
            Value::Text(key) => key,
            _ => return Err(Never),
        };
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, v: &T) -> Result<(), Never> {
        self.map.insert(std::mem::take(&mut self.key), v.serialize(ToValue)?);
        Ok(())
    }

    fn end(self) -> Result<Value, Never> {
        Ok(Value::Map(self.map))
    }
}

pub(super) struct StructOf {
    name: &'static str,
    fields: Vec<(&'static str, Value)>,
}

impl SerializeStruct for StructOf {
    type Ok = Value;
    type Error = Never;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, v: &T) -> Result<(), Never> {
        self.fields.push((key, v.serialize(ToValue)?));
        Ok(())
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), Never> {
        self.fields.push((key, Value::Absent));
        Ok(())
    }

    fn end(self) -> Result<Value, Never> {
        Ok(Value::Struct(self.name, self.fields))
    }
}
