//! Encoded values decode to the same values, and malformed input gives errors.

use proptest::prelude::*;
use weave_gob::{DecodeError, Decoder, Encoder, Field, Limits, StreamDecoder, Struct, Type, Value};

use crate::fuzz_entry::decode_both_ways;
use crate::support::{bytes, list, vectors};

fn types() -> impl Strategy<Value = Type> {
    let leaf = prop_oneof![
        Just(Type::Bool),
        Just(Type::Int),
        Just(Type::Uint),
        Just(Type::Float),
        Just(Type::Bytes),
        Just(Type::String),
        Just(Type::Complex),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let name = || "[a-z]{0,3}";
        prop_oneof![
            (name(), inner.clone())
                .prop_map(|(name, elem)| Type::Slice { name: name.into(), elem: Box::new(elem) }),
            (name(), inner.clone(), 0usize..3).prop_map(|(name, elem, len)| Type::Array {
                name: name.into(),
                elem: Box::new(elem),
                len
            }),
            (name(), inner.clone(), inner.clone()).prop_map(|(name, key, elem)| Type::Map {
                name: name.into(),
                key: Box::new(key),
                elem: Box::new(elem)
            }),
            (name(), prop::collection::vec(inner, 0..5)).prop_map(|(name, types)| Type::Struct {
                name: name.into(),
                fields: types
                    .into_iter()
                    .enumerate()
                    .map(|(i, ty)| Field { name: format!("F{i}").into(), ty })
                    .collect()
            }),
        ]
    })
}

fn values(ty: &Type) -> BoxedStrategy<Value> {
    // NaN is not equal to itself, so only finite numbers are generated.
    let float = || prop_oneof![-1e9f64..1e9, Just(0.0), Just(17.0)];
    match ty {
        Type::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        Type::Int => any::<i64>().prop_map(Value::Int).boxed(),
        Type::Uint => any::<u64>().prop_map(Value::Uint).boxed(),
        Type::Float => float().prop_map(Value::Float).boxed(),
        Type::Bytes => prop::collection::vec(any::<u8>(), 0..200).prop_map(Value::Bytes).boxed(),
        Type::String => ".{0,20}".prop_map(Value::String).boxed(),
        Type::Complex => (float(), float()).prop_map(|(re, im)| Value::Complex(re, im)).boxed(),
        Type::Slice { elem, .. } => prop::collection::vec(values(elem), 0..4).prop_map(Value::List).boxed(),
        Type::Array { elem, len, .. } => {
            prop::collection::vec(values(elem), *len).prop_map(Value::List).boxed()
        }
        Type::Map { key, elem, .. } => {
            prop::collection::vec((values(key), values(elem)), 0..4).prop_map(Value::Map).boxed()
        }
        Type::Struct { fields, .. } => {
            let mut strategy = Just(Vec::new()).boxed();
            for field in fields {
                let name = field.name.to_string();
                strategy = (strategy, prop::option::weighted(0.8, values(&field.ty)))
                    .prop_map(move |(mut all, value)| {
                        all.extend(value.map(|value| (name.clone(), value)));
                        all
                    })
                    .boxed();
            }
            strategy.prop_map(|fields| Value::Struct(Struct::new(fields))).boxed()
        }
    }
}

/// The value without the struct fields that are not sent because they are zero.
fn without_zero_fields(ty: &Type, value: &Value) -> Value {
    match (ty, value) {
        (Type::Slice { elem, .. } | Type::Array { elem, .. }, Value::List(v)) => {
            Value::List(v.iter().map(|v| without_zero_fields(elem, v)).collect())
        }
        (Type::Map { key, elem, .. }, Value::Map(v)) => Value::Map(
            v.iter().map(|(k, v)| (without_zero_fields(key, k), without_zero_fields(elem, v))).collect(),
        ),
        (Type::Struct { fields, .. }, Value::Struct(v)) => {
            let present = fields.iter().filter_map(|field| {
                let value = v.get(&field.name)?;
                let zero = match value {
                    Value::Bool(v) => !v,
                    Value::Int(v) => *v == 0,
                    Value::Uint(v) => *v == 0,
                    Value::Float(v) => *v == 0.0,
                    Value::Complex(re, im) => *re == 0.0 && *im == 0.0,
                    Value::Bytes(v) => v.is_empty(),
                    Value::String(v) => v.is_empty(),
                    Value::List(v) => v.is_empty() && matches!(field.ty, Type::Slice { .. }),
                    _ => false,
                };
                (!zero).then(|| (field.name.to_string(), without_zero_fields(&field.ty, value)))
            });
            Value::Struct(Struct::new(present))
        }
        _ => value.clone(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn values_round_trip(
        all in prop::collection::vec(types().prop_flat_map(|ty| { let v = values(&ty); (Just(ty), v) }), 1..4),
        piece in 1usize..40,
    ) {
        let mut encoder = Encoder::new();
        for (ty, value) in &all {
            encoder.value(ty, value);
        }
        let (decoded, error) = decode_both_ways(&encoder.finish(), Limits::default(), piece);
        prop_assert_eq!(error, None);
        let expected: Vec<Value> = all.iter().map(|(ty, value)| without_zero_fields(ty, value)).collect();
        prop_assert_eq!(decoded, expected);
    }

    #[test]
    fn random_bytes_do_not_panic(stream in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_both_ways(&stream, Limits::default(), 1);
    }
}

/// Changes, removes, repeats or inserts a few bytes in valid streams.
#[test]
fn mutated_vectors_decode_equally_in_one_piece_and_in_several() {
    let mut streams = Vec::new();
    for (file, key) in [
        ("mesh/gob_values.json", "composite"),
        ("mesh/topology_updates.json", "other_writers"),
        ("mesh/topology_updates.json", "go_written"),
        ("ipam/paxos_gossip.json", "messages"),
        ("dns/gossip_gob.json", "vectors"),
    ] {
        let all = vectors(file);
        let in_hex = list(&all[key]).iter().filter(|json| json["hex"].is_string());
        streams.extend(in_hex.map(|json| bytes(&json["hex"])));
    }
    assert!(streams.len() > 40);
    let strategy = (
        prop::sample::select(streams),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..5), 1..6),
    );
    // Low limits, so that some streams exceed them.
    let limits = Limits { max_memory: 2000, max_types: 9, max_depth: 5, ..Limits::default() };
    let config = ProptestConfig { cases: 8000, ..ProptestConfig::default() };
    let (mut good, mut bad) = (0, 0);
    let counts = std::cell::RefCell::new((&mut good, &mut bad));
    proptest::test_runner::TestRunner::new(config)
        .run(&strategy, |(mut stream, changes)| {
            for (at, byte, how) in changes {
                if stream.is_empty() {
                    break;
                }
                let at = at.index(stream.len());
                match how {
                    0 => stream[at] = byte,
                    1 => stream[at] ^= 1 << (byte % 8),
                    2 => drop(stream.remove(at)),
                    3 => stream.insert(at, byte),
                    _ => stream.extend_from_within(at..),
                }
            }
            let (_, error) = decode_both_ways(&stream, limits, 5);
            decode_both_ways(&stream, Limits::default(), 11);
            let mut counts = counts.borrow_mut();
            if error.is_some() {
                *counts.1 += 1
            } else {
                *counts.0 += 1
            }
            Ok(())
        })
        .unwrap();
    assert!(good > 100 && bad > 1000, "{good} {bad}");
}

fn stream(messages: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        weave_gob::put_bytes(&mut out, &hex::decode(message).unwrap());
    }
    out
}

fn first_error(stream: &[u8], limits: Limits) -> DecodeError {
    decode_both_ways(stream, limits, 3).1.expect("an error")
}

#[test]
fn nested_and_recursive_values_are_limited() {
    let limits = Limits::default();
    // A slice (id 65) of empty structs (id 66): a byte each on the wire.
    let mut encoder = Encoder::new();
    let ty = Type::slice(Type::structure("", []));
    let empty = Value::Struct(Struct::new::<String>([]));
    encoder.value(&ty, &Value::List(vec![empty; 9 << 20]));
    let stream_of_empty_structs = encoder.finish();
    assert!(stream_of_empty_structs.len() < limits.max_message);
    assert_eq!(Decoder::new(&stream_of_empty_structs).next(), Err(DecodeError::TooMuchMemory));
    // Skipping allocates no memory.
    let mut decoder = Decoder::new(&stream_of_empty_structs);
    let mut reader = decoder.next_reader().unwrap().unwrap();
    reader.skip(reader.id()).unwrap();

    // A slice of its own type, nested 5000 and 3 levels deep.
    let definition = "ff81020102ff820001ff820000";
    let deep = format!("ff8200{}00", "01".repeat(5000));
    assert_eq!(first_error(&stream(&[definition, &deep]), limits), DecodeError::TooDeep);
    let mut nested = Value::List(vec![]);
    for _ in 0..3 {
        nested = Value::List(vec![nested]);
    }
    assert_eq!(decode_both_ways(&stream(&[definition, "ff820001010100"]), limits, 1).0, [nested]);

    // A struct with a field of its own type.
    let definition = "ff81 03 01010178 01ff8200 0101 010161 01ff8200 0000".replace(' ', "");
    let definition = definition.as_str();
    let (values, error) =
        decode_both_ways(&stream(&[definition, "ff8201010000 00".replace(' ', "").as_str()]), limits, 2);
    assert_eq!((values.len(), error), (1, None));

    // An array of zero elements of its own type.
    let definition = "ff81010102ff820001ff820000";
    assert_eq!(decode_both_ways(&stream(&[definition, "ff820000"]), limits, 2).0, [Value::List(vec![])]);
    assert_eq!(first_error(&stream(&[definition, "ff82000100"]), limits), DecodeError::ArrayLength);
}

#[test]
fn announced_sizes_beyond_limit_or_message_are_refused() {
    let limits = Limits { max_message: 100, ..Limits::default() };
    let mut decoder = StreamDecoder::new(limits);
    decoder.push(&[0xff, 101]);
    let error = DecodeError::MessageTooLong { length: 101, limit: 100 };
    assert_eq!(decoder.next(), Err(error));
    decoder.push(&[0; 1000]);
    assert_eq!((decoder.next(), decoder.buffered()), (Err(error), 0));
    assert!(!decoder.is_complete());

    // Counts and lengths beyond the message.
    for message in ["0a00f87fffffffffffffff", "0c0005616161", "0a00f8ffffffffffffffff"] {
        assert_eq!(first_error(&stream(&[message]), limits), DecodeError::UnexpectedEof);
    }
    assert_eq!(first_error(&stream(&["0600f700000000000000000001"]), limits), DecodeError::BadInteger);
    assert_eq!(first_error(&stream(&[""]), limits), DecodeError::UnexpectedEof);
    assert_eq!(first_error(&stream(&["0601"]), limits), DecodeError::BadSingleton);
    assert_eq!(first_error(&stream(&["2000"]), limits), DecodeError::UnknownType(first_unknown("2000")));
}

fn first_unknown(message: &str) -> weave_gob::TypeId {
    match Decoder::new(&stream(&[message])).next() {
        Err(DecodeError::UnknownType(id)) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn malformed_definitions_are_refused() {
    let limits = Limits { max_types: 2, max_definition_bytes: 60, ..Limits::default() };
    let error = |messages: &[&str]| first_error(&stream(messages), limits);
    // In this order: a built-in id, two kinds, no kind, trailing bytes, an unknown kind, an id that cannot be negated.
    let reserved = ["0f020102020001 0c 0000".replace(' ', "")];
    assert!(matches!(error(&[reserved[0].as_str()]), DecodeError::BadDefinition("reserved id")));
    assert!(matches!(
        error(&["ff81020102ff820001 0c 00 02 0102ff8200 0104 0104 00 00".replace(' ', "").as_str()]),
        DecodeError::BadDefinition("more than one kind")
    ));
    assert!(matches!(error(&["ff8100"]), DecodeError::BadDefinition("no kind")));
    assert!(matches!(error(&["ff81020102ff8200010c0000ff"]), DecodeError::BadDefinition("trailing bytes")));
    assert_eq!(error(&["ff81080102ff8200010c0000"]), DecodeError::NoSuchField);
    assert_eq!(error(&["f8ffffffffffffffff00"]), DecodeError::BadInteger);
    assert_eq!(
        error(&["ff8101 0102ff8200 010c 0101 0000".replace(' ', "").as_str()]),
        DecodeError::BadDefinition("negative array length")
    );
    // A reference to a type that is not defined.
    let dangling = "ff81020102ff820001ff840000";
    assert_eq!(error(&[dangling, "ff820000"]).to_string(), "gob: unknown type id or corrupted data");
    // A definition without a value.
    assert_eq!(error(&["ff81020102ff8200010c0000"]), DecodeError::UnexpectedEof);
    // Too many definitions, and a definition that is too long.
    let define = |id: &str| format!("ff{id}020102ff820001 0c 0000").replace(' ', "");
    assert_eq!(error(&[&define("81"), &define("83"), &define("85")]), DecodeError::TooManyTypes);
    let named = format!("ff81020101{}{}01ff8200010c0000", "3c", "61".repeat(60));
    assert_eq!(error(&[&named]), DecodeError::TooManyTypes);
}

#[test]
fn values_of_types_with_a_marshaller_are_opaque() {
    // GobEncoder (field 4 of wireType), BinaryMarshaler, TextMarshaler.
    for kind in ["05", "06", "07"] {
        let definition = format!("ff81{kind}0102ff82000000");
        let (values, error) =
            decode_both_ways(&stream(&[&definition, "ff820003010203"]), Limits::default(), 1);
        assert_eq!((values, error), (vec![Value::Opaque(vec![1, 2, 3])], None));
    }
}

#[test]
fn definitions_inside_interfaces_are_accepted() {
    // []interface{} with one element: name "x", definition of id 66 as []string, then a value of that type.
    let mut inner = hex::decode("0178").unwrap();
    inner.extend(hex::decode("ff83020102ff8400010c0000").unwrap());
    inner.extend(hex::decode("09").unwrap());
    inner.extend(hex::decode("ff84 03 000100".replace(' ', "")).unwrap());
    let value = format!("ff82000200{}", hex::encode(&inner));
    let all = stream(&["ff81020102ff820001100000", &value]);
    let (values, error) = decode_both_ways(&all, Limits::default(), 4);
    assert_eq!(error, None);
    assert_eq!(values, [Value::List(vec![Value::Interface(String::new()), Value::Interface("x".into())])]);
}
