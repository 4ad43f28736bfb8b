//! The HTTP server of the plugin.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use weave_plugin::{Answer, Driver, Error};

use super::listeners::PluginListeners;
use super::service::Service;
use crate::http::{self, TEXT, read_body, respond};

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 1024;
/// Longest time for a request to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, for example when no descriptors are left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves all sockets until one of them fails.
pub(super) async fn serve(listeners: PluginListeners, service: Arc<Service>) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut tasks = tokio::task::JoinSet::new();
    for (driver, listener) in listeners.sockets {
        let listener = UnixListener::from_std(listener)?;
        tasks.spawn(accept(driver, listener, slots.clone(), service.clone()));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn accept(driver: Driver, listener: UnixListener, slots: Arc<Semaphore>, service: Arc<Service>) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        let service = service.clone();
        tokio::spawn(async move {
            connection(driver, stream, service).await;
            drop(slot);
        });
    }
}

/// Serves one request. A connection that Docker would use again could end just then.
async fn connection(driver: Driver, stream: UnixStream, service: Arc<Service>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let service = service.clone();
        async move {
            let (head, body) = request.into_parts();
            if head.method != Method::POST {
                return Ok(response(Error::NoSuchCall.into()));
            }
            Ok::<_, Infallible>(match read_body(body, REQUEST_TIMEOUT).await {
                Ok(body) => response(service.answer(driver, head.uri.path(), body.as_bytes()).await),
                Err(answer) => answer,
            })
        }
    });
    // An error means that Docker disconnected, or did not send HTTP.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn response(answer: Answer) -> http::Answer {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    respond(status, Some(TEXT), answer.body)
}
