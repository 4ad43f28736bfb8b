//! The routes of weaveDNS as recorded of 2.8.1 (`tests/vectors/dns/http_api.json`), over real sockets, with a node and its names.

use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use weave_dns::{HostName, RegistryConfig};
use weave_node::Node;
use weave_types::{Instant, Now, PeerName, PeerUid};

use super::{Access, Listener};
use crate::config::ListenAddr;
use crate::control::{Control, DnsInfo, Request};
use crate::host::ListenAddresses;
use crate::names::LocalNames;

const PEER: &str = "7a:9f:eb:b6:0c:6e";

/// Answers requests as the task of the node does; the time does not pass.
async fn run(mut requests: mpsc::Receiver<Request>, mut local: LocalNames) {
    let own: PeerName = PEER.parse().unwrap();
    let now = Now { mono: Instant::ORIGIN, wall: Duration::from_secs(1_700_000_000) };
    let mesh = weave_mesh::Config::new(own, "host-a".to_owned(), PeerUid(7));
    let registry = RegistryConfig { own, domain: HostName::parse("weave.local").unwrap() };
    let config = weave_node::Config { mesh, ipam: None, dns: Some(registry) };
    let mut node = Node::new(config, ChaCha12Rng::seed_from_u64(1), now);
    while let Some(request) = requests.recv().await {
        match request {
            Request::ChangeNames(change, answer) => {
                local.apply(change, &mut node, now);
                let _ = answer.send(());
            }
            Request::Names(answer) => {
                let _ = answer.send(node.registry().unwrap().entries().cloned().collect());
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn serve(dir: &std::path::Path, listen: ListenAddresses) -> std::net::SocketAddr {
    let (control, requests) = Control::new(16);
    let domain = HostName::parse("weave.local").unwrap();
    let control = control.with_dns(DnsInfo { domain, listen, docker: None });
    let any = ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(&any, Access::Control).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(run(requests, LocalNames::open(dir, "weave").unwrap()));
    tokio::spawn(listener.serve(control));
    addr
}

/// Status, content type and body of the answer.
async fn call(
    addr: std::net::SocketAddr,
    method: &str,
    path: &str,
    accept: &str,
    form: &str,
) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nAccept: {accept}\r\n");
    let content =
        format!("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n", form.len());
    stream.write_all(format!("{head}{content}\r\n{form}").as_bytes()).await.unwrap();
    let mut text = String::new();
    let end = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut text));
    end.await.expect("an answer").unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    let content = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, content.map(|(_, value)| value.to_owned()).unwrap_or_default(), body.to_owned())
}

/// The list that `GET /name` answers, in the form of the vector.
async fn entries(addr: std::net::SocketAddr) -> Vec<Value> {
    let (status, _, body) = call(addr, "GET", "/name", "application/json", "").await;
    assert_eq!(status, 200);
    let rows: Vec<Value> = serde_json::from_str(&body).unwrap();
    let entry = |row: Value| {
        let origin = PeerName::from_number(row["Origin"].as_u64().unwrap()).unwrap();
        serde_json::json!({
            "container_id": row["ContainerID"], "origin": origin.to_string(), "addr": row["Addr"],
            "hostname": row["Hostname"], "version": row["Version"], "tombstone": row["Tombstone"],
        })
    };
    rows.into_iter().map(entry).collect()
}

#[tokio::test]
async fn answers_of_the_original() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/dns/http_api.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listen = ListenAddresses::new(vec!["172.17.0.1:53".parse().unwrap()]);
    let addr = serve(dir.path(), listen).await;
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 20);
    for (n, vector) in vectors.iter().enumerate() {
        let text = |key: &str| vector[key].as_str().unwrap_or_default();
        let accept = vector["Headers"]["Accept"].as_str().unwrap_or("*/*");
        let (status, content_type, body) =
            call(addr, text("Method"), text("Path"), accept, text("Body")).await;
        let expected = (vector["Status"].as_u64().unwrap(), text("ContentType"), text("RespBody"));
        assert_eq!((u64::from(status), &*content_type, &*body), expected, "{n}: {vector}");
        assert_eq!(&entries(addr).await, vector["After"].as_array().unwrap_or(&Vec::new()), "{n}: {vector}");
    }
}

#[tokio::test]
async fn routes_without_an_address_and_with_invalid_names() {
    let dir = tempfile::tempdir().unwrap();
    let addr = serve(dir.path(), ListenAddresses::default()).await;
    for path in ["/dns-address", "/dns-address-port"] {
        let (status, _, body) = call(addr, "GET", path, "*/*", "").await;
        assert!(status == 503 && body.contains("'weave expose'"), "{status} {body}");
    }
    for bad in ["a..weave.local", "a%20b.weave.local"] {
        let (status, _, body) = call(addr, "PUT", "/name/c/10.2.0.1", "*/*", &format!("fqdn={bad}")).await;
        assert!(status == 400 && body.contains("is not a host name"), "{status} {body}");
    }
    call(addr, "PUT", "/name/c/10.2.0.1", "*/*", "fqdn=Web.weave.local").await;
    call(addr, "DELETE", "/name/c?fqdn=WEB.weave.local", "*/*", "").await;
    assert!(entries(addr).await.iter().all(|entry| entry["tombstone"] != 0), "whatever its case");
}
