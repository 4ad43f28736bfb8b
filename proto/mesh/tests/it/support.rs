use serde_json::Value as Json;

/// A file of `tests/vectors/mesh`.
pub(crate) fn vectors(name: &str) -> Json {
    let path = format!("{}/../../tests/vectors/mesh/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn list(json: &Json) -> &[Json] {
    json.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text(json: &Json) -> &str {
    json.as_str().unwrap()
}

pub(crate) fn bytes(json: &Json) -> Vec<u8> {
    hex::decode(text(json)).unwrap()
}
