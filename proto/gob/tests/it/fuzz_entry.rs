//! Decodes arbitrary bytes as a gob stream. The fuzz target and the test that replays its corpus share this module.

use weave_gob::{DecodeError, Decoder, Limits, StreamDecoder, Value};

/// The first byte selects the size of the pieces and the limits; the rest is the stream. Asserts that a stream decodes
/// to the same values in one piece and in pieces, and that skipping a value finds the same errors as building it.
pub(crate) fn decode_stream(data: &[u8]) {
    let Some((&options, stream)) = data.split_first() else { return };
    let limits = if options & 0x80 == 0 {
        Limits::default()
    } else {
        Limits { max_message: 300, max_depth: 4, max_types: 6, max_definition_bytes: 400, max_memory: 4000 }
    };
    let (values, error) = decode_both_ways(stream, limits, usize::from(options & 0x1f) + 1);
    values.iter().for_each(check_accessors);

    let (skipped, skip_error) = skip_all(stream, limits);
    if error == Some(DecodeError::TooMuchMemory) {
        assert!(skipped >= values.len());
    } else {
        assert_eq!((skipped, skip_error), (values.len(), error));
    }
}

/// Decodes a stream in one piece, and asserts that decoding it in pieces of this size gives the same values and error.
pub(crate) fn decode_both_ways(
    stream: &[u8],
    limits: Limits,
    size: usize,
) -> (Vec<Value>, Option<DecodeError>) {
    let (values, error) = decode_at_once(stream, limits);
    let (values_in_pieces, error_in_pieces) = decode_in_pieces(stream, limits, size);
    // As text, since a float that is not a number does not equal itself.
    assert_eq!(format!("{values:?}"), format!("{values_in_pieces:?}"));
    assert_eq!(error, error_in_pieces);
    (values, error)
}

fn decode_at_once(stream: &[u8], limits: Limits) -> (Vec<Value>, Option<DecodeError>) {
    let mut decoder = Decoder::with_limits(stream, limits);
    let mut values = Vec::new();
    loop {
        match decoder.next() {
            Ok(Some(value)) => values.push(value),
            Ok(None) => return (values, None),
            Err(error) => return (values, Some(error)),
        }
    }
}

fn decode_in_pieces(stream: &[u8], limits: Limits, size: usize) -> (Vec<Value>, Option<DecodeError>) {
    let mut decoder = StreamDecoder::new(limits);
    let mut values = Vec::new();
    for piece in stream.chunks(size) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(value)) => values.push(value),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.buffered(), 0);
                    return (values, Some(error));
                }
            }
        }
        assert!(decoder.buffered() <= limits.max_message + 9);
    }
    (values, (!decoder.is_complete()).then_some(DecodeError::UnexpectedEof))
}

fn skip_all(stream: &[u8], limits: Limits) -> (usize, Option<DecodeError>) {
    let mut decoder = Decoder::with_limits(stream, limits);
    let mut skipped = 0;
    loop {
        let result = match decoder.next_reader() {
            Ok(Some(mut reader)) => reader.skip(reader.id()),
            Ok(None) => return (skipped, None),
            Err(error) => return (skipped, Some(error)),
        };
        match result {
            Ok(()) => skipped += 1,
            Err(error) => return (skipped, Some(error)),
        }
    }
}

/// Calls every accessor of every struct.
fn check_accessors(value: &Value) {
    match value {
        Value::List(elements) => elements.iter().for_each(check_accessors),
        Value::Map(pairs) => {
            for (key, value) in pairs {
                check_accessors(key);
                check_accessors(value);
            }
        }
        Value::Struct(fields) => {
            let names: Vec<&str> = fields.shape().fields.iter().map(|field| field.name.as_str()).collect();
            assert_eq!(fields.require_any(&names), Ok(()));
            for name in names.into_iter().chain(["", "absent"]) {
                let fits = [
                    fields.bool(name).is_ok(),
                    fields.uint::<u64>(name).is_ok(),
                    fields.int::<i64>(name).is_ok(),
                    fields.float(name).is_ok(),
                    fields.bytes(name).is_ok(),
                    fields.string(name).is_ok(),
                    fields.list(name).is_ok(),
                    fields.map(name).is_ok(),
                    fields.nested(name).is_ok(),
                ];
                let known = fields.shape().position(name).is_some();
                let count = fits.iter().filter(|fit| **fit).count();
                // A declared field has one kind at most; a field that was not declared reads as zero of any kind.
                assert!(if known { count <= 1 } else { count == fits.len() });
                let _ = fields.uint::<u8>(name);
                let _ = fields.int::<i8>(name);
            }
            fields.iter().for_each(|(_, value)| check_accessors(value));
        }
        _ => {}
    }
}
