//! The control API over real sockets, against the recorded transcript of 2.8.1 and against unfriendly clients.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use weave_api::Report;
use weave_daemon::config::ListenAddr;
use weave_daemon::control::{Control, Request};
use weave_daemon::http::{Access, Listener};

fn vector(name: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli");
    std::fs::read_to_string(format!("{root}/{name}")).unwrap()
}

fn report() -> Report {
    Report::from_json(&vector("one-peer-idle/report.json")).unwrap()
}

/// A peer that answers like the recorded one; what it was asked comes out of the channel.
fn peer(report: Report) -> (Control, mpsc::UnboundedReceiver<String>) {
    let (control, mut requests) = Control::new(4);
    let (asked, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            match request {
                Request::Report(answer) => drop(answer.send(report.clone())),
                Request::Connect { peers, replace, answer } => {
                    let bad = peers.iter().filter(|p| p.ends_with(":70000"));
                    let mut errors: Vec<_> = bad.map(|_| "address 70000: invalid port".to_owned()).collect();
                    errors.extend(peers.iter().filter(|p| p.contains("two")).map(|_| "second".to_owned()));
                    let _ = asked.send(format!("connect {peers:?} {replace}"));
                    let _ = answer.send(errors);
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

async fn serve(control: &Control, access: Access) -> SocketAddr {
    let any = ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 };
    let listener = Listener::bind(&any, access).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(listener.serve(control.clone()));
    addr
}

/// Status, header lines and body of one exchange.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<String> {
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

async fn ask(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let length = body.len();
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{headers}{form}");
    raw(addr, format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).await
}

/// Every exchange of the transcript whose route exists without address allocation, names and proxy gives the same
/// status, headers and body; every other is answered as 2.8.1 answers when the service is off.
#[tokio::test]
async fn transcript() {
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
        let ours = ask(addr, method, path, headers, &form.join("&")).await;
        let kind = path.split(['/', '?']).nth(1).unwrap();
        if !["status", "nosuch", "report", "connect", "forget", "peer", "proxyaddrs"].contains(&kind) {
            assert_eq!((ours.status, ours.body.as_str()), (404, "404 page not found\n"), "{command}");
            off += 1;
            continue;
        }
        let (head, body) = answer.split_once("\n\n").unwrap();
        let theirs = Answer { status: 0, head: head.to_owned(), body: body.to_owned() };
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        // Names are not resolved at once, so that a resolver that is down stops nothing; without allocation nothing is
        // taken over, and the body is empty.
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
        let length: usize = theirs.header("content-length").unwrap().parse().unwrap();
        let expected = &theirs.body[..length];
        if path.contains("MACs") {
            assert!(expected.starts_with(&ours.body));
        } else {
            assert_eq!(ours.body, expected, "{command}");
            assert_eq!(ours.header("content-length"), theirs.header("content-length"), "{command}");
        }
        same += 1;
    }
    assert!(same >= 18 && off >= 30, "{same} {off}");
    assert_eq!(ask(addr, "GET", "/", "", "").await.status, 404);
    let head = ask(addr, "HEAD", "/status", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (405, ""));
}

#[tokio::test]
async fn pages_and_readiness() {
    let (control, _seen) = peer(report());
    let addr = serve(&control, Access::Status).await;
    let page = ask(addr, "GET", "/status", "", "").await;
    assert_eq!((page.status, page.body), (200, vector("one-peer-idle/status.txt")));
    let peers = ask(addr, "GET", "/status/peers", "", "").await;
    assert_eq!(peers.body, vector("one-peer-idle/status-peers.txt"));
    let json = ask(addr, "GET", "/report", "Accept: application/json\r\n", "").await;
    assert_eq!(json.body.trim_end(), vector("one-peer-idle/report.json").trim_end());
    assert!(!json.body.ends_with('\n'));
    for (method, path) in
        [("POST", "/connect"), ("POST", "/forget"), ("DELETE", "/peer"), ("DELETE", "/peer/x")]
    {
        assert_eq!(ask(addr, method, path, "", "").await.status, 404, "{path} on the status listener");
    }
    let (control, _seen) = peer(Report { ready: false, ..report() });
    let addr = serve(&control, Access::Control).await;
    let page = ask(addr, "GET", "/status", "", "").await;
    assert_eq!((page.status, page.body), (503, vector("one-peer-idle/status.txt")));
    // Services that are off have empty pages.
    let (control, _seen) = peer(Report { ipam: None, dns: None, ..report() });
    let addr = serve(&control, Access::Control).await;
    for path in ["/status/dns", "/status/ipam"] {
        let page = ask(addr, "GET", path, "", "").await;
        assert_eq!((page.status, page.body.as_str()), (200, ""), "{path}");
    }
}

#[tokio::test]
async fn connect_and_forget() {
    let (control, mut seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    assert_eq!(ask(addr, "POST", "/connect?peer=q", "", "peer=a%3A1&peer=b&replace=true").await.status, 200);
    assert_eq!(seen.recv().await.unwrap(), r#"connect ["q", "a:1", "b"] true"#);
    assert_eq!(ask(addr, "POST", "/connect", "", "replace=true").await.status, 200);
    assert_eq!(seen.recv().await.unwrap(), "connect [] true");
    let refused = ask(addr, "POST", "/connect", "", "peer=x:70000&peer=two").await;
    assert_eq!((refused.status, refused.body.as_str()), (400, "address 70000: invalid port\nsecond\n"));
    seen.recv().await.unwrap();
    assert_eq!(ask(addr, "POST", "/forget", "", "peer=a&peer=b").await.status, 200);
    assert_eq!(seen.recv().await.unwrap(), r#"forget ["a", "b"]"#);
    let leave = ask(addr, "DELETE", "/peer", "", "").await;
    assert_eq!((leave.status, leave.body.as_str()), (204, ""));
}

/// What a page of a foreign site can send, and what programs send.
#[tokio::test]
async fn browsers_are_refused() {
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
    for taken in [
        "",
        "Host: localhost\r\n",
        "Host: LOCALHOST:6784\r\n",
        "Host: 127.0.0.1:6784\r\n",
        "Host: 10.0.0.7:6784\r\n",
        "Host: [::1]:6784\r\n",
        "Host: localhost\r\nOrigin: http://localhost:3000\r\n",
        "Host: localhost\r\nOrigin: http://127.0.0.1\r\n",
    ] {
        assert_eq!(with(taken).await, 200, "{taken}");
        seen.recv().await.unwrap();
    }
}

#[tokio::test]
async fn oversized_and_broken_requests() {
    let (control, mut seen) = peer(report());
    let addr = serve(&control, Access::Control).await;
    let large = ask(addr, "POST", "/connect", "", &"p".repeat((1 << 20) + 1)).await;
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
    assert_eq!(ask(addr, "GET", "/status", "", "").await.status, 200, "still there");
}

#[tokio::test]
async fn the_unix_socket_is_private_and_replaces_a_stale_one() {
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
    // Whoever gets here is root: no browser, no check.
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).status, 200);
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert!(!path.exists(), "the file goes with the listener");

    let first = Listener::bind(&ListenAddr::Unix(path.clone()), Access::Trusted).await.unwrap();
    let second = Listener::bind(&ListenAddr::Unix(path.clone()), Access::Trusted).await.unwrap();
    drop(first);
    assert!(path.exists(), "that of the next daemon stays");
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_peer_that_has_ended_is_told_so() {
    let (control, requests) = Control::new(1);
    drop(requests);
    let addr = serve(&control, Access::Control).await;
    assert_eq!(ask(addr, "GET", "/status", "", "").await.status, 503);
    assert_eq!(ask(addr, "POST", "/connect", "", "peer=a").await.status, 503);
}
