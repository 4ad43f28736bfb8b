use crate::error::DecodeError;

/// Reads the primitives of docs/spec/mesh.md 3.1 from the bytes of a message.
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

    /// The next `length` bytes at most.
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

    pub(crate) fn float(&mut self) -> Result<f64, DecodeError> {
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

    /// Reads a number of elements. Each takes a byte or more, so the number cannot exceed the bytes that follow.
    pub(crate) fn count(&mut self) -> Result<usize, DecodeError> {
        let count = self.uint()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.data.len() => Ok(count),
            _ => Err(DecodeError::UnexpectedEof),
        }
    }
}
