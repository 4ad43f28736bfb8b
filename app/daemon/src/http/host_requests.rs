//! Routes of commands that change the host ([`weave_api::host_requests`]).

use std::os::fd::OwnedFd;

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::fd_stream::ReceivedFds;
use super::response::{Answer, error, respond};
use crate::containers::{Containers, HostRequest};
use crate::control::Control;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostRoute {
    Attach,
    Detach,
    Interface,
    Expose,
    Hide,
    AttachBridge,
}

impl HostRoute {
    /// `on_unix_socket`: the routes that need a file descriptor exist only there.
    pub(super) fn find(path: &str, on_unix_socket: bool) -> Option<HostRoute> {
        match path {
            "/attach" if on_unix_socket => Some(HostRoute::Attach),
            "/detach" if on_unix_socket => Some(HostRoute::Detach),
            "/interface" if on_unix_socket => Some(HostRoute::Interface),
            "/expose" => Some(HostRoute::Expose),
            "/hide" => Some(HostRoute::Hide),
            "/attach-bridge" => Some(HostRoute::AttachBridge),
            _ => None,
        }
    }
}

pub(super) async fn answer(
    control: &Control,
    containers: &Containers,
    route: HostRoute,
    method: &Method,
    body: &str,
    fds: &ReceivedFds,
) -> Answer {
    if method != Method::POST {
        return respond(StatusCode::METHOD_NOT_ALLOWED, None, String::new());
    }
    let request = match parse(route, body, fds.take()) {
        Ok(request) => request,
        Err(text) => return error(StatusCode::BAD_REQUEST, &text),
    };
    match containers.handle(control, request).await.map(|response| serde_json::to_string(&response)) {
        Ok(Ok(json)) => respond(StatusCode::OK, Some("application/json"), json),
        Ok(Err(e)) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        Err(text) => error(StatusCode::INTERNAL_SERVER_ERROR, &text),
    }
}

fn parse(route: HostRoute, body: &str, fd: Option<OwnedFd>) -> Result<HostRequest, String> {
    Ok(match route {
        HostRoute::Attach => {
            let fd = fd.ok_or_else(|| "no network namespace came with the request".to_owned())?;
            HostRequest::Attach(json(body)?, fd)
        }
        // Without a namespace the container cannot be found any more.
        HostRoute::Detach => match fd {
            Some(fd) => HostRequest::Detach(json(body)?, fd),
            None => HostRequest::Release(json(body)?),
        },
        HostRoute::Interface => HostRequest::Interface(json(body)?, fd),
        HostRoute::Expose => HostRequest::Expose(json(body)?),
        HostRoute::Hide => HostRequest::Hide(json(body)?),
        HostRoute::AttachBridge => HostRequest::AttachBridge(json(body)?),
    })
}

fn json<T: DeserializeOwned>(body: &str) -> Result<T, String> {
    serde_json::from_str(body).map_err(|e| format!("cannot read the request: {e}"))
}
