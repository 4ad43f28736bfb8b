//! The Docker API proxy, and the containers that it made wait (docs/spec/containers.md A).
//!
//! ```text
//!  docker run --> listeners --> connection --- everything else, byte for byte ---> Docker
//!                                   |                                                |
//!                              interceptor --- create, start, exec, inspect -------->|
//!                                   | attach before the answer to start              | events
//!                                   v                                                v
//!                               attacher <------- container with /w/w has started -- docker_monitor
//! ```
//!
//! The proxy has its own thread, so that large transfers do not delay the peer. Each connection carries one request: the proxy adds
//! `Connection: close`, and after the request every byte passes in both directions until both sides have ended. So nothing has to be
//! known about the answers of Docker, and no second request on a connection escapes the interception.

mod attacher;
mod connection;
mod endpoints;
mod interceptor;
mod message;
#[cfg(test)]
mod tests;
mod tunnel;

pub(crate) use attacher::{Attacher, waits};
pub(crate) use endpoints::{ProxyError, ProxyListeners, addresses};
pub use interceptor::ParsedRequest;

use std::io;
use std::sync::Arc;

use interceptor::Interceptor;
use tokio::runtime::Handle;

/// Calls that ask Docker or the kernel at the same time.
const MAX_BLOCKING: usize = 32;

/// Starts the thread of the proxy, which serves clients and attaches containers until the daemon ends. `attacher` makes the latter
/// with the runtime of the thread.
pub(crate) fn start(
    listeners: Option<ProxyListeners>,
    rewrite_inspect: bool,
    attacher: impl FnOnce(Handle) -> Attacher,
) -> io::Result<Arc<Attacher>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING)
        .build()?;
    let attacher = Arc::new(attacher(runtime.handle().clone()));
    let interceptor = Arc::new(Interceptor::new(attacher.clone(), rewrite_inspect));
    let run = move || {
        runtime.block_on(async {
            match listeners.map(ProxyListeners::into_tokio) {
                None => {}
                Some(Ok(listeners)) => connection::accept_all(listeners, interceptor).await,
                Some(Err(e)) => tracing::error!("the Docker API proxy has ended: {e}"),
            }
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("weave-proxy".to_owned()).spawn(run)?;
    Ok(attacher)
}
