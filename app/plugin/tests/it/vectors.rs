//! Requests to the plugin of 2.8.1 (`tests/vectors/containers/libnetwork_plugin.json`), with an allocator and devices that are imitated.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Value, json};
use weave_plugin::{Action, Answer, Driver, Error, Mode, Plugin, VethPair};
use weave_types::{Cidr, MacAddr};

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    socket: String,
    path: String,
    request: Value,
    status: u16,
    response: Value,
    weave_api_calls: Vec<Value>,
}

/// A daemon that hands out the addresses of the vectors.
struct Daemon {
    plugin: Plugin,
    pairs: BTreeSet<VethPair>,
    calls: Vec<Value>,
}

impl Daemon {
    fn new(mode: Mode) -> Daemon {
        Daemon { plugin: Plugin::new(mode, BTreeMap::new()), pairs: BTreeSet::new(), calls: Vec::new() }
    }

    fn call(&mut self, method: &str, url: String) {
        self.calls.push(json!({ "method": method, "url": url }));
    }

    fn act(&mut self, action: Action, expected: &Value) -> Result<Answer, Error> {
        Ok(match action {
            Action::Answer(answer) => answer,
            Action::NetworksChanged { .. } => Answer::done(),
            Action::CreateEndpoint(endpoint) => {
                if !self.pairs.insert(endpoint.pair.clone()) {
                    let VethPair { outside, inside, .. } = endpoint.pair;
                    let text = format!("could not create veth pair {outside}-{inside}: file exists");
                    return Err(Error::Refused(text));
                }
                let mac: MacAddr = expected["Interface"]["MacAddress"].as_str().unwrap().parse().unwrap();
                Plugin::created(&endpoint, mac)
            }
            Action::DeleteEndpoint(pair) => {
                self.pairs.remove(&pair);
                Answer::done()
            }
            Action::Join(join) => self.plugin.join(&join, false).map_err(|_| {
                let why = "Docker client disabled; unable to get network info";
                Error::Refused(format!("unable to find network info: {why}"))
            })?,
            Action::DefaultPool { range } => {
                self.call("GET", "/ipinfo/defaultsubnet".to_owned());
                self.plugin.pool("10.32.0.0/12".parse().unwrap(), range)?
            }
            Action::RequestAddress(request) => {
                let obtained: Cidr = expected["Address"].as_str().unwrap().parse().unwrap();
                match (request.address, request.pool) {
                    (Some(address), pool) => {
                        let prefix = pool.map_or(obtained.prefix(), |pool| pool.subnet().prefix());
                        self.call("PUT", format!("/ip/_/{address}/{prefix}"));
                    }
                    (None, Some(pool)) => self.call("POST", format!("/ip/_/{}", pool.range())),
                    (None, None) => self.call("POST", "/ip/_".to_owned()),
                }
                request.answer(obtained)
            }
            Action::ReleaseAddress(address) => {
                self.call("DELETE", format!("/ip/{address}"));
                Answer::done()
            }
        })
    }
}

/// What we say in addition: that Docker need not allocate a gateway, and the text of an error under the name that Docker's IPAM reads.
fn without_additions(mut response: Value) -> Value {
    if let Value::Object(fields) = &mut response {
        fields.remove("GwAllocChecker");
        if fields.contains_key("Err") && fields.get("Err") == fields.get("Error") {
            fields.remove("Error");
        }
    }
    response
}

#[test]
fn requests_to_the_plugin() {
    let text = include_str!("../../../../tests/vectors/containers/libnetwork_plugin.json");
    let vectors: Vectors = serde_json::from_str(text).unwrap();
    let mut legacy = Daemon::new(Mode::Legacy);
    let mut managed = [false, true].map(|multicast| Daemon::new(Mode::Managed { multicast }));
    for vector in &vectors.vectors {
        let Vector { socket, path, request, status, response, weave_api_calls } = vector;
        let (daemon, driver) = match socket.as_str() {
            "weave" => (&mut legacy, Driver::Global),
            "weavemesh" => (&mut legacy, Driver::Local),
            "plugin-v2" => (&mut managed[0], Driver::Global),
            _ => (&mut managed[1], Driver::Global),
        };
        let body = match request {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            request => request.to_string(),
        };
        let action = daemon.plugin.handle(driver, path, body.as_bytes());
        let answer = action.and_then(|action| daemon.act(action, response)).unwrap_or_else(Answer::from);
        let context = format!("{socket} {path} {body}: {answer:?}");
        assert_eq!(answer.status, *status, "{context}");
        assert_eq!(std::mem::take(&mut daemon.calls), *weave_api_calls, "{context}");
        match response {
            Value::String(text) => assert_eq!(answer.body, *text, "{context}"),
            Value::Number(_) => {}
            response => {
                let found: Value = serde_json::from_str(&answer.body).expect(&context);
                assert_eq!(without_additions(found), *response, "{context}");
            }
        }
    }
    assert!(vectors.vectors.len() >= 40, "{} vectors", vectors.vectors.len());
}
