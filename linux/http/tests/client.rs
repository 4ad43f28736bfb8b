//! The client with servers that send valid, malformed, late or no responses.
#![expect(clippy::unwrap_used, reason = "clippy allows unwrap in tests, but not in their helper functions")]

use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use http_body_util::BodyExt;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weave_http::{Client, Endpoint, Error, Request, Response, ServerTls, ServerTlsFiles, Tls, encode};

const TIMEOUT: Duration = Duration::from_secs(20);
const MAX_BODY: usize = 1 << 20;

fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn get(path: &str) -> Request<'_> {
    Request { method: "GET", path, ..Request::default() }
}

/// The result of one request to a server that sends `answer` in pieces of `piece` bytes and closes the connection.
fn answered(answer: &[u8], piece: usize) -> Result<Response, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let head = read_head(&mut stream);
            assert!(head.starts_with("GET /x HTTP/1.1\r\nhost: localhost\r\n"), "{head}");
            for piece in answer.chunks(piece) {
                // The client may have closed the connection already.
                let _ = stream.write_all(piece);
            }
        });
        let client = Client::new(Endpoint::Unix(path)).with_timeout(TIMEOUT).with_max_body(MAX_BODY);
        client.exchange_blocking(get("/x"), None)
    })
}

#[test]
fn bodies_with_length_chunks_or_end_of_stream_are_read() {
    let cases: [(&[u8], u16, &[u8]); 6] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, ignored", 200, b"hello"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
            200,
            b"hello",
        ),
        (b"HTTP/1.0 404 Not Found\r\n\r\nhello", 404, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x"),
        (b"HTTP/1.1 500\r\nContent-Length: 0\r\n\r\n", 500, b""),
    ];
    for (answer, status, body) in cases {
        for piece in [1, 3, 1000] {
            let response = answered(answer, piece).unwrap();
            assert_eq!((response.status, &response.body[..]), (status, body));
        }
    }
}

#[test]
fn invalid_or_truncated_responses_are_errors() {
    for answer in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 yes\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
    ] {
        let result = answered(answer, 1000);
        assert!(
            matches!(result, Err(Error::Malformed(_))),
            "{:?}: {result:?}",
            String::from_utf8_lossy(answer)
        );
    }
}

#[test]
fn heads_and_bodies_are_bounded() {
    let big = vec![b'x'; 200_000];
    let result = answered(&[b"HTTP/1.1 200 OK\r\nA: ", &big[..]].concat(), 1 << 20);
    assert!(matches!(result, Err(Error::Malformed(_))), "{result:?}");
    for answer in [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n".to_vec(),
        [b"HTTP/1.1 200 OK\r\n\r\n", &vec![0; MAX_BODY + 1][..]].concat(),
    ] {
        let result = answered(&answer, 1 << 20);
        assert!(matches!(result, Err(Error::TooLarge(_) | Error::Malformed(_))), "{result:?}");
    }
}

#[test]
fn missing_and_silent_servers_give_different_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let client = Client::new(Endpoint::Unix(path.clone())).with_timeout(Duration::from_millis(50));
    let result = client.exchange_blocking(get("/x"), None);
    assert!(matches!(result, Err(Error::Connect(_))), "{result:?}");
    // The kernel completes connections to a socket before they are accepted.
    let _listener = UnixListener::bind(&path).unwrap();
    let result = client.exchange_blocking(get("/x"), None);
    assert!(matches!(result, Err(Error::Timeout(_))), "{result:?}");
}

#[test]
fn requests_carry_headers_body_and_file_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut line, mut space) = ([0; 2], nix::cmsg_space!([i32; 2]));
            let mut parts = [IoSliceMut::new(&mut line)];
            let message =
                recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
            let fds = message.cmsgs().unwrap().find_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => Some(fds),
                _ => None,
            });
            let fds = fds.unwrap();
            assert_eq!((fds.len(), &line), (1, b"\r\n"));
            // SAFETY: the kernel has just made this descriptor for this process, and nothing else owns it.
            let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fds[0]) });
            let head = read_head(&mut stream).to_ascii_lowercase();
            assert!(head.starts_with("post /x?y=1 http/1.1\r\n"), "{head}");
            for header in ["a: b", "content-type: text/plain", "content-length: 4"] {
                assert!(head.contains(&format!("\r\n{header}\r\n")), "{head}");
            }
            let mut body = [0; 4];
            stream.read_exact(&mut body).unwrap();
            assert_eq!(&body, b"body");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        });
        let file = dir.path().join("file");
        std::fs::write(&file, "content").unwrap();
        let fd = OwnedFd::from(std::fs::File::open(file).unwrap());
        let request = Request {
            method: "POST",
            path: "/x?y=1",
            headers: &[("a", "b")],
            body: Some(("text/plain", b"body")),
        };
        let client = Client::new(Endpoint::Unix(path)).with_timeout(TIMEOUT);
        assert_eq!(client.exchange_blocking(request, Some(fd.as_fd())).unwrap().status, 200);
        assert_eq!(server.join().unwrap(), "content");
        let tcp = Client::new(Endpoint::Tcp("127.0.0.1:1".into()));
        assert!(matches!(tcp.exchange_blocking(request, Some(fd.as_fd())), Err(Error::Connect(_))));
    });
}

#[tokio::test]
async fn connection_is_reused_and_a_stream_does_not_block_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        // First connection: two requests, and a third whose answer never ends.
        let (mut first, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        for _ in 0..2 {
            assert!(first.read(&mut buffer).await.unwrap() > 0);
            first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await.unwrap();
        }
        assert!(first.read(&mut buffer).await.unwrap() > 0);
        first
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n")
            .await
            .unwrap();
        let (mut second, _) = listener.accept().await.unwrap();
        assert!(second.read(&mut buffer).await.unwrap() > 0);
        second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await.unwrap();
        (first, second)
    });
    let client = Client::new(Endpoint::Unix(path)).with_timeout(TIMEOUT);
    for _ in 0..2 {
        assert_eq!(client.exchange(get("/x")).await.unwrap().body, b"1");
    }
    let mut events = client.send(get("/events")).await.unwrap().into_body();
    let frame = events.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "event");
    assert_eq!(client.exchange(get("/x")).await.unwrap().body, b"2");
    drop(server.await.unwrap());
    // A blocking exchange works on the thread of an async runtime, too.
    assert!(matches!(
        client.exchange_blocking(get("/x"), None),
        Err(Error::Connect(_) | Error::Malformed(_))
    ));
}

#[tokio::test]
async fn both_sides_of_tls_are_authenticated() {
    let dir = tempfile::tempdir().unwrap();
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(authority, key()).unwrap();
    let signed = |name: &str, key: &rcgen::KeyPair| {
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(key, &authority).unwrap()
    };
    let (server_key, client_key) = (key(), key());
    let path = |name: &str| dir.path().join(name);
    let write_client = |certificate: String, key: &rcgen::KeyPair| {
        std::fs::write(path("cert.pem"), certificate).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    };
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    std::fs::write(path("server.pem"), signed("127.0.0.1", &server_key).pem()).unwrap();
    std::fs::write(path("server-key.pem"), server_key.serialize_pem()).unwrap();
    write_client(signed("client", &client_key).pem(), &client_key);
    let files = ServerTlsFiles {
        client_ca: Some(path("ca.pem")),
        certificate: path("server.pem"),
        key: path("server-key.pem"),
    };
    let acceptor = ServerTls::new(&files).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    });
    let client = |address: String| {
        let tls = Tls::from_directory(dir.path()).unwrap();
        Client::new(Endpoint::Tls(address, tls)).with_timeout(TIMEOUT)
    };
    assert_eq!(client(address.to_string()).exchange(get("/x")).await.unwrap().body, b"ok");
    // The certificate is for 127.0.0.1.
    let wrong = client(format!("localhost:{}", address.port())).exchange(get("/x")).await;
    assert!(matches!(wrong, Err(Error::Tls(_))), "{wrong:?}");
    // A certificate that the authority has not signed.
    let own =
        rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap().self_signed(&client_key).unwrap();
    write_client(own.pem(), &client_key);
    let refused = client(address.to_string()).exchange(get("/x")).await;
    assert!(refused.is_err(), "{refused:?}");
    std::fs::remove_file(path("server.pem")).unwrap();
    let error = ServerTls::new(&files).unwrap_err().to_string();
    assert!(error.contains("server.pem"), "{error}");
    std::fs::remove_file(path("key.pem")).unwrap();
    let error = Tls::from_directory(dir.path()).unwrap_err().to_string();
    assert!(error.contains("key.pem"), "{error}");
}

#[test]
fn only_unreserved_characters_are_not_encoded() {
    assert_eq!(encode("a-b_c.d~9"), "a-b_c.d~9");
    assert_eq!(encode("../x y?\r\n/é"), "..%2Fx%20y%3F%0D%0A%2F%C3%A9");
}
