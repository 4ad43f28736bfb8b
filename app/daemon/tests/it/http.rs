//! The control API over real sockets: the recorded transcript of 2.8.1, and hostile clients.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use weave_api::{NetworkView, Report};
use weave_daemon::config::ListenAddr;
use weave_daemon::testing::Snapshot;
use weave_daemon::testing::{Access, Limits, Listener};
use weave_daemon::testing::{Control, Request};

fn vector(name: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli");
    std::fs::read_to_string(format!("{root}/{name}")).unwrap()
}

fn report() -> Report {
    Report::from_json(&vector("one-peer-idle/report.json")).unwrap()
}

/// A peer that answers like the recorded one. The channel receives a text for each request that changes something.
fn peer(report: Report) -> (Control, mpsc::UnboundedReceiver<String>) {
    let (control, mut requests) = Control::new(4);
    let (asked, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Report(answer) => drop(answer.send(report.clone())),
                Request::Metrics(answer) => {
                    drop(answer.send(Snapshot { report: report.clone(), ..Snapshot::default() }));
                }
                Request::NetworkView(answer) => {
                    drop(answer.send(NetworkView::new(&report, Vec::new(), Vec::new(), 0)));
                }
                Request::Connect { peers, replace, answer } => {
                    let bad = peers.iter().filter(|p| p.ends_with(":70000"));
                    let mut errors: Vec<_> = bad.map(|_| "address 70000: invalid port".to_owned()).collect();
                    errors.extend(peers.iter().filter(|p| p.contains("two")).map(|_| "second".to_owned()));
                    let _ = asked.send(format!("connect {peers:?} {replace}"));
                    let _ = answer.send(errors);
                }
                Request::Leave(answer) => {
                    let _ = asked.send("leave".to_owned());
                    let _ = answer.send(());
                }
                Request::Trace(_) => panic!("there are no traces"),
                Request::Allocate { .. }
                | Request::Abandon { .. }
                | Request::DockerContainers(_)
                | Request::DockerStates(_)
                | Request::ChangeNames(..)
                | Request::Names(_)
                | Request::NamedContainers(_) => panic!("allocation and names are off"),
                Request::Expose { exposed, answer } => {
                    let all: Vec<_> = exposed.iter().map(|e| e.address.to_string()).collect();
                    let _ = asked.send(format!("expose {} {}", all.join(" "), exposed[0].masquerade));
                    let full = exposed.iter().any(|e| e.address.prefix() == 32);
                    let _ = answer.send(if full { Err("no room".to_owned()) } else { Ok(Vec::new()) });
                }
                Request::Hide { addresses, answer } => {
                    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                    let _ = asked.send(format!("hide {}", all.join(" ")));
                    let _ = answer.send(Ok(()));
                }
                Request::Forget { peers, answer } => {
                    let _ = asked.send(format!("forget {peers:?}"));
                    let _ = answer.send(());
                }
            }
        }
    });
    (control, seen)
}

pub(crate) async fn serve(control: &Control, access: Access) -> SocketAddr {
    let any = ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(&any, access).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(listener.serve(control.clone()));
    addr
}

/// Status, header lines and body of one exchange.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let mut lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
    }
}

fn parse(raw: &[u8]) -> Answer {
    let text = String::from_utf8(raw.to_vec()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

async fn raw(addr: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    parse(&answer)
}

pub(crate) async fn call(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}{form}");
    raw(addr, format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).await
}

/// Routes of services that are off are answered as by 2.8.1 without these services.
#[tokio::test]
async fn answers_match_the_transcript_of_the_original() {
    let (control, _seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    let text = vector("http-transcript.txt").replace("\r\n", "\n");
    let text = text.split("=== /dns check").next().unwrap();
    let (mut same, mut off) = (0, 0);
    for exchange in text.split("### ").skip(1) {
        let (command, answer) = exchange.split_once('\n').unwrap();
        let mut words = command.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let arguments: Vec<&str> = words.collect();
        let json = arguments.contains(&"application/json");
        let form: Vec<_> = arguments.iter().filter(|w| w.contains('=')).copied().collect();
        let headers = if json { "Accept: application/json\r\n" } else { "" };
        let ours = call(addr, method, path, headers, &form.join("&")).await;
        let kind = path.split(['/', '?']).nth(1).unwrap();
        if !["status", "nosuch", "report", "connect", "forget", "expose", "peer", "proxyaddrs"]
            .contains(&kind)
        {
            assert_eq!((ours.status, ours.body.as_str()), (404, "404 page not found\n"), "{command}");
            off += 1;
            continue;
        }
        let (head, body) = answer.split_once("\n\n").unwrap();
        let theirs = Answer { status: 0, head: head.to_owned(), body: body.to_owned() };
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        // Unlike 2.8.1, names are resolved in the background, and without allocation the answer to a takeover is empty.
        if command.contains("no.such.host") || path.starts_with("/peer/") {
            continue;
        }
        assert_eq!(ours.status, status, "{command}");
        assert_eq!(ours.header("content-type"), theirs.header("content-type"), "{command}");
        assert_eq!(
            ours.header("x-content-type-options"),
            theirs.header("x-content-type-options"),
            "{command}"
        );
        assert!(ours.header("date").is_some());
        let length: usize = theirs.header("content-length").map_or(0, |length| length.parse().unwrap());
        let expected = &theirs.body[..length];
        if path.contains("MACs") {
            assert!(expected.starts_with(&ours.body));
        } else {
            assert_eq!(ours.body, expected, "{command}");
            assert_eq!(ours.header("content-length"), theirs.header("content-length"), "{command}");
        }
        same += 1;
    }
    assert!(same >= 18 && off >= 24, "{same} {off}");
    assert_eq!(call(addr, "GET", "/", "", "").await.status, 404);
    let head = call(addr, "HEAD", "/status", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (405, ""));
}

#[tokio::test]
async fn pages_and_readiness() {
    let (control, _seen) = peer(report());
    let addr = serve(&control, Access::Status).await;
    let page = call(addr, "GET", "/status", "", "").await;
    // Has one line more than 2.8.1.
    let same = page.body.replace("      Consensus: deferred\n", "");
    assert_eq!((page.status, same), (200, vector("one-peer-idle/status.txt")));
    let peers = call(addr, "GET", "/status/peers", "", "").await;
    assert_eq!(peers.body, vector("one-peer-idle/status-peers.txt"));
    let json = call(addr, "GET", "/report", "Accept: application/json\r\n", "").await;
    assert_eq!(json.body.trim_end(), vector("one-peer-idle/report.json").trim_end());
    assert!(!json.body.ends_with('\n'));
    for (method, path) in
        [("POST", "/connect"), ("POST", "/forget"), ("DELETE", "/peer"), ("DELETE", "/peer/x")]
    {
        assert_eq!(call(addr, method, path, "", "").await.status, 404, "{path} on the status listener");
    }
    let (control, _seen) = peer(Report { ready: false, ..report() });
    let addr = serve(&control, Access::Control).await;
    let page = call(addr, "GET", "/status", "", "").await;
    let same = page.body.replace("      Consensus: deferred\n", "");
    assert_eq!((page.status, same), (503, vector("one-peer-idle/status.txt")));
    // The page of a service that is off is empty.
    let (control, _seen) = peer(Report { ipam: None, dns: None, ..report() });
    let addr = serve(&control, Access::Control).await;
    for path in ["/status/dns", "/status/ipam"] {
        let page = call(addr, "GET", path, "", "").await;
        assert_eq!((page.status, page.body.as_str()), (200, ""), "{path}");
    }
}

#[tokio::test]
async fn connect_and_forget() {
    let (control, mut seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    assert_eq!(call(addr, "POST", "/connect?peer=q", "", "peer=a%3A1&peer=b&replace=true").await.status, 200);
    assert_eq!(seen.recv().await.unwrap(), r#"connect ["q", "a:1", "b"] true"#);
    assert_eq!(call(addr, "POST", "/connect", "", "replace=true").await.status, 200);
    assert_eq!(seen.recv().await.unwrap(), "connect [] true");
    let refused = call(addr, "POST", "/connect", "", "peer=x:70000&peer=two").await;
    assert_eq!((refused.status, refused.body.as_str()), (400, "address 70000: invalid port\nsecond\n"));
    seen.recv().await.unwrap();
    assert_eq!(call(addr, "POST", "/forget", "", "peer=a&peer=b").await.status, 200);
    assert_eq!(seen.recv().await.unwrap(), r#"forget ["a", "b"]"#);
    let leave = call(addr, "DELETE", "/peer", "", "").await;
    assert_eq!((leave.status, leave.body.as_str()), (204, ""));
}

#[tokio::test]
async fn expose_and_hide() {
    let (control, mut seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    for (path, what) in [
        ("/expose/10.2.1.1/24", "expose 10.2.1.1/24 true"),
        ("/expose/10.2.1.1/24?skipNAT=true", "expose 10.2.1.1/24 false"),
        ("/expose/10.2.1.1/24?skipNAT=0", "expose 10.2.1.1/24 true"),
        ("/expose/10.2.1.1/24?skipNAT=", "expose 10.2.1.1/24 true"),
        (
            "/expose/10.2.1.1/24?also=10.2.2.1%2F24&also=10.2.3.1/24",
            "expose 10.2.1.1/24 10.2.2.1/24 10.2.3.1/24 true",
        ),
    ] {
        let done = call(addr, "POST", path, "", "").await;
        assert_eq!((done.status, done.body.as_str()), (204, ""), "{path}");
        assert_eq!(seen.recv().await.unwrap(), what);
    }
    assert_eq!(call(addr, "DELETE", "/expose/10.2.1.1/24", "", "").await.status, 204);
    assert_eq!(seen.recv().await.unwrap(), "hide 10.2.1.1/24");
    let refused = call(addr, "POST", "/expose/10.2.1.1/32", "", "").await;
    assert_eq!((refused.status, refused.body.as_str()), (500, "unable to expose: no room\n"));
    seen.recv().await.unwrap();
    // None of these reaches the peer. 2.8.1 continued after an option that it could not parse.
    for (method, path, status) in [
        ("POST", "/expose/10.2.1.1/24?skipNAT=maybe", 400),
        ("POST", "/expose/10.2.1/24", 400),
        ("DELETE", "/expose/10.2.1.1/33", 400),
        ("POST", "/expose/10.2.1.1/24?also=10.2.1/24", 400),
        ("DELETE", "/expose/10.2.1.1/24?also=", 400),
        ("GET", "/expose/10.2.1.1/24", 405),
        ("PUT", "/expose/10.2.1.1/24", 405),
        ("POST", "/expose/10.2.1.1", 404),
        ("POST", "/expose/10.2.1.1/24/7", 404),
        ("DELETE", "/expose/", 404),
    ] {
        assert_eq!(call(addr, method, path, "", "").await.status, status, "{method} {path}");
    }
    assert!(seen.try_recv().is_err());
    let status = serve(&control, Access::Status).await;
    assert_eq!(call(status, "POST", "/expose/10.2.1.1/24", "", "").await.status, 404);
}

#[tokio::test]
async fn requests_of_foreign_web_pages_are_refused() {
    let (control, mut seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    let with = async |headers: &str| {
        let request =
            format!("POST /forget HTTP/1.1\r\nConnection: close\r\n{headers}Content-Length: 0\r\n\r\n");
        raw(addr, request.as_bytes()).await.status
    };
    for refused in [
        "Host: evil.example\r\n",
        "Host: evil.example:6784\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: \r\n",
        "Host: 127.0.0.1\r\nOrigin: http://evil.example\r\n",
        "Host: 127.0.0.1\r\nOrigin: null\r\n",
        "Host: 127.0.0.1\r\nOrigin: http://192.0.2.1\r\n",
        "Host: localhost\r\nOrigin: http://localhost.evil.example:6784\r\n",
    ] {
        assert_eq!(with(refused).await, 403, "{refused}");
        assert!(seen.try_recv().is_err(), "{refused}");
    }
    for accepted in [
        "",
        "Host: localhost\r\n",
        "Host: LOCALHOST:6784\r\n",
        "Host: 127.0.0.1:6784\r\n",
        "Host: 10.0.0.7:6784\r\n",
        "Host: [::1]:6784\r\n",
        "Host: localhost\r\nOrigin: http://localhost:3000\r\n",
        "Host: localhost\r\nOrigin: http://127.0.0.1\r\n",
    ] {
        assert_eq!(with(accepted).await, 200, "{accepted}");
        seen.recv().await.unwrap();
    }
}

#[tokio::test]
async fn only_root_may_change_anything_over_tcp() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOTICE: not root, so requests of other users are not tested");
        return;
    }
    let (control, mut seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    let as_user = async |uid: u32, request: &str| {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{} && printf '{request} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\nContent-Length: \
             0\\r\\n\\r\\n' >&3 && cat <&3",
            addr.port()
        );
        let output = tokio::task::spawn_blocking(move || {
            std::process::Command::new("bash").args(["-c", &script]).uid(uid).gid(uid).output().unwrap()
        });
        parse(&output.await.unwrap().stdout)
    };
    for request in [
        "POST /connect",
        "POST /forget",
        "POST /expose/10.2.1.1/24",
        "DELETE /expose/10.2.1.1/24",
        "DELETE /peer",
        "DELETE /peer/h2",
        "POST /ip/c1",
        "PUT /ip/c1/10.2.1.1/24",
        "GET /ring",
        "POST /attach-bridge",
        "POST /unknown",
    ] {
        let answer = as_user(12345, request).await;
        assert_eq!(answer.status, 403, "{request}: {answer:?}");
        assert!(
            answer.body.contains("for root of this host only; it was sent by user id 12345"),
            "{answer:?}"
        );
    }
    assert!(seen.try_recv().is_err());
    assert_eq!(as_user(12345, "GET /status").await.status, 200);
    assert_eq!(as_user(0, "POST /forget").await.status, 200);
    assert_eq!(seen.recv().await.unwrap(), "forget []");
}

#[tokio::test]
async fn metrics_are_served_by_three_listeners() {
    let (control, _seen) = peer(report());
    for access in [Access::Control, Access::Status, Access::Metrics] {
        let addr = serve(&control, access).await;
        let page = call(addr, "GET", "/metrics", "", "").await;
        assert_eq!(page.status, 200);
        assert_eq!(page.header("content-type").unwrap(), "text/plain; version=0.0.4; charset=utf-8");
        assert!(page.body.lines().any(|l| l == "weave_max_ips 1048576"), "{}", page.body);
        assert!(!page.body.contains("EOF"));
        let prometheus =
            "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n";
        let open = call(addr, "GET", "/metrics", prometheus, "").await;
        assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"));
        assert!(open.body.ends_with("# EOF\n"));
        assert_eq!(call(addr, "POST", "/metrics", "", "").await.status, 405);
        let status = call(addr, "GET", "/status", "", "").await.status;
        assert_eq!(status, if access == Access::Metrics { 404 } else { 200 }, "{access:?}");
    }
    // 2.8.1 crashed in this case.
    let (control, _seen) = peer(Report { ipam: None, dns: None, ..report() });
    let addr = serve(&control, Access::Status).await;
    for _ in 0..2 {
        let page = call(addr, "GET", "/metrics", "", "").await;
        assert!(page.status == 200 && !page.body.contains("weave_ip"), "{}", page.body);
    }
}

#[tokio::test]
async fn status_listener_accepts_addresses_and_local_names_only() {
    let (control, _seen) = peer(report());
    for access in [Access::Status, Access::Metrics] {
        let addr = serve(&control, access).await;
        let with = async |host: &str| {
            let request = format!("GET /metrics HTTP/1.1\r\nConnection: close\r\n{host}\r\n");
            raw(addr, request.as_bytes()).await.status
        };
        for good in [
            "",
            "Host: 10.0.0.1:6782\r\n",
            "Host: host1:6782\r\n",
            "Host: localhost\r\n",
            "Host: a.b.svc:6782\r\n",
        ] {
            assert_eq!(with(good).await, 200, "{good}");
        }
        for bad in ["Host: evil.example:6782\r\n", "Host: localhost.evil.example\r\n", "Host: \r\n"] {
            assert_eq!(with(bad).await, 403, "{bad}");
        }
    }
}

#[tokio::test]
async fn idle_clients_are_disconnected() {
    let (control, _seen) = peer(report());
    let any = ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 };
    let timeout = Duration::from_millis(300);
    let limits = Limits { connections: 3, timeout };
    let listener = Listener::bind(&any, Access::Status).await.unwrap().with_limits(limits);
    let addr = listener.local_addr().unwrap();
    tokio::spawn(listener.serve(control));
    // The answers exceed all buffers.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut unread = socket.connect(addr).await.unwrap();
    let request = b"GET /report HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n";
    let flood = tokio::spawn(async move {
        while unread.write_all(&request.repeat(100)).await.is_ok() {}
        unread
    });
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert!(idle.read(&mut [0; 4096]).await.unwrap() > 0);
    let served = tokio::time::timeout(Duration::from_secs(30), async {
        for _ in 0..4 {
            assert_eq!(call(addr, "GET", "/status", "", "").await.status, 200);
        }
    });
    served.await.expect("connections are free again");
    let ended = tokio::time::timeout(Duration::from_secs(30), async {
        flood.await.unwrap();
        for stream in [&mut silent, &mut idle] {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    ended.await.expect("all three clients are disconnected");
}

#[tokio::test]
async fn oversized_and_malformed_requests_are_refused() {
    let (control, mut seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    let large = call(addr, "POST", "/connect", "", &"p".repeat((1 << 20) + 1)).await;
    assert!(large.status == 413 || large.status == 0, "{large:?}");
    let header = raw(addr, &[b"GET /status HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 1 << 20]].concat()).await;
    assert!(matches!(header.status, 0 | 400 | 431), "{header:?}");
    for garbage in [
        &b"\0\xff\x16\x03\x01\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"POST /connect HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ] {
        let answer = raw(addr, garbage).await;
        assert!(matches!(answer.status, 0 | 400), "{answer:?}");
    }
    assert!(seen.try_recv().is_err());
    assert_eq!(call(addr, "GET", "/status", "", "").await.status, 200, "still there");
}

#[tokio::test]
async fn unix_socket_is_private_and_replaces_a_stale_one() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weave.sock");
    std::fs::write(&path, "stale").unwrap();
    let (control, _seen) = peer(report());
    let listener = Listener::bind(&ListenAddr::Unix(path.clone()), Access::Trusted).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let serving = tokio::spawn(listener.serve(control));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    // Only root can connect, so the headers are not checked.
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).status, 200);
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert!(!path.exists(), "the file is removed with the listener");

    let first = Listener::bind(&ListenAddr::Unix(path.clone()), Access::Trusted).await.unwrap();
    let second = Listener::bind(&ListenAddr::Unix(path.clone()), Access::Trusted).await.unwrap();
    drop(first);
    assert!(path.exists(), "the file of the next daemon is kept");
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn answer_is_503_after_the_node_has_ended() {
    let (control, requests) = Control::new(1);
    drop(requests);
    let addr = serve(&control, Access::Control).await;
    assert_eq!(call(addr, "GET", "/status", "", "").await.status, 503);
    assert_eq!(call(addr, "POST", "/connect", "", "peer=a").await.status, 503);
}
