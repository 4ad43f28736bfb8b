//! The live picture over real sockets: its files, the stream of views, and the limits of its readers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weave_api::NetworkView;
use weave_api::network_view::Name;
use weave_daemon::config::ListenAddr;
use weave_daemon::testing::{Access, Control, Limits, Listener, Request};

use crate::http::{call, serve};

const DEADLINE: Duration = Duration::from_secs(20);
/// Of the streams of root.
const MAX_READERS: usize = 32;

pub(crate) type SharedView = Arc<Mutex<NetworkView>>;

/// A peer that answers with this view.
pub(crate) fn peer(view: &SharedView) -> Control {
    let (control, mut requests) = Control::new(4);
    let view = view.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            match request {
                Request::NetworkView(answer) => {
                    let mut view = view.lock().unwrap();
                    view.time += 1;
                    let _ = answer.send(view.clone());
                }
                _ => panic!("{request:?}"),
            }
        }
    });
    control
}

struct Stream {
    socket: TcpStream,
    received: String,
}

impl Stream {
    async fn open(addr: SocketAddr) -> Stream {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET /events HTTP/1.1\r\nHost: {addr}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        Stream { socket, received: String::new() }
    }

    /// What comes until this text, which is removed.
    async fn until(&mut self, end: &str) -> String {
        let read = async {
            loop {
                if let Some((before, after)) = self.received.split_once(end) {
                    let before = before.to_owned();
                    self.received = after.to_owned();
                    return before;
                }
                let mut buffer = [0; 4096];
                let read = self.socket.read(&mut buffer).await.unwrap();
                assert!(read > 0, "the stream has ended: {:?}", self.received);
                self.received.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
        };
        tokio::time::timeout(DEADLINE, read).await.unwrap_or_else(|_| panic!("no {end:?}"))
    }

    async fn view(&mut self) -> NetworkView {
        self.until("data: {").await;
        NetworkView::from_json(&format!("{{{}", self.until("\n\n").await)).unwrap()
    }

    /// Waits for a view of a peer with this name.
    async fn view_of(&mut self, name: &str) -> NetworkView {
        loop {
            let view = self.view().await;
            if view.name == name {
                return view;
            }
        }
    }
}

#[tokio::test]
async fn files_of_the_picture_contain_no_code_of_others() {
    let control = peer(&Arc::default());
    let addr = serve(&control, Access::Status).await;
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; ";
    let code = r#"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|<script>|\s(on[a-z]+|style)=""#;
    let code = regex_lite::Regex::new(code).unwrap();
    let mut size = 0;
    for (path, content_type) in [("", "text/html"), (".css", "text/css"), (".js", "text/javascript")] {
        let path = format!("/picture{path}");
        let file = call(addr, "GET", &path, "", "").await;
        assert_eq!((file.status, file.header("cache-control").as_deref()), (200, Some("no-store")), "{path}");
        assert!(file.header("content-type").unwrap().starts_with(content_type), "{path}");
        assert!(file.header("content-security-policy").unwrap().starts_with(policy), "{path}");
        assert_eq!(file.header("x-content-type-options").as_deref(), Some("nosniff"), "{path}");
        let found = code.find(&file.body).map(|found| found.as_str());
        assert_eq!(found, None, "{path}: the page has code in itself, or makes some of text");
        size += file.body.len();
        assert_eq!(call(addr, "POST", &path, "", "").await.status, 405, "{path}");
    }
    assert!(size <= 25_000, "{size} bytes");
    let view = call(addr, "GET", "/picture.json", "", "").await;
    assert_eq!(NetworkView::from_json(&view.body).unwrap().time, 1);
}

#[tokio::test]
async fn only_requests_for_this_machine_are_answered() {
    let control = peer(&Arc::default());
    let status = serve(&control, Access::Status).await;
    let metrics = serve(&control, Access::Metrics).await;
    for path in ["/picture", "/picture.js", "/picture.json", "/events"] {
        let mut socket = TcpStream::connect(status).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example:6782\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{path}: {answer}");
        assert_eq!(call(metrics, "GET", path, "", "").await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_view_comes_when_something_has_changed_and_a_heartbeat_otherwise() {
    let view = Arc::new(Mutex::new(NetworkView { name: "first".to_owned(), ..NetworkView::default() }));
    let addr = serve(&peer(&view), Access::Status).await;
    let mut stream = Stream::open(addr).await;
    let head = stream.until("\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 ") && head.contains("content-type: text/event-stream"), "{head}");
    assert!(head.contains("cache-control: no-store"), "{head}");
    assert_eq!(stream.view().await.name, "first");
    view.lock().unwrap().name = "second".to_owned();
    let second = stream.view_of("second").await;
    // Rates are computed from two views.
    assert_eq!(stream.view().await, NetworkView { time: second.time + 1, ..second });
    let before = stream.until("event: heartbeat\n").await;
    assert!(!before.contains("{"), "only the time has changed: {before}");
    // A further reader gets the view at once, and another one later.
    let mut other = Stream::open(addr).await;
    assert_eq!(other.view().await.name, "second");
    view.lock().unwrap().name = "<\u{2028}third\n".to_owned();
    for stream in [&mut stream, &mut other] {
        stream.view_of("<\u{2028}third\n").await;
    }
}

#[tokio::test]
async fn number_of_streams_is_limited() {
    let addr = serve(&peer(&Arc::default()), Access::Status).await;
    let mut streams = Vec::new();
    for _ in 0..MAX_READERS {
        let mut stream = Stream::open(addr).await;
        assert!(stream.until("\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
        streams.push(stream);
    }
    let refused = call(addr, "GET", "/events", "", "").await;
    assert_eq!((refused.status, refused.body.as_str()), (503, "too many clients read events\n"));
    assert_eq!(call(addr, "GET", "/picture.json", "", "").await.status, 200);
    streams.pop();
    admitted(addr).await;
}

/// Waits until another stream is answered, because one has ended.
async fn admitted(addr: SocketAddr) {
    let admitted = async {
        while !Stream::open(addr).await.until("\r\n\r\n").await.starts_with("HTTP/1.1 200 ") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, admitted).await.expect("a stream ends");
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_disconnected() {
    let name = Name { hostname: "x".repeat(20_000), ..Name::default() };
    let view = Arc::new(Mutex::new(NetworkView { names: vec![name; 1000], ..NetworkView::default() }));
    let any = ListenAddr::Tcp { host: "127.0.0.1".into(), port: 0 };
    let limits = Limits { timeout: Duration::from_millis(300), ..Limits::default() };
    let listener = Listener::bind(&any, Access::Status).await.unwrap().with_limits(limits);
    let addr = listener.local_addr().unwrap();
    tokio::spawn(listener.serve(peer(&view)));
    let mut streams = Vec::new();
    for _ in 0..MAX_READERS {
        let stream = Stream::open(addr).await;
        stream.socket.readable().await.unwrap();
        streams.push(stream);
    }
    admitted(addr).await;
    drop(streams);
}
