//! The HTTP control API (docs/spec/cli.md 7): routes, texts and codes of 2.8.1, with bounds on what a client may cost.
//!
//! ```text
//! unix socket, root only       all routes
//! 127.0.0.1:6784 (control)     all routes; requests that a browser can be tricked into are refused
//! 127.0.0.1:6782 (status)      GET /status..., /report, /metrics; only under a name that can be this machine's
//! --metrics-addr               GET /metrics
//! ```

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use weave_api::{status, template};
use weave_host::firewall::ExposedAddress;
use weave_types::Cidr;

use crate::config::ListenAddr;
use crate::control::Control;
use crate::impatient::Impatient;
use crate::metrics;
use crate::own_names::OwnNames;

/// What one listener can be made to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at one time; more wait.
    pub connections: usize,
    /// Time for a request to arrive, and for each part of an answer to be taken.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 256 + crate::allocation::MAX_WAITING, patience: Duration::from_secs(10) }
    }
}

mod ipam;
#[cfg(test)]
mod ipam_tests;

/// Largest request body; the longest list of peers is far below.
const MAX_BODY: usize = 1 << 20;
/// Pause after a failed accept (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener lets its clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything; whoever gets here has the rights (a socket that only root can open).
    Trusted,
    /// Everything but what a browser could be tricked into.
    Control,
    /// Looking only.
    Status,
    /// Nothing but metrics.
    Metrics,
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    access: Access,
    /// The host that the listener was given, which requests may name.
    host: String,
    limits: Limits,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, #[expect(dead_code, reason = "removes the file when dropped")] SocketFile),
    Tcp(TcpListener),
}

/// The file of a unix socket goes with its listener, unless another one has put its own there meanwhile.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> SocketFile {
        SocketFile { path: path.to_owned(), id: file_id(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Listener {
    /// Binds. A stale unix socket is replaced; a new one is for root only.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn bind(addr: &ListenAddr, access: Access) -> io::Result<Listener> {
        match addr {
            ListenAddr::Unix(path) => Listener::bind_unix(path, access),
            ListenAddr::Tcp { host, port } => {
                let name = if host.is_empty() { "0.0.0.0" } else { host };
                weave_host::faults::io_point(&format_args!("listening on {addr}"))?;
                let listener = TcpListener::bind((name, *port)).await?;
                let limits = Limits::default();
                Ok(Listener { socket: Socket::Tcp(listener), access, host: host.clone(), limits })
            }
        }
    }

    fn bind_unix(path: &Path, access: Access) -> io::Result<Listener> {
        weave_host::faults::io_point(&"removing a stale control socket")?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        weave_host::faults::io_point(&"making the control socket")?;
        // Made under another name and moved once its mode is right: nobody connects in between.
        let hidden = path.with_extension("new");
        let _ = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        // Goes if something fails before it has its name.
        let _unfinished = SocketFile::new(&hidden);
        weave_host::faults::io_point(&"moving the control socket")?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        weave_host::faults::io_point(&"naming the control socket")?;
        std::fs::rename(&hidden, path)?;
        let socket = Socket::Unix(listener, SocketFile::new(path));
        Ok(Listener { socket, access, host: String::new(), limits: Limits::default() })
    }

    /// The same with other limits.
    pub fn with_limits(self, limits: Limits) -> Listener {
        Listener { limits, ..self }
    }

    /// The TCP address it is bound to.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// Answers until the future is dropped.
    pub async fn serve(self, control: Control) {
        let rendering = Arc::new(Semaphore::new(1));
        let (host, limits, names) = (self.host, self.limits, OwnNames::of_this_machine());
        let site = Arc::new(Site { control, access: self.access, host, names, limits, rendering });
        let slots = Arc::new(Semaphore::new(limits.connections));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let site = site.clone();
            match &self.socket {
                Socket::Unix(listener, _) => match listener.accept().await {
                    Ok((stream, _)) => {
                        tokio::spawn(async move {
                            connection(stream, site).await;
                            drop(slot);
                        });
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
                Socket::Tcp(listener) => match listener.accept().await {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        tokio::spawn(async move {
                            connection(stream, site).await;
                            drop(slot);
                        });
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }
}

/// Answers on a connection that somebody else accepted, as [`Listener::serve`] does on its own. `host` is the name that
/// requests may give this listener.
pub async fn serve_connection<S>(stream: S, control: Control, access: Access, host: String)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let rendering = Arc::new(Semaphore::new(1));
    let (limits, names) = (Limits::default(), OwnNames::of_this_machine());
    connection(stream, Arc::new(Site { control, access, host, names, limits, rendering })).await;
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, site: Arc<Site>) {
    let patience = site.limits.patience;
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request).await) }
    });
    // A client that breaks off or stalls is its own problem.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(Impatient::new(stream, patience)), service)
        .await;
}

struct Site {
    control: Control,
    access: Access,
    host: String,
    names: OwnNames,
    limits: Limits,
    /// One template at a time: a report may be large.
    rendering: Arc<Semaphore>,
}

type Answer = Response<Full<Bytes>>;

impl Site {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let checked = match self.access {
            Access::Trusted => Ok(()),
            Access::Control => self.check_browser(&head.headers),
            Access::Status | Access::Metrics => self.check_name(&head.headers),
        };
        if let Err(why) = checked {
            return error(StatusCode::FORBIDDEN, &why);
        }
        let path = head.uri.path().to_owned();
        if matches!(self.access, Access::Trusted | Access::Control)
            && let Some(info) = self.control.allocation()
            && let Some(resource) = ipam::Resource::find(&path)
        {
            let answer = self.allocation(info, resource, &head, body).await;
            return answer.unwrap_or_else(|| error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending"));
        }
        let Some(route) = Route::find(&path, self.access) else {
            return error(StatusCode::NOT_FOUND, "404 page not found");
        };
        let route = route.under(&head.method);
        if head.method != route.method() {
            return respond(StatusCode::METHOD_NOT_ALLOWED, None, String::new());
        }
        let mut form = parse_form(head.uri.query().unwrap_or_default());
        if head.method == Method::POST {
            match self.body(body).await {
                Err(answer) => return answer,
                Ok(body) => form.extend(parse_form(&body)),
            }
        }
        let accept = head.headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
        self.act(route, accept, &form)
            .await
            .unwrap_or_else(|| error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending"))
    }

    /// The body of a request, or what to answer if it is none.
    async fn body(&self, body: Incoming) -> Result<String, Answer> {
        let body = tokio::time::timeout(self.limits.patience, Limited::new(body, MAX_BODY).collect()).await;
        match body {
            Err(_) => Err(error(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
            Ok(Err(_)) => Err(error(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large")),
            Ok(Ok(body)) => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
        }
    }

    /// `None` once the peer has ended.
    async fn act(&self, route: Route<'_>, accept: &str, form: &[(String, String)]) -> Option<Answer> {
        let peers = || form.iter().filter(|(k, _)| k == "peer").map(|(_, v)| v.clone()).collect::<Vec<_>>();
        Some(match route {
            Route::Status(page) => {
                let report = self.control.report().await?;
                let text = page(&report);
                text_answer(if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
            }
            Route::Report if accept == "application/json" => {
                let report = self.control.report().await?;
                respond(StatusCode::OK, Some("application/json"), report.to_json())
            }
            Route::Report => {
                let formats: Vec<_> = form.iter().filter(|(k, _)| k == "format").collect();
                let [(_, format)] = formats.as_slice() else {
                    return Some(error(StatusCode::BAD_REQUEST, "error: must supply one format parameter"));
                };
                match template::Template::parse(format) {
                    Err(e) => error(StatusCode::BAD_REQUEST, &e.to_string()),
                    Ok(template) => {
                        let report = self.control.report().await?;
                        let turn = self.rendering.clone().acquire_owned().await.ok()?;
                        match render(template, report, turn).await? {
                            Ok(text) => text_answer(StatusCode::OK, text),
                            Err(_) => {
                                error(StatusCode::INTERNAL_SERVER_ERROR, "error during template execution")
                            }
                        }
                    }
                }
            }
            Route::Metrics => {
                let snapshot = self.control.metrics().await?;
                let open = accept.contains("application/openmetrics-text");
                let content_type = if open { metrics::OPEN_METRICS_TYPE } else { metrics::TEXT_TYPE };
                respond(StatusCode::OK, Some(content_type), metrics::page(&snapshot, open))
            }
            Route::Connect => {
                let replace = form.iter().any(|(k, v)| k == "replace" && v == "true");
                let errors = self.control.connect(peers(), replace).await?;
                if errors.is_empty() {
                    respond(StatusCode::OK, None, String::new())
                } else {
                    error(StatusCode::BAD_REQUEST, &errors.join("\n"))
                }
            }
            Route::Forget => {
                self.control.forget(peers()).await?;
                respond(StatusCode::OK, None, String::new())
            }
            Route::Expose(cidr) => {
                let exposed = match exposed(cidr, form) {
                    Ok(exposed) => exposed,
                    Err(text) => return Some(error(StatusCode::BAD_REQUEST, &text)),
                };
                done(self.control.expose(exposed).await?, "unable to expose")
            }
            Route::Hide(cidr) => match all_of(cidr, form) {
                Ok(addresses) => done(self.control.hide(addresses).await?, "unable to hide"),
                Err(e) => error(StatusCode::BAD_REQUEST, &format!("unable to parse ip addr: {e}")),
            },
            // There is no address space to hand over without allocation.
            Route::LeaveAll => respond(StatusCode::NO_CONTENT, None, String::new()),
            Route::TakeOver(_) => respond(StatusCode::OK, None, String::new()),
        })
    }

    /// Reading takes more than a request: the answer must belong to the page that asks. So only a page whose own name was
    /// made to lead here could read, and no `Origin` is needed to tell.
    fn check_name(&self, headers: &header::HeaderMap) -> Result<(), String> {
        let Some(value) = headers.get(header::HOST) else { return Ok(()) };
        let authority = String::from_utf8_lossy(value.as_bytes());
        let host = host_of(&authority);
        if self.names.admit(host) || (!self.host.is_empty() && host.eq_ignore_ascii_case(&self.host)) {
            return Ok(());
        }
        Err(format!("host {authority:?} is neither this machine nor configured; use its address"))
    }

    /// A page of a foreign site can make the browser of this machine send requests here. It cannot choose the `Host` of
    /// a name that leads here (DNS rebinding), nor leave out `Origin` (docs/spec/cli.md 7, security posture). Addresses cannot
    /// be rebound, so any of them will do.
    fn check_browser(&self, headers: &header::HeaderMap) -> Result<(), String> {
        let ours = |authority: &str| {
            let host = host_of(authority);
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<IpAddr>().is_ok()
                || (!self.host.is_empty() && host.eq_ignore_ascii_case(&self.host))
        };
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        if let Some(host) = headers.get(header::HOST).map(text)
            && !ours(&host)
        {
            return Err(format!("host {host:?} is neither this machine nor configured"));
        }
        if let Some(origin) = headers.get(header::ORIGIN).map(text) {
            let authority = origin.split_once("://").map(|(_, a)| a);
            let local = authority.is_some_and(|a| {
                let host = host_of(a);
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
                    || (!self.host.is_empty() && host.eq_ignore_ascii_case(&self.host))
            });
            if !local {
                return Err(format!("origin {origin:?} is neither this machine nor configured"));
            }
        }
        Ok(())
    }
}

/// In a thread of its own: it may take a while, the peer lives in this one, and those of the runtime may all wait for a
/// name server.
async fn render(
    template: template::Template,
    report: weave_api::Report,
    turn: OwnedSemaphorePermit,
) -> Option<Result<String, template::RenderError>> {
    let (answer, result) = oneshot::channel();
    let work = move || {
        let _ = answer.send(template.render(&report));
        drop(turn);
    };
    std::thread::Builder::new().name("weave-report".to_owned()).spawn(work).ok()?;
    result.await.ok()
}

/// The host of `host:port`, `[v6]:port`, `host`.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.contains(':') => host,
        _ => authority,
    }
}

enum Route<'a> {
    Status(fn(&weave_api::Report) -> String),
    Report,
    Metrics,
    Connect,
    Forget,
    /// Address and prefix length with a slash between them, not looked at yet.
    Expose(&'a str),
    Hide(&'a str),
    LeaveAll,
    TakeOver(#[expect(dead_code, reason = "needs address allocation")] &'a str),
}

impl<'a> Route<'a> {
    fn find(path: &'a str, access: Access) -> Option<Route<'a>> {
        Some(match path {
            "/metrics" => Route::Metrics,
            _ if access == Access::Metrics => return None,
            "/status" => Route::Status(status::summary),
            "/status/targets" => Route::Status(status::targets),
            "/status/connections" => Route::Status(status::connections),
            "/status/peers" => Route::Status(status::peers),
            // Empty while the service is off; 2.8.1 failed with 500.
            "/status/dns" => Route::Status(status::dns),
            "/status/ipam" => Route::Status(status::ipam),
            "/report" => Route::Report,
            _ if access == Access::Status => return None,
            "/connect" => Route::Connect,
            "/forget" => Route::Forget,
            "/peer" => Route::LeaveAll,
            _ if path.starts_with("/expose/") => {
                let cidr = path.strip_prefix("/expose/")?;
                let (ip, length) = cidr.split_once('/')?;
                (!ip.is_empty() && !length.is_empty() && !length.contains('/'))
                    .then_some(Route::Expose(cidr))?
            }
            _ => {
                let id = path.strip_prefix("/peer/")?;
                (!id.is_empty() && !id.contains('/')).then_some(Route::TakeOver(id))?
            }
        })
    }

    /// One path, two routes.
    fn under(self, method: &Method) -> Route<'a> {
        match self {
            Route::Expose(cidr) if method == Method::DELETE => Route::Hide(cidr),
            other => other,
        }
    }

    fn method(&self) -> Method {
        match self {
            Route::Status(_) | Route::Report | Route::Metrics => Method::GET,
            Route::Connect | Route::Forget | Route::Expose(_) => Method::POST,
            Route::Hide(_) | Route::LeaveAll | Route::TakeOver(_) => Method::DELETE,
        }
    }
}

/// The address in the path, and those that are to be treated along with it, all or none (`also`).
fn all_of(cidr: &str, form: &[(String, String)]) -> Result<Vec<Cidr>, weave_types::ParseCidrError> {
    let also = form.iter().filter(|(k, _)| k == "also").map(|(_, v)| v.as_str());
    std::iter::once(cidr).chain(also).map(str::parse).collect()
}

/// What `POST /expose/...` asks for. Texts of 2.8.1, which went on after the second.
fn exposed(cidr: &str, form: &[(String, String)]) -> Result<Vec<ExposedAddress>, String> {
    let addresses = all_of(cidr, form).map_err(|e| format!("unable to parse ip addr: {e}"))?;
    let skip = form.iter().find(|(k, _)| k == "skipNAT").map_or("", |(_, v)| v.as_str());
    let skip = match skip {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        other => {
            return Err(format!(
                "unable to parse skipNAT option: strconv.ParseBool: parsing {other:?}: invalid syntax"
            ));
        }
    };
    Ok(addresses.into_iter().map(|address| ExposedAddress { address, masquerade: !skip }).collect())
}

fn done(result: Result<(), String>, failed: &str) -> Answer {
    match result {
        Ok(()) => respond(StatusCode::NO_CONTENT, None, String::new()),
        Err(text) => error(StatusCode::INTERNAL_SERVER_ERROR, &format!("{failed}: {text}")),
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn respond(status: StatusCode, content_type: Option<&'static str>, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    if let Some(content_type) = content_type {
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    answer
}

/// Go names a content type only if there is content.
fn text_answer(status: StatusCode, body: String) -> Answer {
    let content_type = (!body.is_empty()).then_some(TEXT);
    respond(status, content_type, body)
}

fn error(status: StatusCode, text: &str) -> Answer {
    let mut answer = respond(status, Some(TEXT), format!("{text}\n"));
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// `application/x-www-form-urlencoded`. Bytes that are no escape stand for themselves.
fn parse_form(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        match (b, digits.and_then(|d| std::str::from_utf8(d).ok())) {
            (b'+', _) => out.push(b' '),
            (b'%', Some(digits)) => {
                out.push(u8::from_str_radix(digits, 16).unwrap_or(b'%'));
                at += 2;
            }
            _ => out.push(b),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(
            parse_form("peer=h1%3A6783&peer=h+2&replace=true&x&=&%zz=%4"),
            [
                pair("peer", "h1:6783"),
                pair("peer", "h 2"),
                pair("replace", "true"),
                pair("x", ""),
                pair("", ""),
                pair("%zz", "%4")
            ]
        );
        assert_eq!(parse_form(""), []);
    }

    #[test]
    fn hosts() {
        for (authority, host) in [
            ("localhost:6784", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]:6784", "::1"),
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("evil.example:80", "evil.example"),
            ("", ""),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }
}
