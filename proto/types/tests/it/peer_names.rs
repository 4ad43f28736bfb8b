//! Peer names that 2.8.1 accepts and refuses (`tests/vectors/mesh/peer_names.json`).

use serde_json::Value;
use weave_types::PeerName;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/mesh/peer_names.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn accepted_names_parse_as_in_2_8_1() {
    for case in vectors()["accepted"].as_array().unwrap() {
        let input = case["input"].as_str().unwrap();
        let name: PeerName = input.parse().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(name.to_string(), case["name"].as_str().unwrap());
        assert_eq!(name.number().to_string(), case["number"].as_str().unwrap());
        let bytes: String = name.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(bytes, case["bytes"].as_str().unwrap());
        assert_eq!(PeerName::from_bytes(name.to_bytes()), name);
    }
}

#[test]
fn refused_names_have_the_error_of_2_8_1() {
    for case in vectors()["refused"].as_array().unwrap() {
        let input = case["input"].as_str().unwrap();
        let error = input.parse::<PeerName>().expect_err(input);
        assert_eq!(error.to_string(), case["error"].as_str().unwrap());
    }
}
