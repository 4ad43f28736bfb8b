//! Responses with the headers and texts of Go's HTTP server.

use http_body_util::{Either, Full};
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

use super::view_feed::EventStream;

pub(crate) type Answer = Response<Either<Full<Bytes>, EventStream>>;

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

pub(crate) fn respond(status: StatusCode, content_type: Option<&'static str>, body: String) -> Answer {
    with_body(status, content_type, Either::Left(Full::new(Bytes::from(body))))
}

/// A stream of server-sent events.
pub(super) fn event_stream(events: EventStream) -> Answer {
    uncached(with_body(StatusCode::OK, Some("text/event-stream"), Either::Right(events)))
}

/// The answer is not stored, and is of no other type than it says.
pub(super) fn uncached(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    no_sniffing(answer)
}

fn no_sniffing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

fn with_body(
    status: StatusCode,
    content_type: Option<&'static str>,
    body: Either<Full<Bytes>, EventStream>,
) -> Answer {
    let mut answer = Response::new(body);
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
    no_sniffing(respond(status, Some(TEXT), format!("{text}\n")))
}
