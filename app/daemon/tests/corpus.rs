//! Replays the corpora of the fuzz targets, and mutations of them.

mod exercise;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn http_request() {
    replay::replay("http_request", 1000, exercise::http_request);
}

#[test]
fn http_form() {
    replay::replay("http_form", 1000, exercise::http_form);
}

#[test]
fn typed() {
    replay::replay("typed", 2000, exercise::typed);
}
