use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cursor::Cursor;
use crate::error::DecodeError;
use crate::kind::{Kind, TypeId};

/// Limits on the memory that a hostile stream can use. Exceeding one ends the stream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one message body. Default 10 MiB, the frame limit of protocol 2 (docs/spec/mesh.md 4.3).
    pub max_message: usize,
    /// Nesting of composite values, which are read recursively. Default 64; messages of Weave Net need 6.
    pub max_depth: u16,
    /// Type definitions in a stream. Default 256; messages of Weave Net need 14.
    pub max_types: usize,
    /// Bytes of all type definitions in a stream together. Default 64 KiB. A field takes about forty times the memory of
    /// its shortest definition.
    pub max_definition_bytes: usize,
    /// Bytes of memory for one decoded top-level value. Default 128 MiB. Without this limit a list of empty structs
    /// would take more than thirty times its size on the wire.
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

/// One field of a struct as its sender defined it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeField {
    /// Name of the field, case-sensitive.
    pub name: String,
    /// Type of the field in the sender's stream.
    pub id: TypeId,
    /// Kind of that type.
    pub kind: Kind,
}

/// The fields of a struct as its sender defined them; a field number is the position in the list.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Shape {
    /// The fields in the order of their numbers.
    pub fields: Vec<ShapeField>,
}

impl Shape {
    /// Number of the field with this name. If a sender uses a name twice, the later field counts, as in Go.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.fields.iter().rposition(|field| field.name == name)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Definition {
    Array { elem: TypeId, len: u64 },
    Slice { elem: TypeId },
    Map { key: TypeId, elem: TypeId },
    Struct { shape: Arc<Shape> },
    Opaque,
}

#[derive(Clone, Debug)]
struct Entry {
    definition: Definition,
    /// All types that this one refers to are defined, and the kinds in its shape are set.
    resolved: bool,
}

/// The type definitions of one stream.
#[derive(Clone, Debug, Default)]
pub struct Types {
    entries: BTreeMap<TypeId, Entry>,
    bytes: usize,
}

impl Types {
    /// Kind of a type; `None` if the type is not defined.
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
            _ => match self.entries.get(&id)?.definition {
                Definition::Array { .. } | Definition::Slice { .. } => Kind::List,
                Definition::Map { .. } => Kind::Map,
                Definition::Struct { .. } => Kind::Struct,
                Definition::Opaque => Kind::Opaque,
            },
        })
    }

    /// Type of the elements of a slice or array.
    pub fn element(&self, id: TypeId) -> Option<TypeId> {
        match self.entries.get(&id)?.definition {
            Definition::Array { elem, .. } | Definition::Slice { elem } => Some(elem),
            _ => None,
        }
    }

    /// Fields of a struct.
    pub fn shape(&self, id: TypeId) -> Option<&Arc<Shape>> {
        match &self.entries.get(&id)?.definition {
            Definition::Struct { shape } => Some(shape),
            _ => None,
        }
    }

    pub(crate) fn definition(&self, id: TypeId) -> Result<&Definition, DecodeError> {
        self.entries.get(&id).map(|entry| &entry.definition).ok_or(DecodeError::UnknownType(id))
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
        // The limit applies while parsing, so that a long definition is not built first.
        let allowed = limits.max_definition_bytes.saturating_sub(self.bytes);
        let all = cursor.remaining();
        let mut cut = cursor.cut(allowed);
        let definition = match read_wire_type(&mut cut) {
            Err(DecodeError::UnexpectedEof) if all > allowed => return Err(DecodeError::TooManyTypes),
            result => result?,
        };
        let used = all.min(allowed) - cut.remaining();
        cursor.skip_bytes(used)?;
        self.bytes += used;
        self.entries.insert(id, Entry { definition, resolved: false });
        Ok(())
    }

    /// Checks that `id` and all types that it refers to are defined, and sets the kinds in shapes. Types may be
    /// recursive.
    pub(crate) fn resolve(&mut self, id: TypeId) -> Result<(), DecodeError> {
        if self.entries.get(&id).is_some_and(|entry| entry.resolved) {
            return Ok(());
        }
        let mut pending = vec![id];
        let mut resolved = Vec::new();
        while let Some(id) = pending.pop() {
            if id.0 < TypeId::FIRST_USER {
                self.kind(id).ok_or(DecodeError::UnknownType(id))?;
                continue;
            }
            let entry = self.entries.get_mut(&id).ok_or(DecodeError::UnknownType(id))?;
            if entry.resolved {
                continue;
            }
            // Set before the inner types are visited, so that recursive types end; a failure ends the stream.
            entry.resolved = true;
            resolved.push(id);
            match &entry.definition {
                Definition::Array { elem, .. } | Definition::Slice { elem } => pending.push(*elem),
                Definition::Map { key, elem } => pending.extend([*key, *elem]),
                Definition::Struct { shape } => pending.extend(shape.fields.iter().map(|field| field.id)),
                Definition::Opaque => {}
            }
        }
        for id in resolved {
            let Some(shape) = self.shape(id) else { continue };
            let mut shape = Shape::clone(shape);
            for field in &mut shape.fields {
                field.kind = self.kind(field.id).ok_or(DecodeError::UnknownType(field.id))?;
            }
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.definition = Definition::Struct { shape: Arc::new(shape) };
            }
        }
        Ok(())
    }
}

/// Calls `read` with the number of each field present in a built-in struct of `count` fields; `read` consumes the field.
fn read_fields(
    cursor: &mut Cursor<'_>,
    count: u64,
    mut read: impl FnMut(u64, &mut Cursor<'_>) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    let mut next = 0u64;
    loop {
        let delta = cursor.uint()?;
        if delta == 0 {
            return Ok(());
        }
        let number = next.checked_add(delta - 1).filter(|n| *n < count).ok_or(DecodeError::NoSuchField)?;
        read(number, cursor)?;
        next = number + 1;
    }
}

/// Reads the built-in struct `wireType`, which defines a type (docs/spec/mesh.md 3.4).
fn read_wire_type(cursor: &mut Cursor<'_>) -> Result<Definition, DecodeError> {
    let mut definition = None;
    read_fields(cursor, 7, |number, cursor| {
        let parsed = match number {
            0 => read_array_type(cursor)?,
            1 => read_slice_type(cursor)?,
            2 => read_struct_type(cursor)?,
            3 => read_map_type(cursor)?,
            _ => {
                read_fields(cursor, 1, |_, cursor| skip_common_type(cursor))?;
                Definition::Opaque
            }
        };
        match definition.replace(parsed) {
            None => Ok(()),
            Some(_) => Err(DecodeError::BadDefinition("more than one kind")),
        }
    })?;
    definition.ok_or(DecodeError::BadDefinition("no kind"))
}

/// Skips the name and the id that a definition repeats.
fn skip_common_type(cursor: &mut Cursor<'_>) -> Result<(), DecodeError> {
    read_fields(cursor, 2, |number, cursor| match number {
        0 => cursor.bytes().map(drop),
        _ => cursor.int().map(drop),
    })
}

fn read_array_type(cursor: &mut Cursor<'_>) -> Result<Definition, DecodeError> {
    let (mut elem, mut len) = (0, 0);
    read_fields(cursor, 3, |number, cursor| {
        match number {
            0 => skip_common_type(cursor)?,
            1 => elem = cursor.int()?,
            _ => len = cursor.int()?,
        }
        Ok(())
    })?;
    let len = u64::try_from(len).map_err(|_| DecodeError::BadDefinition("negative array length"))?;
    Ok(Definition::Array { elem: TypeId(elem), len })
}

fn read_slice_type(cursor: &mut Cursor<'_>) -> Result<Definition, DecodeError> {
    let mut elem = 0;
    read_fields(cursor, 2, |number, cursor| {
        match number {
            0 => skip_common_type(cursor)?,
            _ => elem = cursor.int()?,
        }
        Ok(())
    })?;
    Ok(Definition::Slice { elem: TypeId(elem) })
}

fn read_map_type(cursor: &mut Cursor<'_>) -> Result<Definition, DecodeError> {
    let (mut key, mut elem) = (0, 0);
    read_fields(cursor, 3, |number, cursor| {
        match number {
            0 => skip_common_type(cursor)?,
            1 => key = cursor.int()?,
            _ => elem = cursor.int()?,
        }
        Ok(())
    })?;
    Ok(Definition::Map { key: TypeId(key), elem: TypeId(elem) })
}

fn read_struct_type(cursor: &mut Cursor<'_>) -> Result<Definition, DecodeError> {
    let mut shape = Shape::default();
    read_fields(cursor, 2, |number, cursor| {
        if number == 0 {
            return skip_common_type(cursor);
        }
        let count = cursor.count()?;
        shape.fields.reserve_exact(count);
        for _ in 0..count {
            let mut field = ShapeField { name: String::new(), id: TypeId(0), kind: Kind::Opaque };
            read_fields(cursor, 2, |number, cursor| {
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
    Ok(Definition::Struct { shape: Arc::new(shape) })
}
