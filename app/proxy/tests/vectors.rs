//! Requests that went through the proxy of 2.8.1 (`tests/vectors/containers/docker_proxy.json`), with Docker as it was imitated there.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weave_proxy::{
    Create, Dns, Error, HostnameRule, ImageCommand, Interface, Policy, Route, WaitDirectories, rewrite_exec,
    rewrite_inspect, rewrite_start,
};

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    #[serde(default)]
    options: BTreeMap<String, String>,
    path: String,
    request_body: Value,
    forwarded_body: Value,
    other_docker_calls: Vec<String>,
    status: u16,
    response_body: String,
}

/// Vectors that we answer differently: what is wrong with a request is 400, as Docker says, and not 500.
const BAD_REQUESTS: [&str; 3] = ["wrong_type_env", "wrong_type_hostconfig", "not_json"];

fn policy(options: &BTreeMap<String, String>) -> Policy {
    let option = |name: &str| options.get(name).map(String::as_str);
    let volume = |n: u8| format!("/var/lib/docker/volumes/V{n}/_data").into();
    let wait = if options.contains_key("--no-multicast-route") { 3 } else { 1 };
    let dns = Dns {
        server: Some("172.17.0.1".into()),
        domain: option("--dns-domain").unwrap_or("weave.local.").to_owned(),
    };
    Policy {
        wait: WaitDirectories { wait: volume(wait), no_wait: volume(2) },
        dns: (!options.contains_key("--without-dns")).then_some(dns),
        attach_by_default: !options.contains_key("--no-default-ipalloc"),
        user_networks: false,
        hostname: HostnameRule::new(
            option("--hostname-from-label").map(str::to_owned),
            option("--hostname-match").unwrap_or("(.*)"),
            option("--hostname-replacement").unwrap_or("$1"),
        )
        .unwrap(),
    }
}

fn image(name: &str) -> Option<ImageCommand> {
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
    let (entrypoint, command): (&[&str], &[&str]) = match name {
        "busybox" => (&[], &["sh"]),
        "withentry" => (&["/entry", "-x"], &["a", "b"]),
        "entryonly" => (&["/entry"], &[]),
        "committed" => (&["/w/w"], &["sh"]),
        "nocmd" => (&[], &[]),
        _ => return None,
    };
    Some(ImageCommand { entrypoint: list(entrypoint), command: list(command) })
}

/// Whether the container waits for the network, its network mode, and its environment.
fn container(name: &str) -> Option<(bool, &str, Vec<String>)> {
    match name {
        "attached" => Some((true, "default", Vec::new())),
        "plain" => Some((false, "default", Vec::new())),
        "cidrnone" => Some((true, "default", vec!["WEAVE_CIDR=none".to_owned()])),
        "hostnet" => Some((true, "host", Vec::new())),
        _ => None,
    }
}

/// The body to forward, `None` for that of the request; and what Docker was asked.
fn intercept(vector: &Vector, body: Option<&[u8]>) -> (Result<Option<Vec<u8>>, Error>, Vec<String>) {
    let policy = policy(&vector.options);
    let ask = |path: String| vec![format!("GET /v1.18{path}")];
    match Route::find(&vector.path) {
        Route::Create => {
            let create = match Create::read(&policy, &vector.path, body.unwrap_or_default()) {
                Ok(Ok(create)) => create,
                Ok(Err(_)) => return (Ok(None), Vec::new()),
                Err(e) => return (Err(e), Vec::new()),
            };
            let Some(name) = create.image().map(str::to_owned) else {
                return (create.finish(&ImageCommand::default()).map(Some), Vec::new());
            };
            let image = image(&name).ok_or_else(|| Error::NoSuchImage(name.clone()));
            (image.and_then(|image| create.finish(&image)).map(Some), ask(format!("/images/{name}/json")))
        }
        Route::Start(name) => {
            let result = match (container(name), body) {
                (None, _) => Err(Error::NoSuchContainer(name.to_owned())),
                (Some((true, ..)), Some(body)) => rewrite_start(&policy, body, "c1"),
                _ => Ok(None),
            };
            (result, ask(format!("/containers/{name}/json")))
        }
        Route::Exec(name) => {
            let result = match container(name) {
                None => Err(Error::NoSuchContainer(name.to_owned())),
                Some((true, mode, env)) if policy.addresses(mode, &env).is_ok() => {
                    rewrite_exec(body.unwrap_or_default()).map(Some)
                }
                _ => Ok(None),
            };
            (result, ask(format!("/containers/{name}/json")))
        }
        Route::Inspect(_) | Route::InspectExec | Route::Other => (Ok(None), Vec::new()),
    }
}

#[test]
fn requests_through_the_original() {
    let text = include_str!("../../../tests/vectors/containers/docker_proxy.json");
    let vectors: Vectors = serde_json::from_str(text).unwrap();
    assert!(vectors.vectors.len() >= 50);
    for vector in vectors.vectors {
        let name = &vector.name;
        let body = match &vector.request_body {
            Value::Null if name == "start_null" => Some("null".to_owned()),
            Value::Null => None,
            // The request that is not JSON.
            Value::String(text) => Some(text.clone()),
            body => Some(body.to_string()),
        };
        let (result, asked) = intercept(&vector, body.as_deref().map(str::as_bytes));
        assert_eq!(asked, vector.other_docker_calls, "{name}");
        match result {
            Ok(Some(forwarded)) => {
                let forwarded: Value = serde_json::from_slice(&forwarded).unwrap();
                assert_eq!(forwarded, vector.forwarded_body, "{name}");
            }
            Ok(None) => assert_eq!(vector.request_body, vector.forwarded_body, "{name}"),
            Err(e) if BAD_REQUESTS.contains(&name.as_str()) => {
                assert_eq!((e.status(), vector.status), (400, 500), "{name}");
                if name != "not_json" {
                    assert_eq!(format!("{e}\n"), vector.response_body, "{name}");
                }
            }
            Err(e) => {
                assert_eq!((e.status(), format!("{e}\n")), (vector.status, vector.response_body), "{name}");
            }
        }
    }
}

#[test]
fn containers_on_user_defined_networks() {
    let mut policy = policy(&BTreeMap::new());
    let attached = |policy: &Policy| {
        let modes = ["", "bridge", "none", "backend", "container:x", "host"];
        modes.map(|mode| policy.addresses(mode, &[]).is_ok())
    };
    assert_eq!(attached(&policy), [true, true, true, false, false, false]);
    policy.user_networks = true;
    assert_eq!(attached(&policy), [true, true, true, true, false, false]);
}

/// The start of a container through the proxy of 2.8.1 (`tests/vectors/containers/proxy_attach_trace.json`): which container is attached,
/// with what, and how it is described afterwards. Its hosts file and its network are replayed in `linux/runtime` and `linux/host`.
#[test]
fn start_through_the_original() {
    let text = include_str!("../../../tests/vectors/containers/proxy_attach_trace.json");
    let trace: Value = serde_json::from_str(text).unwrap();
    let container = &trace["container_inspect"];
    let id = container["Id"].as_str().unwrap();
    let urls = |calls: &str| -> Vec<String> {
        let calls = trace[calls].as_array().unwrap();
        calls.iter().map(|call| call["url"].as_str().unwrap().to_owned()).collect()
    };

    let asked = urls("docker_calls");
    assert_eq!(Route::find(&asked[0]), Route::Inspect(id));
    assert_eq!(Route::find(&asked[1]), Route::Start(id));
    assert_eq!((&trace["start_body"], &trace["start_status"]), (&Value::from(""), &Value::from(204)));

    let strings = |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap() };
    let env = strings(&container["Config"]["Env"]);
    let mode = container["HostConfig"]["NetworkMode"].as_str().unwrap();
    let wanted = policy(&BTreeMap::new()).addresses(mode, &env).unwrap();
    let path = |wanted: &String| match wanted.strip_prefix("net:") {
        Some("default") => format!("/ip/{id}"),
        subnet => format!("/ip/{id}/{}", subnet.unwrap_or(wanted)),
    };
    let requested: Vec<String> =
        urls("weave_api_calls").into_iter().filter(|url| url.starts_with("/ip/")).collect();
    assert_eq!(wanted.iter().map(path).collect::<Vec<_>>(), requested);

    let shown = &trace["rewritten_inspect"]["NetworkSettings"];
    let text = |name: &str| shown[name].as_str().unwrap().to_owned();
    let interface = Interface { mac: text("MacAddress"), address: text("IPAddress"), prefix: 12 };
    let rewritten = rewrite_inspect(container.to_string().as_bytes(), &interface).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&rewritten).unwrap(), trace["rewritten_inspect"]);
}
