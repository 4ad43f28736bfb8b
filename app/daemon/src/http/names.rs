//! Routes of weaveDNS (docs/spec/dns.md 12), with the texts and status codes of 2.8.1 (`http_api.json`).

use std::net::Ipv4Addr;

use hyper::http::request::Parts;
use hyper::{Method, StatusCode, header};
use serde::Serialize;
use tokio::sync::oneshot;
use weave_dns::{Filter, HostName};
use weave_runtime::Docker;

use super::form::decode;
use super::response::{Answer, TEXT, error, respond, text_answer};
use crate::control::{Control, DnsInfo};
use crate::names::{NameChange, may_run};

/// Longest id of a container that other peers keep.
const MAX_ID: usize = 256;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// `/domain`
    Domain,
    /// `/dns-address`
    Address,
    /// `/dns-address-port`
    AddressPort,
    /// `/name`, `/name/{container}`, `/name/{container}/{ip}`
    Name(Option<String>, Option<String>),
}

impl Resource {
    /// Decodes the parts after splitting the path, so that an id may contain a slash.
    pub(super) fn find(path: &str) -> Option<Resource> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let part = |part: &str| Some(decode(&part.replace('+', "%2B"))).filter(|part| !part.is_empty());
        Some(match parts.as_slice() {
            ["domain"] => Resource::Domain,
            ["dns-address"] => Resource::Address,
            ["dns-address-port"] => Resource::AddressPort,
            ["name"] => Resource::Name(None, None),
            ["name", id] => Resource::Name(Some(part(id)?), None),
            ["name", id, ip] => Resource::Name(Some(part(id)?), Some(part(ip)?)),
            _ => return None,
        })
    }
}

/// An element of the list that `GET /name` answers.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    #[serde(rename = "ContainerID")]
    container_id: String,
    origin: u64,
    addr: Ipv4Addr,
    hostname: String,
    version: i64,
    tombstone: i64,
}

/// `None` once the peer has ended. Only the query names what `DELETE` removes, as in 2.8.1.
pub(super) async fn answer(
    control: &Control,
    info: &DnsInfo,
    resource: Resource,
    head: &Parts,
    query: &[(String, String)],
    form: Vec<(String, String)>,
) -> Option<Answer> {
    let get = head.method == Method::GET;
    Some(match resource {
        Resource::Domain if get => text_answer(StatusCode::OK, info.domain.to_string()),
        Resource::Address if get => address(info, |addr| addr.ip().to_string()),
        Resource::AddressPort if get => address(info, |addr| addr.to_string()),
        Resource::Name(None, None) if get && accepts_json(head) => list(control).await?,
        Resource::Name(Some(container), Some(ip)) if head.method == Method::PUT => {
            let parameters = [form.as_slice(), query].concat();
            put(control, info, container, &ip, &parameters).await?
        }
        Resource::Name(container, ip) if head.method == Method::DELETE => {
            delete(control, container, ip, query).await?
        }
        _ => respond(StatusCode::METHOD_NOT_ALLOWED, None, String::new()),
    })
}

fn accepts_json(head: &Parts) -> bool {
    head.headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json")
}

fn address(info: &DnsInfo, show: impl Fn(std::net::SocketAddr) -> String) -> Answer {
    match info.listen.first() {
        Some(addr) => text_answer(StatusCode::OK, show(addr)),
        None => error(
            StatusCode::SERVICE_UNAVAILABLE,
            "weaveDNS has no address to listen on yet; 'weave expose' gives it one",
        ),
    }
}

async fn list(control: &Control) -> Option<Answer> {
    let rows: Vec<Row> = control
        .names()
        .await?
        .into_iter()
        .map(|entry| Row {
            container_id: entry.container.to_string(),
            origin: entry.origin.number(),
            addr: entry.addr,
            hostname: entry.hostname.to_string(),
            version: entry.version,
            tombstone: entry.tombstone,
        })
        .collect();
    let json = serde_json::to_string(&rows).unwrap_or_default() + "\n";
    Some(respond(StatusCode::OK, Some(TEXT), json))
}

fn parse_ip(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("invalid IP Address: {text}"))
}

fn parameter<'a>(form: &'a [(String, String)], name: &str) -> Option<&'a str> {
    form.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
}

/// As in 2.8.1, a name outside of the domain is no error.
async fn put(
    control: &Control,
    info: &DnsInfo,
    container: String,
    ip: &str,
    form: &[(String, String)],
) -> Option<Answer> {
    let addr = match parse_ip(ip) {
        Ok(addr) => addr,
        Err(text) => return Some(error(StatusCode::BAD_REQUEST, &text)),
    };
    let done = || respond(StatusCode::NO_CONTENT, None, String::new());
    if container.len() > MAX_ID {
        return Some(error(StatusCode::BAD_REQUEST, "the container's id is too long"));
    }
    let Some(name) = parameter(form, "fqdn") else { return Some(done()) };
    let name = match HostName::parse(name) {
        Ok(name) => name,
        Err(e) => return Some(error(StatusCode::BAD_REQUEST, &e.to_string())),
    };
    if !name.is_within(&info.domain) {
        tracing::info!("{name} is not registered, it is not in {}", info.domain);
        return Some(done());
    }
    let change = NameChange::Add { name: name.clone(), container: container.clone(), addrs: vec![addr] };
    control.change_names(change).await?;
    if parameter(form, "check-alive") == Some("true") && !runs(info.docker.clone(), &container).await {
        tracing::info!("{name} is removed again, {container} does not run");
        let filter = Filter { container: Some(container), addr: Some(addr), name: Some(name) };
        control.change_names(NameChange::Remove(filter)).await?;
    }
    Some(done())
}

/// Asks in a thread of its own, because Docker may answer late.
async fn runs(docker: Option<Docker>, container: &str) -> bool {
    let container = container.to_owned();
    let (answer, result) = oneshot::channel();
    let ask = move || {
        let _ = answer.send(may_run(docker.as_ref(), &container));
    };
    let started = std::thread::Builder::new().name("weave-names".to_owned()).spawn(ask);
    started.is_err() || result.await.unwrap_or(true)
}

async fn delete(
    control: &Control,
    container: Option<String>,
    ip: Option<String>,
    query: &[(String, String)],
) -> Option<Answer> {
    let addr = match ip.as_deref().map(parse_ip).transpose() {
        Ok(addr) => addr,
        Err(text) => return Some(error(StatusCode::BAD_REQUEST, &text)),
    };
    let name = match parameter(query, "fqdn").filter(|name| *name != "*").map(HostName::parse).transpose() {
        Ok(name) => name,
        Err(e) => return Some(error(StatusCode::BAD_REQUEST, &e.to_string())),
    };
    control.change_names(NameChange::Remove(Filter { container, addr, name })).await?;
    Some(respond(StatusCode::NO_CONTENT, None, String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_of_a_path() {
        let name =
            |id: &str, ip: Option<&str>| Some(Resource::Name(Some(id.to_owned()), ip.map(str::to_owned)));
        for (path, resource) in [
            ("/domain", Some(Resource::Domain)),
            ("/dns-address", Some(Resource::Address)),
            ("/dns-address-port", Some(Resource::AddressPort)),
            ("/name", Some(Resource::Name(None, None))),
            ("/name/weave:extern", name("weave:extern", None)),
            ("/name/weave:extern/10.2.0.1", name("weave:extern", Some("10.2.0.1"))),
            ("/name/netns%3A%2Fx+y/10.2.0.1", name("netns:/x+y", Some("10.2.0.1"))),
            ("/name/", None),
            ("/name/c/10.2.0.1/x", None),
            ("/domain/x", None),
        ] {
            assert_eq!(Resource::find(path), resource, "{path}");
        }
    }
}
