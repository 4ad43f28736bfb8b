//! Entry for the fuzz target, and for the test that replays its corpus: any text, redacted.

use super::redact::{Known, Redactor, marked_values};

/// A text of which the first line is a secret. Nothing panics, and neither the secret nor what is marked as one stays.
pub fn fuzz_entry(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let secret = text.lines().next().unwrap_or_default();
    let known = Known {
        secrets: [secret.to_owned()].into(),
        networks: "10.32.0.0/12".parse().into_iter().collect(),
        names: ["db1".to_owned(), "corp.example".to_owned()].into(),
        ..Known::default()
    };
    let mut redactor = Redactor::new(known);
    let once = redactor.redact(&text);
    assert!(marked_values(&once).all(|value| !value.contains("s3cret")), "{once:?}");
    // Words of a replacement are no secrets.
    let is_replacement = |word: &str| {
        ["[removed]", "host-address-", "hardware-address-", "host-name-"]
            .iter()
            .any(|own| own.contains(word) || word.contains(own))
    };
    if secret.len() >= 4 && !secret.contains(['[', ']', '-']) && !is_replacement(secret) {
        assert!(!once.contains(secret), "{once:?}");
    }
    redactor.redact(&once);
}
