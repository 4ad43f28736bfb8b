//! Reads the database of 2.8.1, from a file that 2.8.1 wrote.

use crate::support;
use proptest::prelude::*;
use weave_ipam::{Database, DatabaseError};

fn sample() -> Vec<u8> {
    std::fs::read(support::path("sample-weavedata.db")).unwrap()
}

#[test]
fn reads_a_database_of_2_8_1() {
    let database = Database::read(&sample()).unwrap();
    let keys = support::vectors("persistence.json");
    let expected = |key: &str| {
        let keys = keys["keys"].as_array().unwrap();
        keys.iter().find(|k| k["key"] == key).unwrap()["decoded"].clone()
    };
    assert_eq!(database.peer_name.unwrap().to_string(), "01:00:00:00:00:0a");
    assert_eq!(database.ring, Some(support::ring(&expected("ring"))));
    assert_eq!(database.owned, Some(support::records(&expected("ownedAddresses"))));
    let peers = database.direct_peers.clone().unwrap();
    assert_eq!(serde_json::json!(peers), expected("directPeers"));
    let loaded = database.loaded();
    assert_eq!(loaded.ring.map(|ring| ring.peer()), database.peer_name);
}

#[test]
fn other_files_are_rejected() {
    assert_eq!(Database::read(b""), Err(DatabaseError::NotBolt));
    assert_eq!(Database::read(&[0; 100_000]), Err(DatabaseError::NotBolt));
    assert_eq!(Database::read(b"#!/bin/sh"), Err(DatabaseError::NotBolt));
    // The file is truncated in the middle of the tree.
    let cut = &sample()[..8192];
    assert!(matches!(Database::read(cut), Err(DatabaseError::Damaged(_))), "{:?}", Database::read(cut));
}

#[test]
fn one_valid_meta_page_suffices() {
    let whole = Database::read(&sample()).unwrap();
    for page in 0..2 {
        let mut file = sample();
        file[page * 4096 + 16 + 60] ^= 1;
        // The other copy may belong to an earlier transaction; its content must still be consistent.
        match Database::read(&file) {
            Ok(database) => assert_eq!(database.peer_name.or(whole.peer_name), whole.peer_name),
            Err(error) => {
                assert!(matches!(error, DatabaseError::NoBucket | DatabaseError::Version(_)), "{error}")
            }
        }
    }
}

#[test]
fn other_versions_are_rejected() {
    let mut file = sample();
    // The raw value of the key `version`.
    let at = file.windows(9).rposition(|w| w == b"version\x01\x00").unwrap();
    file[at + 7] = 2;
    for copy in file.clone().windows(9).enumerate().filter(|(_, w)| *w == b"version\x01\x00").map(|(i, _)| i)
    {
        file[copy + 7] = 2;
    }
    assert_eq!(Database::read(&file), Err(DatabaseError::Version(vec![2, 0])));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_do_no_harm(changes in prop::collection::vec((0usize..32768, any::<u8>()), 1..8), len in 0usize..=32768) {
        let mut file = sample();
        for (at, byte) in changes {
            file[at] = byte;
        }
        file.truncate(len);
        let _ = Database::read(&file);
        // Most of these would be caught by checksums.
        file.resize(32768, 0);
        let _ = Database::read(&file);
    }
}
