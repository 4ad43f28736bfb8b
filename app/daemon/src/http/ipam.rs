//! Routes of address allocation (docs/spec/ipam.md 10), with the texts and status codes of 2.8.1 (`http.json`).
//!
//! When a client disconnects, the future of its connection is dropped, which cancels a waiting call
//! ([`crate::control::Control::allocate`]). The number of waiting calls is limited
//! ([`crate::allocation`]).

use std::time::Duration;

use hyper::{Method, StatusCode};
use weave_api::{Owned, OwnedBy};
use weave_ipam::{HandOver, Subnet};
use weave_types::Cidr;

use super::form::decode;
use super::response::{Answer, TEXT, error, respond, text_answer};
use crate::allocation::{AllocationRequest, AllocationResponse};
use crate::control::{AllocationInfo, Control};
use crate::telemetry::printable::printable;

/// Longest id of a container. Docker's have 64 characters; paths of namespaces have at most 4096 bytes.
const MAX_ID: usize = 4200;

/// For so long the removal of a reachable peer is tried again before it is refused.
const REMOVAL_WAIT: Duration = Duration::from_secs(13);
/// After a wait of this length the caller is told why it took so long.
const REPORTED_REMOVAL_WAIT: Duration = Duration::from_secs(1);
const REMOVAL_RETRY_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// `/ip`
    All,
    /// `/ip/{id}`
    Container(String),
    /// `/ip/{id}/{ip}`
    Address(String, String),
    /// `/ip/{id}/{ip}/{len}`; the text is a CIDR.
    Subnet(String, String),
    /// `/ring`, and `/consensus`, its earlier name.
    Ring,
    /// `/ipinfo/defaultsubnet`
    DefaultSubnet,
    /// `/ipinfo/tracker`
    Tracker,
    /// `/ipinfo/waiting`: why calls wait. Not in 2.8.1.
    Waiting,
    /// `/peer`
    Ourself,
    /// `/peer/{id}`
    Peer(String),
}

impl Resource {
    /// Decodes the parts after splitting the path, so that an id may contain a slash.
    pub(super) fn find(path: &str) -> Option<Resource> {
        let parts: Vec<String> = path.strip_prefix('/')?.split('/').map(decode_part).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        if parts.iter().any(|p| p.is_empty()) {
            return None;
        }
        Some(match parts.as_slice() {
            ["ip"] => Resource::All,
            ["ip", id] => Resource::Container((*id).to_owned()),
            ["ip", id, ip] => Resource::Address((*id).to_owned(), (*ip).to_owned()),
            ["ip", id, ip, length] => Resource::Subnet((*id).to_owned(), format!("{ip}/{length}")),
            ["ring"] | ["consensus"] => Resource::Ring,
            ["ipinfo", "defaultsubnet"] => Resource::DefaultSubnet,
            ["ipinfo", "tracker"] => Resource::Tracker,
            ["ipinfo", "waiting"] => Resource::Waiting,
            ["peer"] => Resource::Ourself,
            ["peer", id] => Resource::Peer((*id).to_owned()),
            _ => return None,
        })
    }

    pub(super) fn allows(&self, method: &Method) -> bool {
        let methods: &[Method] = match self {
            Resource::All
            | Resource::Ring
            | Resource::DefaultSubnet
            | Resource::Tracker
            | Resource::Waiting => &[Method::GET],
            Resource::Container(_) => &[Method::GET, Method::POST, Method::DELETE],
            Resource::Address(..) | Resource::Ourself | Resource::Peer(_) => &[Method::DELETE],
            Resource::Subnet(..) => &[Method::GET, Method::POST, Method::PUT],
        };
        methods.contains(method)
    }
}

/// A plus sign in a path stands for itself, unlike in a form.
fn decode_part(part: &str) -> String {
    decode(&part.replace('+', "%2B"))
}

/// `None` once the peer has ended.
pub(super) async fn answer(
    control: &Control,
    info: &AllocationInfo,
    resource: Resource,
    method: &Method,
    form: &[(String, String)],
) -> Option<Answer> {
    let request = match parse(resource, method, form, info) {
        Err(text) => return Some(error(StatusCode::BAD_REQUEST, &text)),
        Ok(Parsed::Text(text)) => return Some(text_answer(StatusCode::OK, text)),
        Ok(Parsed::Request(request)) => request,
    };
    if let AllocationRequest::TakeOver { peer, .. } = &request {
        return remove_peer(control, info, &request, peer).await;
    }
    Some(show(control.allocate(info, request.clone()).await?, &request, form))
}

/// A peer that has just ended without saying so is reachable until its neighbours give it up, which takes ten seconds and a little more.
async fn remove_peer(
    control: &Control,
    info: &AllocationInfo,
    request: &AllocationRequest,
    peer: &str,
) -> Option<Answer> {
    let begun = tokio::time::Instant::now();
    let mut attempts = 0;
    let response = loop {
        let response = control.allocate(info, request.clone()).await?;
        attempts += 1;
        if !matches!(response, AllocationResponse::Refused(_)) || begun.elapsed() >= REMOVAL_WAIT {
            break response;
        }
        if attempts == 1 {
            tracing::info!(
                "{} is reachable: its removal is tried again for {} s, in case it has just ended",
                printable(peer),
                REMOVAL_WAIT.as_secs()
            );
        }
        tokio::time::sleep(REMOVAL_RETRY_INTERVAL).await;
    };
    let AllocationResponse::TakenOver(count) = response else { return Some(show(response, request, &[])) };
    let mut text = format!("{count} IPs taken over from {peer}\n");
    if attempts > 1 && begun.elapsed() >= REPORTED_REMOVAL_WAIT {
        let waited = begun.elapsed().as_secs_f64();
        text += &format!("waited {waited:.1} s until no other peer was connected to it any more\n");
    }
    Some(text_answer(StatusCode::OK, text))
}

enum Parsed {
    /// The answer is known without asking the allocator.
    Text(String),
    Request(AllocationRequest),
}

fn parse(
    resource: Resource,
    method: &Method,
    form: &[(String, String)],
    info: &AllocationInfo,
) -> Result<Parsed, String> {
    let flag = |name: &str| form.iter().any(|(k, v)| k == name && v == "true");
    let container = |id: String| {
        if id.len() > MAX_ID { Err("the container's id is too long".to_owned()) } else { Ok(id) }
    };
    let subnet = |text: &str| text.parse::<Subnet>().map_err(|e| e.to_string());
    let is_container = flag("check-alive");
    Ok(Parsed::Request(match resource {
        Resource::DefaultSubnet => return Ok(Parsed::Text(info.default_subnet.to_string())),
        // Name of the component that follows the ranges of this peer, as in 2.8.1.
        Resource::Tracker if info.no_masq_local => return Ok(Parsed::Text("no-masq-local\n".to_owned())),
        Resource::Tracker => return Ok(Parsed::Text("\n".to_owned())),
        Resource::Waiting => AllocationRequest::ExplainWaiting,
        Resource::All => AllocationRequest::ListAll,
        Resource::Ring => AllocationRequest::Prime,
        Resource::Container(id) => {
            let container = container(id)?;
            match *method {
                Method::GET => AllocationRequest::Lookup { container, subnet: info.default_subnet },
                Method::DELETE => AllocationRequest::Delete { container },
                _ => AllocationRequest::Allocate { container, subnet: info.default_subnet, is_container },
            }
        }
        Resource::Subnet(id, text) => {
            let container = container(id)?;
            match *method {
                Method::GET => AllocationRequest::Lookup { container, subnet: subnet(&text)? },
                Method::PUT => {
                    let cidr: Cidr = text.parse().map_err(|e: weave_types::ParseCidrError| e.to_string())?;
                    if !cidr.addr().is_ipv4() {
                        return Err(format!("invalid Non-IPv4 address not supported: {text}"));
                    }
                    AllocationRequest::Claim {
                        container,
                        cidr,
                        is_container,
                        quiet: flag("noErrorOnUnknown"),
                    }
                }
                _ => AllocationRequest::Allocate { container, subnet: subnet(&text)?, is_container },
            }
        }
        Resource::Address(id, text) => {
            let addr = text.parse().map_err(|_| format!("invalid IP Address: {text}"))?;
            AllocationRequest::Free { container: container(id)?, addr }
        }
        Resource::Ourself => AllocationRequest::Leave { force: flag("force") },
        Resource::Peer(peer) => AllocationRequest::TakeOver { peer, force: flag("force") },
    }))
}

fn show(response: AllocationResponse, request: &AllocationRequest, form: &[(String, String)]) -> Answer {
    let empty = |status| respond(status, None, String::new());
    match (response, request) {
        (AllocationResponse::Address(cidr), _) => text_answer(StatusCode::OK, cidr.to_string()),
        // As in 2.8.1: a peer that has left does not wait for a ring.
        (AllocationResponse::Cancelled, AllocationRequest::Prime) => empty(StatusCode::OK),
        (AllocationResponse::Cancelled, _) => text_answer(StatusCode::OK, "cancelled".to_owned()),
        (AllocationResponse::Failed(text), AllocationRequest::Claim { .. }) => {
            error(StatusCode::BAD_REQUEST, &format!("Unable to claim: {text}"))
        }
        (AllocationResponse::Failed(text), AllocationRequest::Free { .. }) => {
            error(StatusCode::BAD_REQUEST, &format!("Unable to free: {text}"))
        }
        (AllocationResponse::Failed(text), _) => error(StatusCode::BAD_REQUEST, &text),
        (AllocationResponse::Refused(text), _) => error(StatusCode::CONFLICT, &text),
        (AllocationResponse::Busy(text), _) => error(StatusCode::SERVICE_UNAVAILABLE, &text),
        (AllocationResponse::Addresses(cidrs), _) => {
            let texts: Vec<_> = cidrs.iter().map(ToString::to_string).collect();
            text_answer(StatusCode::OK, texts.join(" "))
        }
        (AllocationResponse::Owned(owned), _) => {
            let entry = |(id, cidrs): (String, Vec<Cidr>)| OwnedBy {
                container: id,
                addrs: cidrs.iter().map(ToString::to_string).collect(),
            };
            let all = Owned::new(owned.into_iter().map(entry).collect());
            respond(StatusCode::OK, Some("application/json"), all.to_json())
        }
        (AllocationResponse::Explanation(text), _) => text_answer(StatusCode::OK, text),
        // 2.8.1 answered without a body.
        (AllocationResponse::Left(what), _) if form.iter().any(|(k, v)| k == "explain" && v == "true") => {
            respond(StatusCode::OK, Some(TEXT), explain_hand_over(&what))
        }
        (AllocationResponse::Left(_), _) => empty(StatusCode::NO_CONTENT),
        (AllocationResponse::Done, AllocationRequest::Prime) => empty(StatusCode::OK),
        (AllocationResponse::Done | AllocationResponse::TakenOver(_), _) => empty(StatusCode::NO_CONTENT),
    }
}

/// Tells an operator who removes this peer what is left to do.
fn explain_hand_over(what: &HandOver) -> String {
    match what {
        HandOver::Nothing | HandOver::To { .. } => String::new(),
        HandOver::NoPeer { addresses } => format!(
            "no other peer was reachable to take over {addresses} addresses; once this peer is gone, run 'weave rmpeer' for \
             it on one of the others\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_of_a_path() {
        let s = str::to_owned;
        for (path, resource) in [
            ("/ip", Some(Resource::All)),
            ("/ip/", None),
            ("/ip/c1", Some(Resource::Container(s("c1")))),
            ("/ip/weave:expose", Some(Resource::Container(s("weave:expose")))),
            ("/ip/netns%3A%2Fproc%2F7%2Fns%2Fnet", Some(Resource::Container(s("netns:/proc/7/ns/net")))),
            ("/ip/a+b%20c", Some(Resource::Container(s("a+b c")))),
            ("/ip/c1/10.2.0.0", Some(Resource::Address(s("c1"), s("10.2.0.0")))),
            ("/ip/c1/10.2.0.0/24", Some(Resource::Subnet(s("c1"), s("10.2.0.0/24")))),
            ("/ip/c1/10.2.0.0/24/x", None),
            ("/ip/c1//24", None),
            ("/ring", Some(Resource::Ring)),
            ("/consensus", Some(Resource::Ring)),
            ("/peer", Some(Resource::Ourself)),
            ("/peer/h2", Some(Resource::Peer(s("h2")))),
            ("/peer/h2/x", None),
            ("/status", None),
            ("", None),
        ] {
            assert_eq!(Resource::find(path), resource, "{path}");
        }
    }
}
