//! Finding containers: by namespace, by process, through a Docker daemon that a thread simulates, and through a real one if
//! there is one. Namespaces need root; the tests say so and pass without.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use weave_host::NetNs;
use weave_runtime::{Docker, Error, Kind, Reference, resolve};

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: network namespaces need root");
    }
    root
}

/// A process that stays in a namespace of its own, or in ours.
struct Sleeper(Child);

impl Sleeper {
    fn start(own_namespace: bool) -> Sleeper {
        let thread = std::thread::spawn(move || {
            if own_namespace {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
            }
            Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()
        });
        Sleeper(thread.join().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn namespace(&self) -> NetNs {
        NetNs::of_process(self.pid()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn unreachable_docker() -> Docker {
    Docker::at(Some("unix:///nonexistent/docker.sock"))
}

fn find(text: &str, docker: &Docker) -> Result<weave_runtime::Target, Error> {
    resolve(&text.parse::<Reference>()?, docker)
}

fn error(text: &str, docker: &Docker) -> String {
    find(text, docker).unwrap_err().to_string()
}

/// Answers each request with the next of `answers`, and records the requests.
struct FakeDocker {
    _dir: tempfile::TempDir,
    docker: Docker,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeDocker {
    fn with_responses(answers: Vec<(u16, String)>) -> FakeDocker {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let head: Vec<String> = lines.map(Result::unwrap).take_while(|l| !l.is_empty()).collect();
                log.lock().unwrap().push(head[0].clone());
                let length = body.len();
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        let docker = Docker::at(Some(&format!("unix://{}", path.display())));
        FakeDocker { _dir: dir, docker: docker.with_timeout(Duration::from_secs(10)), asked }
    }
}

fn described(pid: u32, running: bool, mode: &str) -> String {
    let id = "0123456789abcdef".repeat(4);
    format!(
        r#"{{"Id":"{id}","Name":"/web","State":{{"Running":{running},"Pid":{pid},"Status":"x"}},
        "Config":{{"Hostname":"web","Domainname":"weave.local","Env":null}},"HostConfig":{{"NetworkMode":"{mode}"}}}}"#
    )
}

#[test]
fn container_is_found_by_process() {
    if !root() {
        return;
    }
    let process = Sleeper::start(true);
    let pid = process.pid();
    let target = find(&format!("pid:{pid}"), &unreachable_docker()).unwrap();
    assert_eq!((target.id, target.naming, target.pid), (format!("pid:{pid}"), pid.to_string(), Some(pid)));
    assert_eq!((target.ns.id(), target.kind), (process.namespace().id(), Kind::Pid));

    let ours = Sleeper::start(false).pid();
    let process_here = std::process::id();
    assert_eq!(
        error(&format!("pid:{process_here}"), &unreachable_docker()),
        format!(
            "the network namespace of process {process_here} is the host's own network namespace, and therefore cannot \
             be connected to weave"
        )
    );
    // Killed and waited for by now.
    assert_eq!(
        error(&format!("pid:{ours}"), &unreachable_docker()),
        format!("process {ours} not found; it may have ended meanwhile")
    );
}

#[test]
fn container_is_found_by_namespace() {
    if !root() {
        return;
    }
    let process = Sleeper::start(true);
    let path = format!("/proc/{}/ns/net", process.pid());
    let target = find(&format!("netns:{path}"), &unreachable_docker()).unwrap();
    assert_eq!((target.id, target.pid, target.kind), (format!("netns:{path}"), None, Kind::NetNs));
    assert_eq!((target.ns.id(), target.naming.len()), (process.namespace().id(), 7));
    assert!(
        error("netns:/proc/self/ns/net", &unreachable_docker())
            .contains("is the host's own network namespace")
    );
    assert_eq!(
        error("netns:no-such-namespace", &unreachable_docker()),
        "network namespace no-such-namespace not found; `ip netns list` shows those that have a name, a path works as \
         well"
    );
    assert_eq!(error("netns:/etc/passwd", &unreachable_docker()), "/etc/passwd is not a network namespace");
    assert!(
        error("netns:/nonexistent/x", &unreachable_docker())
            .starts_with("network namespace /nonexistent/x not found")
    );
}

#[test]
fn container_is_found_by_docker_name() {
    if !root() {
        return;
    }
    let process = Sleeper::start(true);
    let body = described(process.pid(), true, "bridge");
    let fake = FakeDocker::with_responses(vec![(200, body.clone()), (200, body)]);
    let target = find("my web", &fake.docker).unwrap();
    let id = "0123456789abcdef".repeat(4);
    assert_eq!(
        (&target.id, target.pid, target.naming),
        (&id, Some(process.pid()), process.pid().to_string())
    );
    assert_eq!(target.ns.id(), process.namespace().id());
    let Kind::Docker(info) = target.kind else { panic!("{:?}", target.kind) };
    assert_eq!((info.name.as_str(), info.fqdn().as_deref()), ("web", Some("web.weave.local")));
    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked[0], "GET /containers/my%20web/json HTTP/1.1");
    assert_eq!(asked[1], format!("GET /containers/{id}/json HTTP/1.1"));
}

#[test]
fn docker_failures_have_clear_errors() {
    if !root() {
        return;
    }
    let process = Sleeper::start(true);
    let (other, ended) = (Sleeper::start(false), Sleeper::start(true).pid());
    let pid = process.pid();
    let host_network = "Container is running in the host network namespace, and therefore cannot be\nconnected to weave \
                        - perhaps the container was started with --net=host";
    let gone = r#"{"message":"No such container: web"}"#.to_owned();
    let cases = [
        (vec![(404, gone.clone())], "No such container: web"),
        (vec![(200, described(0, false, "bridge"))], "container web not running"),
        (vec![(200, described(pid, false, "bridge"))], "container web not running"),
        (vec![(200, described(pid, true, "host"))], host_network),
        (vec![(200, described(other.pid(), true, "container:x"))], host_network),
        (vec![(200, described(ended, true, "bridge"))], "Container web died"),
        (vec![(200, described(pid, true, "bridge")), (404, gone)], "Container web died"),
        (vec![(200, described(pid, true, "bridge")), (200, described(0, false, ""))], "Container web died"),
    ];
    for (answers, text) in cases {
        let fake = FakeDocker::with_responses(answers);
        assert_eq!(error("web", &fake.docker), text);
    }
    for (status, body, text) in
        [(500, r#"{"message":"on fire"}"#, "on fire"), (503, "", "status 503"), (200, "[", "cannot be read")]
    {
        let fake = FakeDocker::with_responses(vec![(status, body.into())]);
        let error = error("web", &fake.docker);
        assert!(error.contains(text) && !error.contains('\n'), "{error}");
    }
    let error = error("web", &unreachable_docker());
    let expected =
        "docker at unix:///nonexistent/docker.sock: cannot connect: No such file or directory (os error 2)";
    assert_eq!(error, expected);
}

#[test]
fn invalid_names_cause_no_request() {
    for name in [".", ".."] {
        assert!(matches!(unreachable_docker().inspect(name), Ok(None)));
    }
}

/// A container of a real Docker daemon, removed at the end together with its image.
struct RealContainer {
    name: String,
}

impl RealContainer {
    /// None, with the reason printed, where there is no daemon or it cannot run anything.
    fn start() -> Option<RealContainer> {
        let docker =
            |arguments: &[&str]| Command::new("docker").args(arguments).stdin(Stdio::null()).output();
        match docker(&["version"]) {
            Ok(output) if output.status.success() => {}
            _ => {
                eprintln!("SKIPPED: no docker daemon is reachable");
                return None;
            }
        }
        let container = RealContainer { name: format!("weave-runtime-test-{}", std::process::id()) };
        let name = &container.name;
        // There may be no registry: an image of `sleep` and the libraries that it names.
        let import = format!(
            "tar -chf - /bin/sleep $(ldd /bin/sleep | grep -o '/[^ )]*') 2>/dev/null | docker import - {name}"
        );
        let imported = Command::new("sh").args(["-c", &import]).stdin(Stdio::null()).output().unwrap();
        let run = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            "-h",
            "web.weave.local",
            name,
            "/bin/sleep",
            "600",
        ];
        let started = docker(&run).unwrap();
        if !imported.status.success() || !started.status.success() {
            eprintln!("SKIPPED: docker cannot run a container: {}", String::from_utf8_lossy(&started.stderr));
            return None;
        }
        Some(container)
    }

    fn docker(&self, arguments: &[&str]) {
        let output =
            Command::new("docker").args(arguments).arg(&self.name).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for RealContainer {
    fn drop(&mut self) {
        for arguments in [["rm", "-f"], ["rmi", "-f"]] {
            let _ = Command::new("docker").args(arguments).arg(&self.name).stdin(Stdio::null()).output();
        }
    }
}

#[test]
fn container_of_a_real_docker_is_resolved() {
    if !root() {
        return;
    }
    let Some(container) = RealContainer::start() else { return };
    let host = std::env::var("DOCKER_HOST").ok();
    let docker = Docker::at(host.as_deref());
    let target = find(&container.name, &docker).unwrap();
    let pid = target.pid.unwrap();
    assert!(target.id.len() == 64 && target.naming == pid.to_string());
    assert_eq!(NetNs::at(Path::new(&format!("/proc/{pid}/ns/net"))).unwrap().id(), target.ns.id());
    let Kind::Docker(info) = &target.kind else { panic!("{:?}", target.kind) };
    assert_eq!((&info.name, info.network_mode.as_str()), (&container.name, "none"));
    let by_id = find(&target.id[..12], &docker).unwrap();
    assert_eq!(by_id.id, target.id);
    container.docker(&["stop", "-t", "0"]);
    assert_eq!(error(&container.name, &docker), format!("container {} not running", container.name));
    let name = container.name.clone();
    drop(container);
    assert_eq!(error(&name, &docker), format!("No such container: {name}"));
}

#[test]
fn networks_are_read_and_removed() {
    let id = "f".repeat(64);
    let used = format!(
        r#"{{"Name":"weave","Id":"{id}","Driver":"weavemesh","Containers":{{"{}":{{"Name":"web"}}}}}}"#,
        "a".repeat(64)
    );
    let empty =
        format!(r#"{{"Name":"weave","Id":"{id}","Driver":"bridge","Containers":null,"Labels":{{}}}}"#);
    let fake = FakeDocker::with_responses(vec![
        (200, used),
        (200, empty),
        (404, "{}".into()),
        (204, String::new()),
        (404, "{}".into()),
        (403, r#"{"message":"it has active endpoints"}"#.into()),
    ]);
    let found = fake.docker.network("weave").unwrap().unwrap();
    assert_eq!((found.driver.as_str(), found.containers), ("weavemesh", vec!["a".repeat(64)]));
    let found = fake.docker.network("weave").unwrap().unwrap();
    assert_eq!((found.driver.as_str(), found.containers.len()), ("bridge", 0));
    assert_eq!(fake.docker.network("weave").unwrap(), None);
    fake.docker.remove_network(&id).unwrap();
    fake.docker.remove_network(&id).unwrap();
    let refused = fake.docker.remove_network(&id).unwrap_err().to_string();
    assert!(refused.contains("it has active endpoints"), "{refused}");
    let asked = fake.asked.lock().unwrap();
    assert!(asked[0].starts_with("GET ") && asked[0].contains("/networks/weave "), "{asked:?}");
    assert!(asked[3].starts_with("DELETE ") && asked[3].contains(&format!("/networks/{id} ")), "{asked:?}");
}
