use std::borrow::Cow;
use std::mem::size_of;

use crate::error::DecodeError;
use crate::types::{Def, Kind, Limits, TypeId, Types};
use crate::value::{Struct, Value};

/// Primitives of docs/spec/mesh.md 3.1 over the bytes of one message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    data: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Cursor<'a> {
        Cursor { data }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.data.len()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.data
    }

    /// The same position with an earlier end.
    pub(crate) fn cut(&self, length: usize) -> Cursor<'a> {
        Cursor { data: &self.data[..length.min(self.data.len())] }
    }

    #[inline]
    pub(crate) fn uint(&mut self) -> Result<u64, DecodeError> {
        let (&first, rest) = self.data.split_first().ok_or(DecodeError::UnexpectedEof)?;
        if first < 0x80 {
            self.data = rest;
            return Ok(first.into());
        }
        let length = 256 - usize::from(first);
        if length > 8 {
            return Err(DecodeError::BadInteger);
        }
        let (bytes, rest) = rest.split_at_checked(length).ok_or(DecodeError::UnexpectedEof)?;
        self.data = rest;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    pub(crate) fn int(&mut self) -> Result<i64, DecodeError> {
        let uint = self.uint()?;
        let value = (uint >> 1) as i64;
        Ok(if uint & 1 == 0 { value } else { !value })
    }

    fn float(&mut self) -> Result<f64, DecodeError> {
        Ok(f64::from_bits(self.uint()?.swap_bytes()))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.uint()?;
        self.take(length)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(length).map_err(|_| DecodeError::UnexpectedEof)?;
        let (bytes, rest) = self.data.split_at_checked(length).ok_or(DecodeError::UnexpectedEof)?;
        self.data = rest;
        Ok(bytes)
    }

    pub(crate) fn skip_bytes(&mut self, length: usize) -> Result<(), DecodeError> {
        self.take(length as u64).map(drop)
    }

    /// A number of elements, each of which takes a byte or more.
    pub(crate) fn count(&mut self) -> Result<usize, DecodeError> {
        let count = self.uint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.data.len() => Ok(count),
            _ => Err(DecodeError::UnexpectedEof),
        }
    }
}

/// The content of one value, to be read by a caller that looks at the sender's types itself. Reading in another way
/// than [`Reader::types`] tells gives nonsense or an error, never harm.
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

    /// The sender's definitions so far; all that the value needs are there.
    pub fn types(&self) -> &Types {
        self.types
    }

    /// Bytes left in the message.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining()
    }

    /// Reads a uint (also a bool, which is zero or not).
    ///
    /// # Errors
    /// The value is cut off or not an integer.
    #[inline]
    pub fn uint(&mut self) -> Result<u64, DecodeError> {
        self.cursor.uint()
    }

    /// Reads an int.
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

    /// Reads a string; what is not UTF-8 is replaced.
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

    /// Reads the number of the next field present in a struct with `fields` fields, `None` at its end. `next` is zero
    /// at first and belongs to this function between the calls.
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

    /// Passes over a value of type `id`.
    ///
    /// # Errors
    /// The value is malformed or too deep.
    pub fn skip(&mut self, id: TypeId) -> Result<(), DecodeError> {
        self.pass(id, 0)
    }

    /// Reads a value of type `id`.
    ///
    /// # Errors
    /// The value is malformed or exceeds a limit.
    pub fn value(&mut self, id: TypeId) -> Result<Value, DecodeError> {
        let mut budget = self.limits.max_memory;
        self.build(id, 0, &mut budget)
    }

    fn deeper(&self, depth: u16) -> Result<u16, DecodeError> {
        if depth < self.limits.max_depth { Ok(depth + 1) } else { Err(DecodeError::TooDeep) }
    }

    fn counted(&mut self, len: Option<u64>) -> Result<usize, DecodeError> {
        let count = self.cursor.count()?;
        match len {
            Some(len) if len != count as u64 => Err(DecodeError::ArrayLength),
            _ => Ok(count),
        }
    }

    fn pass(&mut self, id: TypeId, depth: u16) -> Result<(), DecodeError> {
        match id {
            TypeId::BOOL | TypeId::INT | TypeId::UINT | TypeId::FLOAT => self.cursor.uint().map(drop),
            TypeId::COMPLEX => {
                self.cursor.uint()?;
                self.cursor.uint().map(drop)
            }
            TypeId::BYTES | TypeId::STRING => self.cursor.bytes().map(drop),
            TypeId::INTERFACE => self.interface().map(drop),
            _ => {
                let deeper = self.deeper(depth)?;
                match *self.types.def(id)? {
                    Def::Array { elem, len } => {
                        for _ in 0..self.counted(Some(len))? {
                            self.pass(elem, deeper)?;
                        }
                    }
                    Def::Slice { elem } => {
                        for _ in 0..self.counted(None)? {
                            self.pass(elem, deeper)?;
                        }
                    }
                    Def::Map { key, elem } => {
                        for _ in 0..self.counted(None)? {
                            self.pass(key, deeper)?;
                            self.pass(elem, deeper)?;
                        }
                    }
                    Def::Struct { ref shape } => {
                        let shape = shape.clone();
                        let mut next = 0;
                        while let Some(number) = self.field(&mut next, shape.fields.len())? {
                            self.pass(shape.fields[number].id, deeper)?;
                        }
                    }
                    Def::Opaque => self.cursor.bytes().map(drop)?,
                }
                Ok(())
            }
        }
    }

    /// Concrete type name, empty for nil. The content is passed over, but the definitions in it count.
    fn interface(&mut self) -> Result<&'a [u8], DecodeError> {
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
            TypeId::BYTES => Value::Bytes(self.owned(budget)?),
            TypeId::STRING => Value::String(self.owned_string(budget)?),
            TypeId::COMPLEX => Value::Complex(self.cursor.float()?, self.cursor.float()?),
            TypeId::INTERFACE => {
                let name = self.interface()?;
                charge(budget, name.len().saturating_mul(3))?;
                Value::Interface(String::from_utf8_lossy(name).into_owned())
            }
            _ => {
                let deeper = self.deeper(depth)?;
                match *self.types.def(id)? {
                    Def::Array { elem, len } => {
                        let count = self.counted(Some(len))?;
                        self.list(elem, count, deeper, budget)?
                    }
                    Def::Slice { elem } => {
                        let count = self.counted(None)?;
                        self.list(elem, count, deeper, budget)?
                    }
                    Def::Map { key, elem } => {
                        let count = self.counted(None)?;
                        charge(budget, count.saturating_mul(size_of::<(Value, Value)>()))?;
                        let mut pairs = Vec::with_capacity(count);
                        for _ in 0..count {
                            let key = self.build(key, deeper, budget)?;
                            pairs.push((key, self.build(elem, deeper, budget)?));
                        }
                        Value::Map(pairs)
                    }
                    Def::Struct { ref shape } => {
                        let shape = shape.clone();
                        let mut fields = Vec::new();
                        let mut next = 0;
                        while let Some(number) = self.field(&mut next, shape.fields.len())? {
                            let value = self.build(shape.fields[number].id, deeper, budget)?;
                            if fields.len() == fields.capacity() {
                                // Doubling, but never more than the definition has.
                                let more = fields.len().max(2).min(shape.fields.len() - fields.len());
                                charge(budget, more * size_of::<(u32, Value)>())?;
                                fields.reserve_exact(more);
                            }
                            fields.push((number as u32, value));
                        }
                        Value::Struct(Struct::from_parts(shape, fields))
                    }
                    Def::Opaque => Value::Opaque(self.owned(budget)?),
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

    fn owned(&mut self, budget: &mut usize) -> Result<Vec<u8>, DecodeError> {
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
        // The decoder hands out readers of resolved types only.
        self.types.kind(self.id).unwrap_or(Kind::Opaque)
    }
}

fn charge(budget: &mut usize, bytes: usize) -> Result<(), DecodeError> {
    *budget = budget.checked_sub(bytes).ok_or(DecodeError::TooMuchMemory)?;
    Ok(())
}
