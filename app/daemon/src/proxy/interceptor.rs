//! What happens to a request: forwarded as it is, or changed before or after Docker sees it.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use weave_host::{BridgePorts, NetNs};
use weave_http::Stream;
use weave_proxy::{Create, Error, ImageCommand, Interface, Route};
use weave_runtime::ContainerInfo;

use super::attacher::{Attacher, waits};
use super::message::{Head, MessageError, Reader, RequestHead};
use super::tunnel::tunnel;
use crate::telemetry::printable::printable;

type Client = Reader<Box<dyn Stream>>;

/// An answer of the proxy itself.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    pub(super) text: String,
}

impl Refusal {
    /// As Docker answers.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let reason = match self.status {
            400 => "Bad Request",
            404 => "Not Found",
            413 => "Request Entity Too Large",
            505 => "HTTP Version Not Supported",
            _ => "Internal Server Error",
        };
        let body = format!("{}\n", serde_json::json!({ "message": self.text }));
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.status,
            body.len()
        )
        .into_bytes()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { status: error.status(), text: error.to_string() }
    }
}

/// What a client sent cannot be read.
impl From<MessageError> for Refusal {
    fn from(error: MessageError) -> Refusal {
        let status = match error {
            MessageError::Http2 => 505,
            MessageError::TooLarge(..) => 413,
            MessageError::Io(_) | MessageError::Incomplete | MessageError::Malformed(_) => 400,
        };
        Refusal { status, text: error.to_string() }
    }
}

/// Without an answer of Docker, or of this host.
fn failed(text: String) -> Refusal {
    Refusal { status: 500, text }
}

/// Docker was asked by the proxy itself, or could not be.
fn not_reached(error: weave_runtime::Error) -> Refusal {
    match &error {
        weave_runtime::Error::Http { source: weave_http::Error::Connect(_), .. } => {
            failed(format!("Could not connect to target: {error}"))
        }
        _ => failed(error.to_string()),
    }
}

fn no_answer(error: impl std::fmt::Display) -> Refusal {
    failed(format!("Could not make request to target: {error}"))
}

#[derive(Debug)]
pub(super) struct Interceptor {
    attacher: Arc<Attacher>,
    rewrite_inspect: bool,
}

impl Interceptor {
    pub(super) fn new(attacher: Arc<Attacher>, rewrite_inspect: bool) -> Interceptor {
        Interceptor { attacher, rewrite_inspect }
    }

    /// Serves a request. An error is the answer, if the client has got none.
    pub(super) async fn handle(&self, client: &mut Client, request: RequestHead) -> Result<(), Refusal> {
        let RequestHead { target, head } = request;
        match Route::find(&target) {
            Route::Create => self.create(client, head, &target).await,
            Route::Start(container) => self.start(client, head, container).await,
            Route::Exec(container) => self.exec(client, head, container).await,
            Route::Inspect(_) if self.rewrite_inspect => self.inspect(client, head, false).await,
            Route::InspectExec if self.rewrite_inspect => self.inspect(client, head, true).await,
            Route::Inspect(_) | Route::InspectExec | Route::Other => {
                let docker = self.send(head, None).await?;
                tunnel(client, docker).await;
                Ok(())
            }
        }
    }

    async fn create(&self, client: &mut Client, head: Head, target: &str) -> Result<(), Refusal> {
        let body = read_body(client, &head).await?;
        let policy = self.attacher.policy();
        let rewritten = if body.is_empty() {
            // Docker refuses it.
            body
        } else {
            match Create::read(&policy, target, &body)? {
                Err(reason) => {
                    tracing::info!("Leaving container alone because {}", printable(&reason.to_string()));
                    body
                }
                Ok(create) => {
                    if let Some(warning) = create.warning() {
                        tracing::warn!("{}", printable(warning));
                    }
                    let image = match create.image().map(str::to_owned) {
                        Some(name) => self.image(name).await?,
                        None => ImageCommand::default(),
                    };
                    create.finish(&image)?
                }
            }
        };
        let docker = self.send(head, Some(rewritten)).await?;
        tunnel(client, docker).await;
        Ok(())
    }

    /// The answer to a start is held back until the container is attached.
    async fn start(&self, client: &mut Client, head: Head, container: &str) -> Result<(), Refusal> {
        let info = self.container(container).await?;
        if !waits(&info) {
            let docker = self.send(head, None).await?;
            tunnel(client, docker).await;
            return Ok(());
        }
        let mut body = read_body(client, &head).await?;
        if !body.is_empty()
            && head.header("Content-Type") == Some("application/json")
            && let Some(rewritten) =
                weave_proxy::rewrite_start(&self.attacher.policy(), &body, &info.hostname)?
        {
            body = rewritten;
        }
        let expected = self.attacher.expect(&info.id);
        let answer = async {
            let mut docker = self.send(head, Some(body)).await?;
            let answer = docker.response_head().await.map_err(no_answer)?;
            Ok::<_, Refusal>((docker, answer))
        };
        let (docker, answer) = match answer.await {
            Ok(answer) => answer,
            Err(refusal) => {
                drop(expected);
                // It may have started nevertheless.
                self.attacher.started(&info.id);
                return Err(refusal);
            }
        };
        if (200..300).contains(&answer.status) {
            self.attacher.attach_for_client(&info).await.map_err(failed)?;
        }
        drop(expected);
        let _ = client.stream.write_all(&answer.head.to_bytes()).await;
        tunnel(client, docker).await;
        Ok(())
    }

    async fn exec(&self, client: &mut Client, head: Head, container: &str) -> Result<(), Refusal> {
        let info = self.container(container).await?;
        let has_program =
            info.mounts.iter().any(|(_, inside)| inside.as_os_str() == weave_proxy::WAIT_DIRECTORY);
        let attached = self.attacher.policy().addresses(&info.network_mode, &info.env).is_ok();
        if !(has_program && attached) {
            let docker = self.send(head, None).await?;
            tunnel(client, docker).await;
            return Ok(());
        }
        let mut body = read_body(client, &head).await?;
        if !body.is_empty() {
            body = weave_proxy::rewrite_exec(&body)?;
        }
        let docker = self.send(head, Some(body)).await?;
        tunnel(client, docker).await;
        Ok(())
    }

    /// Shows our interface in the answer. If that cannot be done, the answer passes as it is.
    async fn inspect(&self, client: &mut Client, head: Head, is_exec: bool) -> Result<(), Refusal> {
        let mut docker = self.send(head, None).await?;
        let mut answer = docker.response_head().await.map_err(no_answer)?;
        if answer.status != 200 {
            let _ = client.stream.write_all(&answer.head.to_bytes()).await;
            tunnel(client, docker).await;
            return Ok(());
        }
        let body = docker.response_body(&answer.head).await.map_err(no_answer)?;
        let bridge = self.attacher.bridge().to_owned();
        let rewritten = blocking(move || show_interface(&bridge, body, is_exec)).await?;
        answer.head.set_length(rewritten.len());
        let message = [answer.head.to_bytes(), rewritten].concat();
        let _ = client.stream.write_all(&message).await;
        let _ = client.stream.shutdown().await;
        Ok(())
    }

    /// Sends a request to Docker. Without `body`, that of the client follows.
    async fn send(&self, head: Head, body: Option<Vec<u8>>) -> Result<Reader<Box<dyn Stream>>, Refusal> {
        let endpoint = self.attacher.docker().endpoint().map_err(not_reached)?;
        let connected = endpoint.connect().await;
        let mut docker = connected.map_err(|source| {
            not_reached(weave_runtime::Error::Http { endpoint: endpoint.to_string(), source })
        })?;
        docker.write_all(&message_to_docker(head, body)).await.map_err(no_answer)?;
        docker.flush().await.map_err(no_answer)?;
        Ok(Reader::new(docker))
    }

    async fn container(&self, name: &str) -> Result<ContainerInfo, Refusal> {
        let (docker, asked) = (self.attacher.docker().clone(), name.to_owned());
        let found = blocking(move || docker.inspect(&asked)).await?.map_err(not_reached)?;
        Ok(found.ok_or_else(|| Error::NoSuchContainer(name.to_owned()))?)
    }

    async fn image(&self, name: String) -> Result<ImageCommand, Refusal> {
        let (docker, asked) = (self.attacher.docker().clone(), name.clone());
        let found = blocking(move || docker.inspect_image(&asked)).await?.map_err(not_reached)?;
        let image = found.ok_or(Error::NoSuchImage(name))?;
        Ok(ImageCommand { entrypoint: image.entrypoint, command: image.cmd })
    }
}

/// Reads a body that is to be changed.
async fn read_body(client: &mut Client, head: &Head) -> Result<Vec<u8>, Refusal> {
    if head.expects_continue() {
        client.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.map_err(MessageError::Io)?;
        client.stream.flush().await.map_err(MessageError::Io)?;
    }
    Ok(client.request_body(head).await?)
}

/// What Docker gets. Without `body`, that of the client follows.
fn message_to_docker(mut head: Head, body: Option<Vec<u8>>) -> Vec<u8> {
    for_one_request(&mut head);
    if let Some(body) = &body {
        if !body.is_empty() || head.header("Content-Length").is_some() {
            head.set_length(body.len());
        } else {
            head.remove(&["Transfer-Encoding", "Trailer", "Expect"]);
        }
    }
    [head.to_bytes(), body.unwrap_or_default()].concat()
}

/// A request as the proxy understands it, for tests of its parser.
#[derive(Debug)]
pub struct ParsedRequest {
    /// As in the first line.
    pub target: String,
    /// The whole body.
    pub body: Vec<u8>,
    /// What Docker gets if the body is read and not changed.
    pub forwarded: Vec<u8>,
}

impl ParsedRequest {
    /// Reads the first request of a connection; `None` if it is refused.
    pub async fn read(bytes: &[u8]) -> Option<ParsedRequest> {
        let mut client = Reader::new(bytes);
        let RequestHead { target, head } = client.request_head().await.ok()??;
        let body = client.request_body(&head).await.ok()?;
        let forwarded = message_to_docker(head, Some(body.clone()));
        Some(ParsedRequest { target, body, forwarded })
    }
}

/// Makes Docker close the connection after the answer, unless the connection then serves another protocol.
fn for_one_request(head: &mut Head) {
    let upgrade = head.header("Upgrade").is_some();
    // Without its settings, `Upgrade: h2c` begins no HTTP/2 connection (RFC 7540 3.2), whose further requests would not be seen here. BuildKit's
    // sessions, which use the same name for a connection of their own, have none.
    head.remove(&["Connection", "Keep-Alive", "Proxy-Connection", "HTTP2-Settings"]);
    head.add("Connection", if upgrade { "Upgrade, close" } else { "close" });
    // Old clients send the path of Docker's socket, which Go's server takes for malformed.
    if head.header("Host").is_some_and(|host| host.starts_with('/')) {
        head.remove(&["Host"]);
        head.add("Host", "localhost");
    }
}

/// Runs work that blocks in a thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|e| failed(e.to_string()))
}

fn show_interface(bridge: &str, body: Vec<u8>, is_exec: bool) -> Vec<u8> {
    let Some(interface) = find_interface(bridge, &body, is_exec) else { return body };
    let rewritten = if is_exec {
        weave_proxy::rewrite_exec_inspect(&body, &interface)
    } else {
        weave_proxy::rewrite_inspect(&body, &interface)
    };
    rewritten.unwrap_or_else(|e| {
        tracing::warn!("the description of a container is not rewritten: {e}");
        body
    })
}

/// The first interface of the described container in our network.
fn find_interface(bridge: &str, body: &[u8], is_exec: bool) -> Option<Interface> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Exec<'a> {
        #[serde(borrow)]
        container: &'a serde_json::value::RawValue,
    }
    let container = if is_exec {
        serde_json::from_slice::<Exec<'_>>(body).ok()?.container.get().as_bytes()
    } else {
        body
    };
    let pid = ContainerInfo::from_json(container).ok()?.pid?;
    let ns = NetNs::of_process(pid).ok()?;
    let interfaces = BridgePorts::scan(bridge).and_then(|mut ports| ports.in_namespace(&ns));
    let interfaces = interfaces
        .inspect_err(|e| tracing::warn!("the description of a container is not rewritten: {e}"))
        .ok()?;
    let first = interfaces.first()?;
    let address = first.addresses.first()?;
    Some(Interface {
        mac: first.mac.to_string(),
        address: address.addr().to_string(),
        prefix: address.prefix(),
    })
}
