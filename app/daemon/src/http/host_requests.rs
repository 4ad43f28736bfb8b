//! Routes of commands that change the host ([`weave_api::host_requests`]).

use std::os::fd::OwnedFd;

use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::fd_stream::ReceivedFds;
use super::response::{Answer, error, respond};
use super::routes::Access;
use crate::control::Control;
use crate::host::HostRequest;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostRoute {
    Attach,
    Detach,
    Expose,
    Hide,
    AttachBridge,
}

impl HostRoute {
    /// The routes that need a file descriptor exist only on the unix socket.
    pub(super) fn find(path: &str, access: Access) -> Option<HostRoute> {
        match (path, access) {
            ("/attach", Access::Trusted) => Some(HostRoute::Attach),
            ("/detach", Access::Trusted) => Some(HostRoute::Detach),
            ("/expose", Access::Trusted | Access::Control) => Some(HostRoute::Expose),
            ("/hide", Access::Trusted | Access::Control) => Some(HostRoute::Hide),
            ("/attach-bridge", Access::Trusted | Access::Control) => Some(HostRoute::AttachBridge),
            _ => None,
        }
    }
}

pub(super) async fn answer(
    control: &Control,
    route: HostRoute,
    method: &Method,
    body: &str,
    fds: &ReceivedFds,
) -> Answer {
    let Some(containers) = control.containers() else {
        return error(StatusCode::NOT_FOUND, "404 page not found");
    };
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
    let namespace = || fd.ok_or_else(|| "no network namespace came with the request".to_owned());
    Ok(match route {
        HostRoute::Attach => HostRequest::Attach(json(body)?, namespace()?),
        HostRoute::Detach => HostRequest::Detach(json(body)?, namespace()?),
        HostRoute::Expose => HostRequest::Expose(json(body)?),
        HostRoute::Hide => HostRequest::Hide(json(body)?),
        HostRoute::AttachBridge => HostRequest::AttachBridge(json(body)?),
    })
}

fn json<T: DeserializeOwned>(body: &str) -> Result<T, String> {
    serde_json::from_str(body).map_err(|e| format!("cannot read the request: {e}"))
}
