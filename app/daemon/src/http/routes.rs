//! Routes of the control API, with the texts and codes of 2.8.1.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use weave_api::{status, template};
use weave_host::firewall::ExposedAddress;
use weave_types::{Cidr, Instant};

use super::fd_stream::ReceivedFds;
use super::form::{parse_form, read_body};
use super::host_header::AllowedHosts;
use super::host_requests::{self, HostRoute};
use super::ipam;
use super::names;
use super::origin::Origin;
use super::picture;
use super::response::{Answer, error, event_stream, respond, text_answer, uncached};
use super::trace;
use super::view_feed::ViewFeed;
use crate::allocation::Source;
use crate::containers::Containers;
use crate::control::Control;
use crate::telemetry::log::LogLimiter;
use crate::telemetry::metrics;
use crate::telemetry::printable::printable;
use crate::trace::Tracer;

/// Refused requests that are logged at once, and the interval between further ones.
const LOGGED_REFUSALS: (u32, Duration) = (10, Duration::from_secs(10));

/// Routes that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All routes without further checks, for a socket that only root can open.
    Trusted,
    /// All routes, but no changes by others than root, and no requests that a foreign web page can cause.
    Control,
    /// Routes that only read.
    Status,
    Metrics,
}

/// State that the connections of one listener share.
pub(super) struct Site {
    control: Control,
    containers: Option<Containers>,
    tracer: Option<Arc<Tracer>>,
    access: Access,
    hosts: AllowedHosts,
    /// Longest wait for a request body.
    timeout: Duration,
    /// Limits rendering to one template at a time, because a report may be large.
    rendering: Arc<Semaphore>,
    views: Arc<ViewFeed>,
    created: std::time::Instant,
    refusal_log: Mutex<LogLimiter>,
}

impl Site {
    /// `host` is the name that the listener was configured with.
    pub(super) fn new(
        control: Control,
        containers: Option<Containers>,
        access: Access,
        host: String,
        timeout: Duration,
    ) -> Site {
        let source = if access == Access::Trusted { Source::Socket } else { Source::Tcp };
        let (burst, interval) = LOGGED_REFUSALS;
        let control = control.with_source(source);
        Site {
            views: ViewFeed::new(control.clone()),
            control,
            containers,
            tracer: None,
            access,
            hosts: AllowedHosts::from_system(host),
            timeout,
            rendering: Arc::new(Semaphore::new(1)),
            created: std::time::Instant::now(),
            refusal_log: Mutex::new(LogLimiter::new(burst, interval)),
        }
    }

    pub(super) fn with_tracer(self, tracer: Option<Arc<Tracer>>) -> Site {
        Site { tracer, ..self }
    }

    /// Logs a request that changes something. On TCP it is refused unless root sends it.
    fn authorize(&self, method: &Method, path: &str, origin: &Origin) -> Result<(), String> {
        let request = format!("{method} {}", printable(path));
        let holder = (self.access == Access::Control).then(|| origin.holder());
        let Some(holder) = holder.filter(|holder| !holder.is_root()) else {
            tracing::info!("{request}, sent by {origin}");
            return Ok(());
        };
        let mut log = self.refusal_log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = log.admit(Instant::from_origin(self.created.elapsed())) {
            let left_out =
                if left_out > 0 { format!(" ({left_out} like it not logged)") } else { String::new() };
            tracing::warn!(
                "refused {request}, sent by {origin}, {holder}: only root may change anything{left_out}"
            );
        }
        Err(format!("{request} is for root of this host only; it was sent by {holder}"))
    }

    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        fds: &ReceivedFds,
        origin: &Origin,
    ) -> Answer {
        let (head, body) = request.into_parts();
        let checked = match self.access {
            Access::Trusted => Ok(()),
            Access::Control => self.hosts.check_origin(&head.headers),
            Access::Status | Access::Metrics => self.hosts.check_host(&head.headers),
        };
        if let Err(why) = checked {
            return error(StatusCode::FORBIDDEN, &why);
        }
        let path = head.uri.path().to_owned();
        // A request for the ring starts an election.
        let changes = !matches!(head.method, Method::GET | Method::HEAD)
            || matches!(path.as_str(), "/ring" | "/consensus");
        if changes
            && matches!(self.access, Access::Trusted | Access::Control)
            && let Err(why) = self.authorize(&head.method, &path, origin)
        {
            return error(StatusCode::FORBIDDEN, &why);
        }
        let host_route = match (&self.containers, self.access) {
            (Some(containers), Access::Trusted) => HostRoute::find(&path, true).zip(Some(containers)),
            (Some(containers), Access::Control) => HostRoute::find(&path, false).zip(Some(containers)),
            _ => None,
        };
        if let Some((route, containers)) = host_route {
            return match read_body(body, self.timeout).await {
                Ok(body) => {
                    host_requests::answer(&self.control, containers, route, &head.method, &body, fds).await
                }
                Err(answer) => answer,
            };
        }
        if let Some(tracer) =
            self.tracer.as_ref().filter(|_| path == "/trace" && self.access == Access::Trusted)
        {
            return match read_body(body, self.timeout).await {
                Ok(body) => trace::answer(tracer.clone(), &head.method, &body, fds).await,
                Err(answer) => answer,
            };
        }
        if matches!(self.access, Access::Trusted | Access::Control)
            && let Some(info) = self.control.allocation()
            && let Some(resource) = ipam::Resource::find(&path)
        {
            if !resource.allows(&head.method) {
                return respond(StatusCode::METHOD_NOT_ALLOWED, None, String::new());
            }
            let mut form = parse_form(head.uri.query().unwrap_or_default());
            // The body is read in any case: until then hyper does not see that the client has gone.
            match read_body(body, self.timeout).await {
                Err(answer) => return answer,
                Ok(text) if matches!(head.method, Method::POST | Method::PUT) => {
                    form.extend(parse_form(&text));
                }
                Ok(_) => {}
            }
            let answer = ipam::answer(&self.control, info, resource, &head.method, &form).await;
            return answer.unwrap_or_else(|| error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending"));
        }
        if matches!(self.access, Access::Trusted | Access::Control)
            && let Some(info) = self.control.dns()
            && let Some(resource) = names::Resource::find(&path)
        {
            let query = parse_form(head.uri.query().unwrap_or_default());
            let form = match read_body(body, self.timeout).await {
                Err(answer) => return answer,
                Ok(text) => parse_form(&text),
            };
            let answer = names::answer(&self.control, info, resource, &head, &query, form).await;
            return answer.unwrap_or_else(|| error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending"));
        }
        let Some(route) = Route::find(&path, self.access) else {
            return error(StatusCode::NOT_FOUND, "404 page not found");
        };
        let route = route.for_method(&head.method);
        if head.method != route.method() {
            return respond(StatusCode::METHOD_NOT_ALLOWED, None, String::new());
        }
        let mut form = parse_form(head.uri.query().unwrap_or_default());
        if head.method == Method::POST {
            match read_body(body, self.timeout).await {
                Err(answer) => return answer,
                Ok(body) => form.extend(parse_form(&body)),
            }
        }
        let accept = head.headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).unwrap_or_default();
        self.act(route, accept, &form, origin)
            .await
            .unwrap_or_else(|| error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is ending"))
    }

    /// `None` once the peer has ended.
    async fn act(
        &self,
        route: Route<'_>,
        accept: &str,
        form: &[(String, String)],
        origin: &Origin,
    ) -> Option<Answer> {
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
            Route::Picture(file) => picture::answer(file),
            Route::View => {
                let view = self.control.network_view().await?;
                uncached(respond(StatusCode::OK, Some("application/json"), view.to_json()))
            }
            Route::Events => match self.views.subscribe(origin.holder()) {
                Some(events) => event_stream(events),
                None => error(StatusCode::SERVICE_UNAVAILABLE, "too many clients read events"),
            },
            Route::Connect => {
                let replace = form.iter().any(|(k, v)| k == "replace" && v == "true");
                let errors = self.control.connect(peers(), replace).await?;
                if errors.is_empty() {
                    respond(StatusCode::OK, None, String::new())
                } else {
                    error(StatusCode::BAD_REQUEST, &errors.join("\n"))
                }
            }
            Route::ProxyAddresses => match self.control.proxy() {
                Some(addresses) => text_answer(StatusCode::OK, addresses.join("\n") + "\n"),
                None => error(StatusCode::NOT_FOUND, "404 page not found"),
            },
            Route::Forget => {
                self.control.forget(peers()).await?;
                respond(StatusCode::OK, None, String::new())
            }
            Route::Expose(cidr) => {
                let exposed = match exposed(cidr, form) {
                    Ok(exposed) => exposed,
                    Err(text) => return Some(error(StatusCode::BAD_REQUEST, &text)),
                };
                done(self.control.expose(exposed).await?.map(drop), "unable to expose")
            }
            Route::Hide(cidr) => match all_of(cidr, form) {
                Ok(addresses) => done(self.control.hide(addresses).await?, "unable to hide"),
                Err(e) => error(StatusCode::BAD_REQUEST, &format!("unable to parse ip addr: {e}")),
            },
            // Without allocation there are no addresses to transfer.
            Route::LeaveAll => {
                self.control.leave().await?;
                respond(StatusCode::NO_CONTENT, None, String::new())
            }
            Route::TakeOver(_) => respond(StatusCode::OK, None, String::new()),
        })
    }
}

/// Renders in a separate thread, because it may take long. The thread of the node must not be blocked, and the blocking threads
/// of the runtime may all wait for a name server.
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

enum Route<'a> {
    Status(fn(&weave_api::Report) -> String),
    Report,
    Metrics,
    Picture(&'static picture::File),
    View,
    Events,
    ProxyAddresses,
    Connect,
    Forget,
    /// Address and prefix length with a slash between them, not parsed yet.
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
            "/picture.json" => Route::View,
            "/events" => Route::Events,
            _ if let Some(file) = picture::find(path) => Route::Picture(file),
            _ if access == Access::Status => return None,
            "/proxyaddrs" => Route::ProxyAddresses,
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

    /// Paths that have a second route for another method.
    fn for_method(self, method: &Method) -> Route<'a> {
        match self {
            Route::Expose(cidr) if method == Method::DELETE => Route::Hide(cidr),
            other => other,
        }
    }

    fn method(&self) -> Method {
        match self {
            Route::Status(_)
            | Route::Report
            | Route::Metrics
            | Route::Picture(_)
            | Route::View
            | Route::Events
            | Route::ProxyAddresses => Method::GET,
            Route::Connect | Route::Forget | Route::Expose(_) => Method::POST,
            Route::Hide(_) | Route::LeaveAll | Route::TakeOver(_) => Method::DELETE,
        }
    }
}

/// The address in the path, and those of the `also` parameters.
fn all_of(cidr: &str, form: &[(String, String)]) -> Result<Vec<Cidr>, weave_types::ParseCidrError> {
    let also = form.iter().filter(|(k, _)| k == "also").map(|(_, v)| v.as_str());
    std::iter::once(cidr).chain(also).map(str::parse).collect()
}

/// Parameters of `POST /expose/...`. The error texts are those of 2.8.1, which continued after the second error.
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
