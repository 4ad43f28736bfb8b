//! Replays the corpora of the fuzz targets and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn http_request() {
    replay::replay("http_request", 1000, fuzz_entry::http_request);
}

#[test]
fn http_form() {
    replay::replay("http_form", 1000, fuzz_entry::http_form);
}

#[test]
fn proxy_request() {
    replay::replay("proxy_request", 3000, fuzz_entry::proxy_request);
}

#[test]
fn typed() {
    replay::replay("typed", 2000, fuzz_entry::typed);
}
