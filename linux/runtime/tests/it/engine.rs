//! What the client of container engines sends, and what it makes of the answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use weave_runtime::Docker;

/// The request that the engine receives, and the result of `call` when it answers with `answer`.
fn request_and_result<T>(answer: &str, call: impl FnOnce(&Docker) -> T) -> (Vec<u8>, T) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let docker = Docker::at(Some(&format!("unix://{}", path.display())));
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut chunk = [0; 65536];
            loop {
                let n = stream.read(&mut chunk).unwrap();
                request.extend_from_slice(&chunk[..n]);
                let text = String::from_utf8_lossy(&request);
                let Some(end) = text.find("\r\n\r\n") else { continue };
                let length = text[..end].lines().find_map(|l| l.strip_prefix("content-length: "));
                let length: usize = length.map_or(0, |l| l.parse().unwrap());
                let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                if request.len() >= head + length {
                    break;
                }
            }
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        let result = call(&docker);
        (server.join().unwrap(), result)
    })
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_container_is_described() {
    let body = r#"{"Id":"abc","Name":"/weave","State":{"Running":false,"Status":"exited","ExitCode":3,"StartedAt":"t"},"Config":{"Image":"weave:3"}}"#;
    let (request, service) =
        request_and_result(&answer(200, body), |d| d.inspect("we/ave").unwrap().unwrap());
    assert!(request.starts_with(b"GET /containers/we%2Fave/json HTTP/1.1\r\n"));
    assert_eq!((service.name.as_str(), service.image.as_str()), ("weave", "weave:3"));
    assert_eq!((service.state.as_str(), service.exit_code), ("exited", 3));
    let missing = answer(404, r#"{"message":"No such container"}"#);
    assert_eq!(request_and_result(&missing, |d| d.inspect("x").unwrap()).1, None);
    let broken = answer(500, r#"{"message":"disk on fire"}"#);
    let error = request_and_result(&broken, |d| d.inspect("x").unwrap_err().to_string()).1;
    assert!(error.ends_with("docker.sock cannot describe x: disk on fire"), "{error}");
}

/// API 1.52 leaves out what older versions sent as empty, the address in `NetworkSettings` and the command of an image.
#[test]
fn descriptions_of_docker_29() {
    let body = r#"{"Id":"abc","Created":"2025-11-12T10:00:00.1Z","Path":"/w/w","Args":["sh"],"State":{"Status":"running","Running":true,
        "Paused":false,"Restarting":false,"OOMKilled":false,"Dead":false,"Pid":42,"ExitCode":0,"Error":"","StartedAt":"2025-11-12T10:00:01Z",
        "FinishedAt":"0001-01-01T00:00:00Z"},"Image":"sha256:1","HostsPath":"/var/lib/docker/containers/abc/hosts","Name":"/web",
        "RestartCount":0,"Driver":"overlayfs","Platform":"linux","ImageManifestDescriptor":{"mediaType":"x","digest":"sha256:1","size":1},
        "MountLabel":"","ProcessLabel":"","AppArmorProfile":"","ExecIDs":null,"HostConfig":{"Binds":["/var/lib/weave/wait/multicast:/w:ro"],
        "LogConfig":{"Type":"json-file","Config":{}},"NetworkMode":"bridge","RestartPolicy":{"Name":"no","MaximumRetryCount":0},
        "ExtraHosts":null},"Storage":{"RootFS":{"Snapshot":{"Name":"overlayfs"}}},"Mounts":[{"Type":"bind","Source":
        "/var/lib/weave/wait/multicast","Destination":"/w","Mode":"ro","RW":false,"Propagation":"rprivate"}],"Config":{"Hostname":"web",
        "Domainname":"weave.local","User":"","Env":["WEAVE_CIDR=10.2.1.1/24"],"Cmd":["sh"],"Image":"ubuntu","Entrypoint":["/w/w"],"Labels":{}},
        "NetworkSettings":{"SandboxID":"s","SandboxKey":"/var/run/docker/netns/s","Ports":{},"Networks":{"bridge":{"DNSNames":null,
        "NetworkID":"n","EndpointID":"e","Gateway":"172.17.0.1","IPAddress":"172.17.0.2","MacAddress":"02:42:ac:11:00:02"}}}}"#;
    let info = weave_runtime::ContainerInfo::from_json(body.as_bytes()).unwrap();
    assert_eq!((info.pid, info.dns_name().as_deref()), (Some(42), Some("web.weave.local")));
    assert_eq!(
        (info.entrypoint, info.env),
        (vec!["/w/w".to_owned()], vec!["WEAVE_CIDR=10.2.1.1/24".to_owned()])
    );
    assert!(info.mounts.iter().any(|(_, inside)| inside.as_os_str() == "/w"));

    let image = |config: &str| {
        let body = answer(200, &format!(r#"{{"Id":"sha256:1","RepoTags":["x:latest"]{config}}}"#));
        let image = request_and_result(&body, |d| d.inspect_image("x").unwrap().unwrap()).1;
        (image.entrypoint, image.cmd)
    };
    let none = (Vec::new(), Vec::new());
    assert_eq!(image(r#","Config":{"Cmd":["sh"]}"#), (Vec::new(), vec!["sh".to_owned()]));
    assert_eq!(
        [image(r#","Config":{}"#), image(r#","Config":null"#), image("")],
        [none.clone(), none.clone(), none]
    );
}

#[test]
fn an_image_is_created_from_a_program() {
    let program = vec![7; 5000];
    let import = |d: &Docker| d.import_program("weave", "3.0.0", "weave", &program, "a.b=c");
    let (request, result) = request_and_result(&answer(200, "{\"status\":\"sha256:1\"}\r\n"), import);
    result.unwrap();
    let text = String::from_utf8_lossy(&request);
    let start = "POST /images/create?fromSrc=-&repo=weave&tag=3.0.0&changes=ENTRYPOINT%20%5B%22%2Fweave%22%5D&changes=LABEL%20a.b%3Dc HTTP/1.1\r\n";
    assert!(text.starts_with(start), "{}", text.lines().next().unwrap());
    let at = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let mut tar = tar::Archive::new(&request[at..]);
    let mut entries = tar.entries().unwrap();
    let mut entry = entries.next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some("weave"));
    assert_eq!(entry.header().mode().unwrap(), 0o755);
    let mut content = Vec::new();
    entry.read_to_end(&mut content).unwrap();
    assert_eq!(content, program);
    assert!(entries.next().is_none());
    // An error may follow the status of success.
    let late = answer(200, "{\"status\":\"x\"}\r\n{\"error\":\"no space left\"}\r\n");
    let error = request_and_result(&late, import).1.unwrap_err().to_string();
    assert!(error.ends_with("docker.sock cannot create image weave:3.0.0: no space left"), "{error}");
}

#[test]
fn removing_what_is_gone_succeeds() {
    let gone = answer(404, r#"{"message":"No such container"}"#);
    assert!(request_and_result(&gone, |d| d.remove("x")).1.is_ok());
    assert!(request_and_result(&gone, |d| d.rename("x", "y")).1.is_err());
    assert!(request_and_result(&answer(409, r#"{"message":"in use"}"#), |d| d.remove_image("x")).1.is_err());
}

#[test]
fn the_last_log_line_is_found() {
    let body = "\x01\0\0\0\0\0\0\x04one\n\x02\0\0\0\0\0\0\x08two\nthre";
    assert_eq!(request_and_result(&answer(200, body), |d| d.last_log_line("x").unwrap()).1, "thre");
    assert_eq!(request_and_result(&answer(200, ""), |d| d.last_log_line("x").unwrap()).1, "");
    let cut = "\x01\0\0\0\0\0\0\x7fcut";
    assert_eq!(request_and_result(&answer(200, cut), |d| d.last_log_line("x").unwrap()).1, "cut");
}

#[test]
fn containers_and_images_are_listed_by_label() {
    let body = r#"[{"Id":"1","Names":["/weavedb"]},{"Id":"2"}]"#;
    let (request, names) =
        request_and_result(&answer(200, body), |d| d.containers_labelled("weavevolumes").unwrap());
    assert_eq!(names, ["weavedb", "2"]);
    let start = "GET /containers/json?all=true&filters=%7B%22label%22%3A%5B%22weavevolumes%22%5D%7D HTTP/1.1";
    assert!(String::from_utf8_lossy(&request).starts_with(start));
    let body = r#"[{"Id":"i1","RepoTags":["weave:3","weave:latest"]},{"Id":"i2","RepoTags":null}]"#;
    assert_eq!(
        request_and_result(&answer(200, body), |d| d.images_labelled("l").unwrap()).1,
        ["weave:3", "weave:latest", "i2"]
    );
}
