//! Responses with the headers and texts of Go's HTTP server.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

pub(crate) type Answer = Response<Full<Bytes>>;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

pub(crate) fn respond(status: StatusCode, content_type: Option<&'static str>, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    if let Some(content_type) = content_type {
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    answer
}

/// As in Go, an empty body has no content type.
pub(super) fn text_answer(status: StatusCode, body: String) -> Answer {
    let content_type = (!body.is_empty()).then_some(TEXT);
    respond(status, content_type, body)
}

pub(super) fn error(status: StatusCode, text: &str) -> Answer {
    let mut answer = respond(status, Some(TEXT), format!("{text}\n"));
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
