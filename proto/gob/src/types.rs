use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::error::DecodeError;
use crate::read::Cursor;

/// Bounds on what a stream may cost. All of them end the stream when exceeded.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one message body. Default 10 MiB, the frame limit of protocol 2 (docs/spec/mesh.md 4.3).
    pub max_message: usize,
    /// Nesting of composite values, which are read recursively. Default 64; what Weave Net sends needs 6.
    pub max_depth: u16,
    /// Type definitions in a stream. Default 256; what Weave Net sends needs 14.
    pub max_types: usize,
    /// Bytes of all type definitions in a stream together. Default 64 KiB. A field takes about forty times as much
    /// memory as its shortest definition.
    pub max_definition_bytes: usize,
    /// Bytes of memory for one decoded top-level value. Default 128 MiB. Without it a list of empty structs would take
    /// more than thirty times its size on the wire.
    pub max_memory: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_message: 10 << 20,
            max_depth: 64,
            max_types: 256,
            max_definition_bytes: 64 << 10,
            max_memory: 128 << 20,
        }
    }
}

/// The number by which a stream refers to a type. Ids up to 7 are the same in every stream, others mean what the stream
/// defined.
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

/// What a value is, without its inner types. Kinds must match between sender and receiver (docs/spec/mesh.md 3.5).
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

/// One field of a struct as its sender defined it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeField {
    /// Name, case-sensitive.
    pub name: String,
    /// Type in the sender's stream.
    pub id: TypeId,
    /// Kind of that type.
    pub kind: Kind,
}

/// The fields of a struct as its sender defined them; a field number is the position in the list.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Shape {
    /// Fields by number.
    pub fields: Vec<ShapeField>,
}

impl Shape {
    /// The field of that name. Where a sender uses a name twice the later one counts, as in Go.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.fields.iter().rposition(|field| field.name == name)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Def {
    Array { elem: TypeId, len: u64 },
    Slice { elem: TypeId },
    Map { key: TypeId, elem: TypeId },
    Struct { shape: Arc<Shape> },
    Opaque,
}

#[derive(Clone, Debug)]
struct Entry {
    def: Def,
    /// All types that can be reached from here are known, and the kinds in shapes are final.
    resolved: bool,
}

/// The type definitions of one stream.
#[derive(Clone, Debug, Default)]
pub struct Types {
    entries: BTreeMap<TypeId, Entry>,
    bytes: usize,
}

impl Types {
    /// Kind of a type; `None` if it is not defined.
    pub fn kind(&self, id: TypeId) -> Option<Kind> {
        Some(match id {
            TypeId::BOOL => Kind::Bool,
            TypeId::INT => Kind::Int,
            TypeId::UINT => Kind::Uint,
            TypeId::FLOAT => Kind::Float,
            TypeId::BYTES => Kind::Bytes,
            TypeId::STRING => Kind::String,
            TypeId::COMPLEX => Kind::Complex,
            TypeId::INTERFACE => Kind::Interface,
            _ => match self.entries.get(&id)?.def {
                Def::Array { .. } | Def::Slice { .. } => Kind::List,
                Def::Map { .. } => Kind::Map,
                Def::Struct { .. } => Kind::Struct,
                Def::Opaque => Kind::Opaque,
            },
        })
    }

    /// Element type of a slice or array.
    pub fn element(&self, id: TypeId) -> Option<TypeId> {
        match self.entries.get(&id)?.def {
            Def::Array { elem, .. } | Def::Slice { elem } => Some(elem),
            _ => None,
        }
    }

    /// Fields of a struct.
    pub fn shape(&self, id: TypeId) -> Option<&Arc<Shape>> {
        match &self.entries.get(&id)?.def {
            Def::Struct { shape } => Some(shape),
            _ => None,
        }
    }

    pub(crate) fn def(&self, id: TypeId) -> Result<&Def, DecodeError> {
        self.entries.get(&id).map(|entry| &entry.def).ok_or(DecodeError::UnknownType(id))
    }

    /// Reads the *wireType* that defines `id`.
    pub(crate) fn define(
        &mut self,
        id: TypeId,
        cursor: &mut Cursor<'_>,
        limits: &Limits,
    ) -> Result<(), DecodeError> {
        if id.0 < TypeId::FIRST_USER {
            return Err(DecodeError::BadDefinition("reserved id"));
        }
        if self.entries.contains_key(&id) {
            return Err(DecodeError::DuplicateType(id));
        }
        if self.entries.len() >= limits.max_types {
            return Err(DecodeError::TooManyTypes);
        }
        // Cut before parsing, so that a long definition is refused rather than built.
        let allowed = limits.max_definition_bytes.saturating_sub(self.bytes);
        let all = cursor.remaining();
        let mut cut = cursor.cut(allowed);
        let def = match wire_type(&mut cut) {
            Err(DecodeError::UnexpectedEof) if all > allowed => return Err(DecodeError::TooManyTypes),
            result => result?,
        };
        let used = all.min(allowed) - cut.remaining();
        cursor.skip_bytes(used)?;
        self.bytes += used;
        self.entries.insert(id, Entry { def, resolved: false });
        Ok(())
    }

    /// Makes sure that `id` and all it refers to are defined, and completes the kinds in shapes. Types may refer to
    /// themselves.
    pub(crate) fn resolve(&mut self, id: TypeId) -> Result<(), DecodeError> {
        if self.entries.get(&id).is_some_and(|entry| entry.resolved) {
            return Ok(());
        }
        let mut todo = vec![id];
        let mut done = Vec::new();
        while let Some(id) = todo.pop() {
            if id.0 < TypeId::FIRST_USER {
                self.kind(id).ok_or(DecodeError::UnknownType(id))?;
                continue;
            }
            let entry = self.entries.get_mut(&id).ok_or(DecodeError::UnknownType(id))?;
            if entry.resolved {
                continue;
            }
            // Set early so that cycles end; a failure ends the stream anyway.
            entry.resolved = true;
            done.push(id);
            match &entry.def {
                Def::Array { elem, .. } | Def::Slice { elem } => todo.push(*elem),
                Def::Map { key, elem } => todo.extend([*key, *elem]),
                Def::Struct { shape } => todo.extend(shape.fields.iter().map(|field| field.id)),
                Def::Opaque => {}
            }
        }
        for id in done {
            let Some(shape) = self.shape(id) else { continue };
            let mut shape = Shape::clone(shape);
            for field in &mut shape.fields {
                field.kind = self.kind(field.id).ok_or(DecodeError::UnknownType(field.id))?;
            }
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.def = Def::Struct { shape: Arc::new(shape) };
            }
        }
        Ok(())
    }
}

/// Calls `visit` with each field number of a struct whose definition has `count` fields; `visit` consumes the field.
fn fields(
    cursor: &mut Cursor<'_>,
    count: u64,
    mut visit: impl FnMut(u64, &mut Cursor<'_>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let mut next = 0u64;
    loop {
        let delta = cursor.uint()?;
        if delta == 0 {
            return Ok(());
        }
        let number = next.checked_add(delta - 1).filter(|n| *n < count).ok_or(DecodeError::NoSuchField)?;
        visit(number, cursor)?;
        next = number + 1;
    }
}

/// The built-in struct that defines a type (docs/spec/mesh.md 3.4).
fn wire_type(cursor: &mut Cursor<'_>) -> Result<Def, DecodeError> {
    let mut def = None;
    fields(cursor, 7, |number, cursor| {
        let parsed = match number {
            0 => array_type(cursor)?,
            1 => slice_type(cursor)?,
            2 => struct_type(cursor)?,
            3 => map_type(cursor)?,
            _ => {
                fields(cursor, 1, |_, cursor| common_type(cursor))?;
                Def::Opaque
            }
        };
        match def.replace(parsed) {
            None => Ok(()),
            Some(_) => Err(DecodeError::BadDefinition("more than one kind")),
        }
    })?;
    def.ok_or(DecodeError::BadDefinition("no kind"))
}

/// Name and id of the type itself; nobody needs them.
fn common_type(cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
    fields(cursor, 2, |number, cursor| match number {
        0 => cursor.bytes().map(drop),
        _ => cursor.int().map(drop),
    })
}

fn array_type(cursor: &mut Cursor<'_>) -> Result<Def, DecodeError> {
    let (mut elem, mut len) = (0, 0);
    fields(cursor, 3, |number, cursor| {
        match number {
            0 => common_type(cursor)?,
            1 => elem = cursor.int()?,
            _ => len = cursor.int()?,
        }
        Ok(())
    })?;
    let len = u64::try_from(len).map_err(|_| DecodeError::BadDefinition("negative array length"))?;
    Ok(Def::Array { elem: TypeId(elem), len })
}

fn slice_type(cursor: &mut Cursor<'_>) -> Result<Def, DecodeError> {
    let mut elem = 0;
    fields(cursor, 2, |number, cursor| {
        match number {
            0 => common_type(cursor)?,
            _ => elem = cursor.int()?,
        }
        Ok(())
    })?;
    Ok(Def::Slice { elem: TypeId(elem) })
}

fn map_type(cursor: &mut Cursor<'_>) -> Result<Def, DecodeError> {
    let (mut key, mut elem) = (0, 0);
    fields(cursor, 3, |number, cursor| {
        match number {
            0 => common_type(cursor)?,
            1 => key = cursor.int()?,
            _ => elem = cursor.int()?,
        }
        Ok(())
    })?;
    Ok(Def::Map { key: TypeId(key), elem: TypeId(elem) })
}

fn struct_type(cursor: &mut Cursor<'_>) -> Result<Def, DecodeError> {
    let mut shape = Shape::default();
    fields(cursor, 2, |number, cursor| {
        if number == 0 {
            return common_type(cursor);
        }
        let count = cursor.count()?;
        shape.fields.reserve_exact(count);
        for _ in 0..count {
            let mut field = ShapeField { name: String::new(), id: TypeId(0), kind: Kind::Opaque };
            fields(cursor, 2, |number, cursor| {
                match number {
                    0 => field.name = String::from_utf8_lossy(cursor.bytes()?).into_owned(),
                    _ => field.id = TypeId(cursor.int()?),
                }
                Ok(())
            })?;
            shape.fields.push(field);
        }
        Ok(())
    })?;
    Ok(Def::Struct { shape: Arc::new(shape) })
}
