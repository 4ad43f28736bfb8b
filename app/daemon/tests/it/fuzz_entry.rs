//! Handles arbitrary bytes from an HTTP client, or from a client of the Docker API proxy, and arbitrary text as a peer or a listen
//! address. The fuzz targets and the tests that replay their corpora share this module.

use std::cell::LazyCell;
use std::sync::OnceLock;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use tokio::runtime::Runtime;
use weave_api::Report;
use weave_daemon::config::{ListenAddr, check_peer};
use weave_daemon::testing::{Access, serve_connection};
use weave_daemon::testing::{Control, ParsedRequest, Request};
use weave_mesh::{Config, Mesh};
use weave_proxy::{
    Create, Dns, HostnameRule, ImageCommand, Interface, Policy, Route, WaitDirectories, rewrite_exec,
    rewrite_exec_inspect, rewrite_inspect, rewrite_start,
};
use weave_types::{Instant, Now, PeerName, PeerUid};

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(20);

thread_local! {
    static RUNTIME: LazyCell<Runtime> = const {
        LazyCell::new(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap_or_else(|e| panic!("{e}"))
        })
    };
}

fn report() -> &'static Report {
    static REPORT: OnceLock<Report> = OnceLock::new();
    REPORT.get_or_init(|| {
        let text = include_str!("../../../../tests/vectors/cli/one-peer-idle/report.json");
        Report::from_json(text).unwrap_or_else(|e| panic!("{e}"))
    })
}

/// The first byte selects the access of the listener; the rest is sent by a client, which then closes its side. Asserts that the
/// server ends, and that it answers with HTTP or nothing.
pub(crate) fn http_request(data: &[u8]) {
    let Some((&options, request)) = data.split_first() else { return };
    let access = match options % 4 {
        0 => Access::Trusted,
        1 => Access::Control,
        2 => Access::Status,
        _ => Access::Metrics,
    };
    let answer = exchange(access, request, true);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
}

/// The bytes are the form of a request. Asserts that it is answered.
pub(crate) fn http_form(data: &[u8]) {
    let mut request = format!(
        "POST /connect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        data.len()
    )
    .into_bytes();
    request.extend_from_slice(data);
    let answer = exchange(Access::Trusted, &request, false);
    assert!(answer.starts_with(b"HTTP/1.1 "), "{}", String::from_utf8_lossy(&answer));
}

/// Returns the answer of the server. With `close` the client closes its side after the request; otherwise the server waits for the
/// rest of an incomplete one.
fn exchange(access: Access, request: &[u8], close: bool) -> Vec<u8> {
    let (control, mut requests) = Control::new(4);
    let talk = async move {
        // Answers requests for the report only.
        let peer = tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                if let Request::Report(answer) = request {
                    let _ = answer.send(report().clone());
                }
            }
        });
        let (near, far) = duplex(64 << 10);
        let server = tokio::spawn(serve_connection(far, control, access, "h1".to_owned()));
        let (mut from, mut to) = split(near);
        let write = async {
            // The server may close the connection before it has read everything.
            let _ = to.write_all(request).await;
            if close {
                let _ = to.shutdown().await;
            }
        };
        let mut answer = Vec::new();
        let (_, read) = tokio::join!(write, from.read_to_end(&mut answer));
        drop((from, to));
        server.await.unwrap_or_else(|e| panic!("{e}"));
        peer.await.unwrap_or_else(|e| panic!("{e}"));
        read.map(|_| answer).unwrap_or_default()
    };
    let timely = async { tokio::time::timeout(EXCHANGE_TIMEOUT, talk).await };
    RUNTIME.with(|runtime| runtime.block_on(timely)).unwrap_or_else(|_| panic!("the server does not end"))
}

/// The bytes are what a client sends to the Docker API proxy. Asserts that Docker understands what it gets as the proxy did, and that a
/// created container waits.
pub(crate) fn proxy_request(data: &[u8]) {
    let read = |bytes: &[u8]| RUNTIME.with(|runtime| runtime.block_on(ParsedRequest::read(bytes)));
    let Some(request) = read(data) else { return };
    let text = || String::from_utf8_lossy(data).into_owned();
    let again =
        read(&request.forwarded).unwrap_or_else(|| panic!("forwarded, but not understood: {}", text()));
    assert_eq!((&again.target, &again.body), (&request.target, &request.body), "{}", text());

    let policy = Policy {
        wait: WaitDirectories { wait: "/wait".into(), no_wait: "/no-wait".into() },
        dns: Some(Dns { server: Some("172.17.0.1".into()), domain: "weave.local.".into() }),
        attach_by_default: true,
        user_networks: data.len().is_multiple_of(2),
        hostname: HostnameRule::default(),
    };
    let interface = Interface { mac: "46:93:bf:38:b6:71".into(), address: "10.32.0.2".into(), prefix: 12 };
    let rewritten = match Route::find(&request.target) {
        Route::Create => {
            let Ok(Ok(create)) = Create::read(&policy, &request.target, &request.body) else { return };
            let image = ImageCommand { entrypoint: Vec::new(), command: vec!["sh".to_owned()] };
            create.finish(&image)
        }
        Route::Start(_) => rewrite_start(&policy, &request.body, "c1").map(Option::unwrap_or_default),
        Route::Exec(_) => rewrite_exec(&request.body),
        Route::Inspect(_) => rewrite_inspect(&request.body, &interface),
        Route::InspectExec => rewrite_exec_inspect(&request.body, &interface),
        Route::Other => return,
    };
    let Ok(body) = rewritten else { return };
    if !body.is_empty() {
        let json: serde_json::Value =
            serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{e}: {}", text()));
        match Route::find(&request.target) {
            Route::Create => assert_eq!(json["Entrypoint"][0], "/w/w", "{}", text()),
            Route::Exec(_) => assert_eq!(json["Cmd"][0], "/w/w", "{}", text()),
            _ => {}
        }
    }
}

/// The bytes are a peer to connect to and a listen address, as typed. Asserts that the mesh accepts every peer that the command line
/// accepts.
pub(crate) fn typed(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    if let Ok(Some(addr)) = ListenAddr::parse("--http-addr", &text) {
        let printed = addr.to_string();
        assert_eq!(ListenAddr::parse("--http-addr", &printed), Ok(Some(addr)), "{text:?}");
    }
    let accepted = check_peer(&text).is_ok();
    let now = Now { mono: Instant::ORIGIN, wall: Duration::from_secs(1 << 30) };
    let config = Config::new(PeerName::from_bytes([2, 0, 0, 0, 0, 1]), "h1", PeerUid(1));
    let mut mesh = Mesh::new(config, ChaCha12Rng::seed_from_u64(1), now);
    let errors = mesh.connect(std::slice::from_ref(&text), false, now);
    assert!(!accepted || errors.is_empty(), "{text:?}: {errors:?}");
    mesh.forget(&[text], now);
}
