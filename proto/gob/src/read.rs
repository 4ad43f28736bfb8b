use std::borrow::Cow;
use std::mem::size_of;

use crate::cursor::Cursor;
use crate::error::DecodeError;
use crate::kind::{Kind, TypeId};
use crate::types::{Definition, Limits, Types};
use crate::value::{Struct, Value};

/// Reads the content of one value without building a [`Value`]. The caller must read what
/// [`Reader::types`] describes; otherwise the result is a wrong value or an error.
#[derive(Debug)]
pub struct Reader<'d, 'a> {
    types: &'d mut Types,
    limits: &'d Limits,
    id: TypeId,
    cursor: Cursor<'a>,
}

impl<'d, 'a> Reader<'d, 'a> {
    pub(crate) fn new(
        types: &'d mut Types,
        limits: &'d Limits,
        id: TypeId,
        cursor: Cursor<'a>,
    ) -> Reader<'d, 'a> {
        Reader { types, limits, id, cursor }
    }

    /// Type of the top-level value.
    pub fn id(&self) -> TypeId {
        self.id
    }

    /// The sender's type definitions, including all that the value needs.
    pub fn types(&self) -> &Types {
        self.types
    }

    /// Number of bytes left in the message.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining()
    }

    /// Reads an unsigned integer or a bool.
    ///
    /// # Errors
    /// The value is cut off or not an integer.
    #[inline]
    pub fn uint(&mut self) -> Result<u64, DecodeError> {
        self.cursor.uint()
    }

    /// Reads a signed integer.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    pub fn int(&mut self) -> Result<i64, DecodeError> {
        self.cursor.int()
    }

    /// Reads bytes or a string.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        self.cursor.bytes()
    }

    /// Reads a string. Bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    #[inline]
    pub fn string(&mut self) -> Result<Cow<'a, str>, DecodeError> {
        self.cursor.bytes().map(String::from_utf8_lossy)
    }

    /// Reads the number of elements of a slice, array or map. It never exceeds the number of bytes that follow.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    pub fn count(&mut self) -> Result<usize, DecodeError> {
        self.cursor.count()
    }

    /// Reads the number of the next field present in a struct with `fields` fields; `None` at the end of the struct.
    /// `next` is zero before the first call and keeps the state between calls.
    ///
    /// # Errors
    /// As [`Reader::uint`], and [`DecodeError::NoSuchField`].
    #[inline]
    pub fn field(&mut self, next: &mut usize, fields: usize) -> Result<Option<usize>, DecodeError> {
        let delta = self.cursor.uint()?;
        if delta == 0 {
            return Ok(None);
        }
        let number = usize::try_from(delta - 1).ok().and_then(|skipped| next.checked_add(skipped));
        match number {
            Some(number) if number < fields => {
                *next = number + 1;
                Ok(Some(number))
            }
            _ => Err(DecodeError::NoSuchField),
        }
    }

    /// Skips a value of type `id`.
    ///
    /// # Errors
    /// The value is malformed or too deep.
    pub fn skip(&mut self, id: TypeId) -> Result<(), DecodeError> {
        self.skip_nested(id, 0)
    }

    /// Reads a value of type `id`.
    ///
    /// # Errors
    /// The value is malformed or exceeds a limit.
    pub fn value(&mut self, id: TypeId) -> Result<Value, DecodeError> {
        let mut budget = self.limits.max_memory;
        self.build(id, 0, &mut budget)
    }

    fn increment_depth(&self, depth: u16) -> Result<u16, DecodeError> {
        if depth < self.limits.max_depth { Ok(depth + 1) } else { Err(DecodeError::TooDeep) }
    }

    fn element_count(&mut self, len: Option<u64>) -> Result<usize, DecodeError> {
        let count = self.cursor.count()?;
        match len {
            Some(len) if len != count as u64 => Err(DecodeError::ArrayLength),
            _ => Ok(count),
        }
    }

    fn skip_nested(&mut self, id: TypeId, depth: u16) -> Result<(), DecodeError> {
        match id {
            TypeId::BOOL | TypeId::INT | TypeId::UINT | TypeId::FLOAT => self.cursor.uint().map(drop),
            TypeId::COMPLEX => {
                self.cursor.uint()?;
                self.cursor.uint().map(drop)
            }
            TypeId::BYTES | TypeId::STRING => self.cursor.bytes().map(drop),
            TypeId::INTERFACE => self.skip_interface().map(drop),
            _ => {
                let deeper = self.increment_depth(depth)?;
                match *self.types.definition(id)? {
                    Definition::Array { elem, len } => {
                        for _ in 0..self.element_count(Some(len))? {
                            self.skip_nested(elem, deeper)?;
                        }
                    }
                    Definition::Slice { elem } => {
                        for _ in 0..self.element_count(None)? {
                            self.skip_nested(elem, deeper)?;
                        }
                    }
                    Definition::Map { key, elem } => {
                        for _ in 0..self.element_count(None)? {
                            self.skip_nested(key, deeper)?;
                            self.skip_nested(elem, deeper)?;
                        }
                    }
                    Definition::Struct { ref shape } => {
                        let shape = shape.clone();
                        let mut next = 0;
                        while let Some(number) = self.field(&mut next, shape.fields.len())? {
                            self.skip_nested(shape.fields[number].id, deeper)?;
                        }
                    }
                    Definition::Opaque => self.cursor.bytes().map(drop)?,
                }
                Ok(())
            }
        }
    }

    /// Skips an interface value, but stores the type definitions in it. Returns the name of its concrete type, which is
    /// empty for nil.
    fn skip_interface(&mut self) -> Result<&'a [u8], DecodeError> {
        let name = self.cursor.bytes()?;
        if name.is_empty() {
            return Ok(name);
        }
        loop {
            let id = self.cursor.int()?;
            if id >= 0 {
                break;
            }
            let id = id.checked_neg().ok_or(DecodeError::BadInteger)?;
            self.types.define(TypeId(id), &mut self.cursor, self.limits)?;
            self.cursor.uint()?;
        }
        self.cursor.bytes()?;
        Ok(name)
    }

    fn build(&mut self, id: TypeId, depth: u16, budget: &mut usize) -> Result<Value, DecodeError> {
        Ok(match id {
            TypeId::BOOL => Value::Bool(self.cursor.uint()? != 0),
            TypeId::INT => Value::Int(self.cursor.int()?),
            TypeId::UINT => Value::Uint(self.cursor.uint()?),
            TypeId::FLOAT => Value::Float(self.cursor.float()?),
            TypeId::BYTES => Value::Bytes(self.owned_bytes(budget)?),
            TypeId::STRING => Value::String(self.owned_string(budget)?),
            TypeId::COMPLEX => Value::Complex(self.cursor.float()?, self.cursor.float()?),
            TypeId::INTERFACE => {
                let name = self.skip_interface()?;
                charge(budget, name.len().saturating_mul(3))?;
                Value::Interface(String::from_utf8_lossy(name).into_owned())
            }
            _ => {
                let deeper = self.increment_depth(depth)?;
                match *self.types.definition(id)? {
                    Definition::Array { elem, len } => {
                        let count = self.element_count(Some(len))?;
                        self.list(elem, count, deeper, budget)?
                    }
                    Definition::Slice { elem } => {
                        let count = self.element_count(None)?;
                        self.list(elem, count, deeper, budget)?
                    }
                    Definition::Map { key, elem } => {
                        let count = self.element_count(None)?;
                        charge(budget, count.saturating_mul(size_of::<(Value, Value)>()))?;
                        let mut pairs = Vec::with_capacity(count);
                        for _ in 0..count {
                            let key = self.build(key, deeper, budget)?;
                            pairs.push((key, self.build(elem, deeper, budget)?));
                        }
                        Value::Map(pairs)
                    }
                    Definition::Struct { ref shape } => {
                        let shape = shape.clone();
                        let mut fields = Vec::new();
                        let mut next = 0;
                        while let Some(number) = self.field(&mut next, shape.fields.len())? {
                            let value = self.build(shape.fields[number].id, deeper, budget)?;
                            if fields.len() == fields.capacity() {
                                // Twice the capacity, but not more fields than the definition has.
                                let more = fields.len().max(2).min(shape.fields.len() - fields.len());
                                charge(budget, more * size_of::<(u32, Value)>())?;
                                fields.reserve_exact(more);
                            }
                            fields.push((number as u32, value));
                        }
                        Value::Struct(Struct::from_parts(shape, fields))
                    }
                    Definition::Opaque => Value::Opaque(self.owned_bytes(budget)?),
                }
            }
        })
    }

    fn list(
        &mut self,
        elem: TypeId,
        count: usize,
        depth: u16,
        budget: &mut usize,
    ) -> Result<Value, DecodeError> {
        charge(budget, count.saturating_mul(size_of::<Value>()))?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(self.build(elem, depth, budget)?);
        }
        Ok(Value::List(elements))
    }

    fn owned_bytes(&mut self, budget: &mut usize) -> Result<Vec<u8>, DecodeError> {
        let bytes = self.cursor.bytes()?;
        charge(budget, bytes.len())?;
        Ok(bytes.to_vec())
    }

    fn owned_string(&mut self, budget: &mut usize) -> Result<String, DecodeError> {
        let text = self.string()?;
        charge(budget, text.len())?;
        Ok(text.into_owned())
    }

    /// Kind of the top-level value.
    pub fn kind(&self) -> Kind {
        // The decoder creates readers for resolved types only.
        self.types.kind(self.id).unwrap_or(Kind::Opaque)
    }
}

fn charge(budget: &mut usize, bytes: usize) -> Result<(), DecodeError> {
    *budget = budget.checked_sub(bytes).ok_or(DecodeError::TooMuchMemory)?;
    Ok(())
}
