//! Connections of clients: one request each.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use weave_http::Stream;

use super::endpoints::TokioListeners;
use super::interceptor::Interceptor;
use super::message::Reader;
use super::tunnel::{BUFFER_SIZE, LINGER_TIMEOUT};

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 1024;
/// Longest time for the handshake of TLS and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, for example when no descriptors are left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves all listeners.
pub(super) async fn accept_all(listeners: TokioListeners, interceptor: Arc<Interceptor>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let TokioListeners { unix, tcp, tls } = listeners;
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(listener) = unix {
        let (slots, interceptor) = (slots.clone(), interceptor.clone());
        tasks.spawn(async move {
            loop {
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                };
                let interceptor = interceptor.clone();
                tokio::spawn(async move {
                    serve(Box::new(stream), &interceptor).await;
                    drop(slot);
                });
            }
        });
    }
    for listener in tcp {
        let (slots, interceptor, tls) = (slots.clone(), interceptor.clone(), tls.clone());
        tasks.spawn(async move {
            loop {
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                let Ok((stream, remote)) = listener.accept().await else {
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (interceptor, tls) = (interceptor.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(Box::new(stream), &interceptor).await,
                        Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                            Ok(Ok(stream)) => serve(stream, &interceptor).await,
                            Ok(Err(e)) => tracing::info!("the proxy refused a connection from {remote}: {e}"),
                            Err(_) => tracing::info!(
                                "the proxy refused a connection from {remote}: no TLS handshake"
                            ),
                        },
                    }
                    drop(slot);
                });
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Serves the one request of a connection.
async fn serve(stream: Box<dyn Stream>, interceptor: &Interceptor) {
    let mut client = Reader::new(stream);
    let head = match tokio::time::timeout(HEAD_TIMEOUT, client.request_head()).await {
        Ok(Ok(Some(head))) => Ok(head),
        Ok(Err(e)) => Err(e.into()),
        // The client has gone, or says nothing.
        Ok(Ok(None)) | Err(_) => return,
    };
    let result = match head {
        Ok(head) => interceptor.handle(&mut client, head).await,
        Err(e) => Err(e),
    };
    if let Err(refusal) = result {
        tracing::debug!("the proxy refused a request: {}", refusal.text);
        let _ = client.stream.write_all(&refusal.to_bytes()).await;
        let _ = client.stream.shutdown().await;
        // What the client still sends would reset the connection before it has read the answer.
        let _ = tokio::time::timeout(LINGER_TIMEOUT, drain(&mut client.stream)).await;
    }
}

async fn drain(stream: &mut Box<dyn Stream>) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
}
