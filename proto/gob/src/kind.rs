use std::fmt;

/// The number by which a stream refers to a type. Ids below 64 are built in, the others are defined by the stream
/// (docs/spec/mesh.md 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeId(pub(crate) i64);

impl TypeId {
    pub(crate) const BOOL: TypeId = TypeId(1);
    pub(crate) const INT: TypeId = TypeId(2);
    pub(crate) const UINT: TypeId = TypeId(3);
    pub(crate) const FLOAT: TypeId = TypeId(4);
    pub(crate) const BYTES: TypeId = TypeId(5);
    pub(crate) const STRING: TypeId = TypeId(6);
    pub(crate) const COMPLEX: TypeId = TypeId(7);
    pub(crate) const INTERFACE: TypeId = TypeId(8);
    /// Lowest id that a stream may define.
    pub(crate) const FIRST_USER: i64 = 64;
}

/// The type of a value without its inner types. Kinds must match between sender and receiver (docs/spec/mesh.md 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Gob id 1.
    Bool,
    /// Gob id 2, every signed size.
    Int,
    /// Gob id 3, every unsigned size.
    Uint,
    /// Gob id 4.
    Float,
    /// Gob id 5.
    Bytes,
    /// Gob id 6.
    String,
    /// Gob id 7.
    Complex,
    /// Gob id 8.
    Interface,
    /// Slice or array.
    List,
    /// Map.
    Map,
    /// Struct.
    Struct,
    /// A type with its own marshaller.
    Opaque,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bool => "bool",
            Kind::Int => "int",
            Kind::Uint => "uint",
            Kind::Float => "float",
            Kind::Bytes => "bytes",
            Kind::String => "string",
            Kind::Complex => "complex",
            Kind::Interface => "interface",
            Kind::List => "slice",
            Kind::Map => "map",
            Kind::Struct => "struct",
            Kind::Opaque => "opaque",
        })
    }
}
