//! The proxy between clients and an imitation of Docker.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use weave_runtime::{ContainerNetwork, Docker};

use super::endpoints::ProxyFiles;
use super::{Attacher, ProxyListeners, start};
use crate::config::{Config, ProxyConfig, ProxyEndpoint};
use crate::containers::Containers;
use crate::control::Control;
use crate::storage::{AttachmentStore, InterfaceStore};

const TIMEOUT: Duration = Duration::from_secs(20);

struct Setup {
    dir: TempDir,
    /// First line and body of each request that Docker got.
    requests: Arc<Mutex<Vec<String>>>,
    /// The daemon keeps them until it ends, and so does the test.
    _files: ProxyFiles,
}

impl Setup {
    /// `serve` is called for each connection to Docker with the head of the request, until its empty line.
    fn new(serve: impl Fn(&str, UnixStream) + Send + Sync + 'static) -> Setup {
        let mut setup = Setup {
            dir: tempfile::tempdir().unwrap(),
            requests: Arc::default(),
            _files: ProxyFiles::default(),
        };
        let listener = UnixListener::bind(setup.path("docker.sock")).unwrap();
        let (serve, requests) = (Arc::new(serve), setup.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, serve, requests) = (stream.unwrap(), serve.clone(), requests.clone());
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                    let head = read_head(&mut stream);
                    requests.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
                    serve(&head, stream);
                });
            }
        });
        setup._files = setup.start();
        setup
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> ProxyFiles {
        let socket = self.path("weave.sock");
        let config = Config {
            run_dir: self.dir.path().to_owned(),
            state_dir: self.dir.path().to_owned(),
            proxy: ProxyConfig { endpoints: vec![ProxyEndpoint::Unix(socket)], ..ProxyConfig::default() },
            ..Config::default()
        };
        let docker = Docker::at(Some(&format!("unix://{}", self.path("docker.sock").display())));
        let mut listeners = ProxyListeners::bind(&config, &docker).unwrap();
        let files = listeners.take_files();
        let network = Arc::new(ContainerNetwork::open(self.dir.path(), TIMEOUT).unwrap());
        let (control, requests) = Control::new(8);
        std::mem::forget(requests);
        let attachments = AttachmentStore::open(self.dir.path()).unwrap();
        let interfaces = InterfaceStore::open(self.dir.path()).unwrap();
        let containers = Containers::new(network, "weave", attachments, interfaces);
        start(Some(listeners), false, |runtime| Attacher::new(docker, containers, control, &config, runtime))
            .unwrap();
        files
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("weave.sock")).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Everything that comes back for these bytes.
    fn answer(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_all(&mut stream)
    }
}

fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn read_all(stream: &mut UnixStream) -> String {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    String::from_utf8(all).unwrap()
}

fn read_body(head: &str, stream: &mut UnixStream) -> String {
    let length =
        head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

fn json(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn requests_and_answers_pass_byte_for_byte() {
    let body = "5;x=y\r\nhello\r\n0\r\nTrailer: z\r\n\r\n";
    let answer =
        "HTTP/1.1 200 Fine\r\nx-Odd:  1\r\ntransfer-encoding: chunked\r\n\r\n3;a\r\nabc\r\n0\r\n\r\n";
    let setup = Setup::new(move |head, mut stream| {
        let expected = "POST /v1.41/build?a=%2f HTTP/1.1\r\nX-First: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\
                        Host: localhost\r\n\r\n";
        assert_eq!(head, expected);
        let mut got = vec![0; body.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, body.as_bytes());
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let head = "POST /v1.41/build?a=%2f HTTP/1.1\r\nHost: /var/run/docker.sock\r\nX-First: 1\r\nConnection: keep-alive\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    assert_eq!(setup.answer(&format!("{head}{body}")), answer);
    let two = format!("{head}{body}POST /containers/create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}");
    assert_eq!(setup.answer(&two), answer);
    assert_eq!(setup.requests.lock().unwrap().len(), 2, "a second request on a connection is not served");
}

#[test]
fn either_side_may_end_first() {
    let (received, late) = std::sync::mpsc::channel();
    let setup = Setup::new(move |head, mut stream| {
        assert!(
            head.contains("Connection: Upgrade, close\r\n") && head.contains("Upgrade: tcp\r\n"),
            "{head}"
        );
        stream.write_all(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nout").unwrap();
        if head.starts_with("POST /containers/a/attach") {
            stream.shutdown(Shutdown::Write).unwrap();
            return received.send(read_all(&mut stream)).unwrap();
        }
        assert_eq!(read_all(&mut stream), "in");
        stream.write_all(b" and last").unwrap();
    });
    let upgrade = "HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
    let start = "HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nout";
    let mut client = setup.connect();
    client.write_all(format!("POST /containers/a/attach {upgrade}").as_bytes()).unwrap();
    assert_eq!(read_all(&mut client), start);
    client.write_all(b"late").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(late.recv_timeout(TIMEOUT).as_deref(), Ok("late"));

    let mut client = setup.connect();
    client.write_all(format!("POST /exec/e/start {upgrade}in").as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_all(&mut client), format!("{start} and last"));
}

#[test]
fn http2_does_not_begin_with_an_upgrade() {
    let setup = Setup::new(|head, mut stream| {
        assert!(head.contains("Upgrade: h2c\r\nConnection: Upgrade, close\r\n"), "{head}");
        assert!(!head.contains("Settings"), "{head}");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    });
    let request = "GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    assert_eq!(setup.answer(request), "HTTP/1.1 200 OK\r\n\r\n");
}

#[test]
fn refused_requests() {
    let setup = Setup::new(|head, mut stream| {
        let answer = match head.split(' ').nth(1).unwrap_or_default() {
            "/images/none/json" => json("404 Not Found", r#"{"message":"No such image: none"}"#),
            "/containers/none/json" => json("404 Not Found", r#"{"message":"No such container: none"}"#),
            _ => "nonsense\r\n\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    for (request, status, text) in [
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), "505", "HTTP/2 is not supported"),
        ("GET /\r\n\r\n".to_owned(), "400", "malformed"),
        (post("/containers/create", "xx"), "400", "expected value"),
        (post("/containers/create", r#"{"Image":"x","Env":[1]}"#), "400", "Wrong type for Env field"),
        (
            post("/containers/create", r#"{"Image":"none"}"#),
            "404",
            "\r\n\r\n{\"message\":\"No such image: none\"}\n",
        ),
        (post("/containers/none/start", ""), "404", "\r\n\r\n{\"message\":\"No such container: none\"}\n"),
        (post("/containers/none/exec", "{}"), "404", "\r\n\r\n{\"message\":\"No such container: none\"}\n"),
        (post("/containers/odd/exec", "{}"), "500", "malformed response"),
        (
            "POST /containers/create HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
                .to_owned(),
            "400",
            "both a length and a transfer encoding",
        ),
        (
            "POST /containers/create HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n".to_owned(),
            "413",
            "longer than",
        ),
    ] {
        let answer = setup.answer(&request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text),
            "{request}\n{answer}"
        );
    }
    let asked = setup.requests.lock().unwrap().clone();
    assert!(asked.iter().all(|line| line.starts_with("GET ")), "nothing was changed: {asked:?}");
    std::fs::remove_file(setup.path("docker.sock")).unwrap();
    for request in ["GET /_ping HTTP/1.1\r\n\r\n".to_owned(), post("/containers/create", r#"{"Image":"x"}"#)]
    {
        let answer = setup.answer(&request);
        let text = "\r\n\r\n{\"message\":\"Could not connect to target: docker at unix:///";
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains(text), "{answer}");
    }
}

#[test]
fn created_containers_wait() {
    let setup = Setup::new(|head, mut stream| {
        let answer = if head.starts_with("GET /images/box/json ") {
            json("200 OK", r#"{"Config":{"Cmd":["sh"],"Entrypoint":null}}"#)
        } else {
            assert!(
                head.starts_with("POST /v1.41/containers/create?name=c1 ") && !head.contains("Expect"),
                "{head}"
            );
            json("201 Created", &read_body(head, &mut stream))
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let mut client = setup.connect();
    client
        .write_all(
            b"POST /v1.41/containers/create?name=c1 HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .unwrap();
    assert_eq!(read_head(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"f\r\n{\"Image\":\"box\"}\r\n0\r\n\r\n").unwrap();
    let answer = read_all(&mut client);
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let wait = format!("{}:/w:ro", setup.path("wait/multicast").display());
    let expected = serde_json::json!({
        "Image": "box", "Entrypoint": ["/w/w"], "Cmd": ["sh"], "HostConfig": { "Binds": [wait] },
    });
    assert_eq!(body, expected);
}

/// The container of the test has the network of the host, so that there is nothing to attach.
#[test]
fn starts_are_answered_after_the_container_was_looked_at() {
    let pid = std::process::id();
    let setup = Setup::new(move |head, mut stream| {
        let answer = match head.split(' ').nth(1).unwrap_or_default() {
            "/containers/c1/json" | "/containers/cid/json" => json(
                "200 OK",
                &format!(
                    r#"{{"Id":"cid","Name":"/c1","State":{{"Running":true,"Pid":{pid}}},"Config":{{"Entrypoint":["/w/w"]}},
                        "HostConfig":{{"NetworkMode":"default"}}}}"#
                ),
            ),
            "/containers/c1/start" => "HTTP/1.1 204 No Content\r\nServer: Docker\r\n\r\n".to_owned(),
            _ => json("404 Not Found", "{}"),
        };
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let answer = setup.answer("POST /containers/c1/start HTTP/1.1\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(answer, "HTTP/1.1 204 No Content\r\nServer: Docker\r\n\r\n");
    let asked = setup.requests.lock().unwrap().clone();
    let start = asked.iter().position(|line| line.starts_with("POST /containers/c1/start")).unwrap();
    assert!(asked[..start].contains(&"GET /containers/c1/json HTTP/1.1".to_owned()), "{asked:?}");
    assert!(asked[start..].contains(&"GET /containers/cid/json HTTP/1.1".to_owned()), "{asked:?}");
}

#[test]
fn files_of_the_sockets_go_with_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let endpoints = [path("weave.sock"), path("link.sock")].map(ProxyEndpoint::Unix).to_vec();
    let config = Config {
        run_dir: dir.path().to_owned(),
        proxy: ProxyConfig { endpoints, ..ProxyConfig::default() },
        ..Config::default()
    };
    let docker = Docker::at(Some(&format!("unix://{}", path("docker.sock").display())));
    let _docker_socket = UnixListener::bind(path("docker.sock")).unwrap();
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    std::fs::set_permissions(path("docker.sock"), std::os::unix::fs::PermissionsExt::from_mode(0o620))
        .unwrap();
    let mut listeners = ProxyListeners::bind(&config, &docker).unwrap();
    assert_eq!(mode(&path("weave.sock")), 0o620);
    assert!(UnixStream::connect(path("link.sock")).is_ok());
    drop(listeners.take_files());
    assert!(!path("weave.sock").exists() && std::fs::symlink_metadata(path("link.sock")).is_err());
    std::fs::write(path("link.sock"), "a file of somebody else").unwrap();
    let refused = ProxyListeners::bind(&config, &docker).unwrap_err().to_string();
    assert!(
        refused.starts_with("Cannot listen on ") && refused.ends_with("another file is there"),
        "{refused}"
    );
    assert!(path("link.sock").exists());
}
