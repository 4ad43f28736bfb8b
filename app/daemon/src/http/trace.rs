//! `POST /trace` ([`weave_api::trace`]).

use std::sync::Arc;

use hyper::{Method, StatusCode};
use tokio::sync::oneshot;
use weave_host::NetNs;

use super::fd_stream::ReceivedFds;
use super::response::{Answer, error, respond};
use crate::trace::Tracer;

pub(super) async fn answer(tracer: Arc<Tracer>, method: &Method, body: &str, fds: &ReceivedFds) -> Answer {
    if method != Method::POST {
        return respond(StatusCode::METHOD_NOT_ALLOWED, None, String::new());
    }
    let request = match serde_json::from_str(body) {
        Ok(request) => request,
        Err(e) => return error(StatusCode::BAD_REQUEST, &format!("cannot read the request: {e}")),
    };
    let ns = match fds.take().map(NetNs::from_fd).transpose() {
        Ok(ns) => ns,
        Err(e) => return error(StatusCode::BAD_REQUEST, &e.to_string()),
    };
    let (answer, result) = oneshot::channel();
    // Sockets and netlink block.
    let thread = std::thread::Builder::new().name("weave-trace-run".to_owned());
    let started = thread.spawn(move || {
        let _ = answer.send(tracer.trace(&request, ns));
    });
    if let Err(e) = started {
        return error(StatusCode::INTERNAL_SERVER_ERROR, &format!("cannot start a thread: {e}"));
    }
    let result = result.await.unwrap_or_else(|_| Err("the trace has ended without a result".to_owned()));
    match result.and_then(|report| serde_json::to_string(&report).map_err(|e| e.to_string())) {
        Ok(json) => respond(StatusCode::OK, Some("application/json"), json),
        Err(text) => error(StatusCode::INTERNAL_SERVER_ERROR, &text),
    }
}
