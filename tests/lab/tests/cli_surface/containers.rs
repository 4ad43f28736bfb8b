//! Containers: attach and what it takes, ps, and the helper's commands for them. Docker is a fake one that knows two
//! containers: its API is what counts here.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use super::*;

pub(super) const CHECKS: &[Check] = &[
    check(
        &[
            "attach",
            "attach --no-multicast-route",
            "attach --or-die",
            "attach --weave-bridge",
            "detach",
            "detach --weave-bridge",
        ],
        attach,
    ),
    check(
        &["ps", "ps --weave-bridge", "$DOCKER_HOST", "attach --rewrite-hosts", "attach --add-host"],
        docker,
    ),
];

fn attach(stage: &Stage<'_>) {
    let c = stage.host.container("c");
    stage.launch(&[], &[]);
    let routes = || c.command_ok(&["ip", "route"]);
    step("options after the addresses and anywhere else");
    for args in [
        &["10.2.1.1/24", "10.2.2.1/24", "netns:c"][..],
        &["ip:10.2.1.1/24", "10.2.2.1/24", "--or-die", "netns:c"],
        &["10.2.1.1/24", "10.2.2.1/24", "netns:c", "--weave-bridge", "weave"],
    ] {
        assert_eq!(stage.ok(&[&["attach"], args].concat()), "10.2.1.1 10.2.2.1\n", "{args:?}");
        assert!(routes().contains("224.0.0.0/4 dev ethwe"), "{}", routes());
    }
    assert_eq!(stage.ok(&["detach", "10.2.1.1/24", "netns:c"]), "10.2.1.1\n");
    let addresses = c.command_ok(&["ip", "-o", "-4", "addr", "show", "dev", "ethwe"]);
    assert!(addresses.contains("10.2.2.1/24") && !addresses.contains("10.2.1.1/24"), "{addresses}");
    assert_eq!(stage.ok(&["detach", "10.2.2.1/24", "--weave-bridge=weave", "netns:c"]), "10.2.2.1\n");
    assert!(!c.has_interface());
    assert_eq!(stage.ok(&["attach", "--no-multicast-route", "10.2.1.1/24", "netns:c"]), "10.2.1.1\n");
    assert!(!routes().contains("224.0.0.0/4"), "{}", routes());
    assert_eq!(stage.ok(&["detach", "10.2.1.1/24", "netns:c"]), "10.2.1.1\n");
    let text = stage.fails(1, &["attach", "10.2.1.1/24", "--weave-bridge=none", "netns:c"]);
    assert_eq!(text, "bridge \"none\" not present; did you launch weave?\n");
    step("weaveutil attaches to a named bridge");
    let helper = |args: &[&str]| stage.ok(&[&["weaveutil"], args].concat());
    assert_eq!(
        helper(&[
            "attach-container",
            "--no-multicast-route",
            "netns:c",
            "weave",
            "10.2.1.1/24",
            "10.2.3.1/24"
        ]),
        ""
    );
    assert!(c.has_interface() && !routes().contains("224.0.0.0/4"));
    assert_eq!(helper(&["detach-container", "netns:c", "10.2.3.1/24"]), "");
    let line = helper(&["container-addrs", "weave", "netns:c"]);
    assert_eq!(line, format!("     netns:c ethwe {} 10.2.1.1/24\n", c.mac()));
    assert_eq!(helper(&["container-addrs", "weave", "weave:allids"]), line);
    let bridge = stage.report("{{.Router.Name}}");
    assert_eq!(
        helper(&["container-addrs", "weave", "weave:expose"]),
        format!("weave:expose weave {bridge}\n")
    );
    assert_eq!(helper(&["process-addrs", "weave"]), "10.2.1.1/24\n");
    c.end();
}

const ID: &str = "3f8a1c5d9e7b3f8a1c5d9e7b3f8a1c5d9e7b3f8a1c5d9e7b3f8a1c5d9e7b0001";

/// A Docker API with a running container `web` and a stopped one, `old`.
fn fake_docker(listener: UnixListener, pid: i32) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let mut request = String::new();
        let _ = BufReader::new(&stream).read_line(&mut request);
        let path = request.split(' ').nth(1).unwrap_or_default();
        let of = |running: bool| {
            format!(
                r#"{{"Id":"{ID}","Name":"/web","State":{{"Running":{running},"Pid":{pid},"Status":"{}"}},
                "Config":{{"Hostname":"web","Domainname":"weave.local"}},"HostConfig":{{"NetworkMode":"bridge"}},
                "HostsPath":"/var/lib/weave/hosts-of-web"}}"#,
                if running { "running" } else { "exited" }
            )
        };
        let name =
            path.strip_prefix("/containers/").and_then(|p| p.strip_suffix("/json")).unwrap_or_default();
        let (status, body) = match name {
            "" if path == "/containers/json" => ("200 OK", format!(r#"[{{"Id":"{ID}"}}]"#)),
            "web" | "3f8a1c5d9e7b" => ("200 OK", of(true)),
            id if id == ID => ("200 OK", of(true)),
            "old" => ("200 OK", of(false)),
            "end" => return,
            _ => ("404 Not Found", r#"{"message":"No such container"}"#.to_owned()),
        };
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
}

fn docker(stage: &Stage<'_>) {
    let host = stage.host;
    let text = stage.fails(1, &["ps"]);
    assert!(text.starts_with("Link not found"), "{text}");
    let (c, d) = (host.container("c"), host.container("other"));
    stage.launch(&[], &[]);
    let socket = host.disk("lib/docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let pid = c.pid();
    let server = std::thread::spawn(move || fake_docker(listener, pid));
    let env = [("DOCKER_HOST", "unix:///var/lib/docker.sock")];
    let weave = |args: &[&str]| {
        let outcome = host.weave_env(&env, args);
        assert!(outcome.success() && outcome.stderr.is_empty(), "{outcome}");
        outcome.stdout
    };
    let hosts = || host.sh("cat /var/lib/weave/hosts-of-web");
    host.sh("echo before > /var/lib/weave/hosts-of-web");
    step("a failed attach restores the files that it wrote");
    let outcome = host.weave_env(
        &env,
        &["attach", "10.2.3.1/24", "--rewrite-hosts", "--weave-bridge=none", "3f8a1c5d9e7b"],
    );
    assert!(outcome.code == Some(1) && outcome.stderr.contains("not present"), "{outcome}");
    assert_eq!(hosts(), "before\n");
    let args = [
        "attach",
        "10.2.1.1/24",
        "10.2.2.1/24",
        "--rewrite-hosts",
        "--add-host=db:10.9.9.9",
        "--add-host",
        "six:fd00::1",
        "web",
    ];
    assert_eq!(weave(&args), "10.2.1.1 10.2.2.1\n");
    let text = hosts();
    for line in [
        "10.2.1.1        web.weave.local web",
        "10.2.2.1        web.weave.local web",
        "10.9.9.9        db",
        "fd00::1         six",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
    step("a wrong name writes no file");
    let outcome = host.weave_env(&env, &["attach", "10.2.4.1/24", "--rewrite-hosts", "--add-host=db", "web"]);
    assert!(outcome.code == Some(1) && outcome.stderr.contains("--add-host wants <name>:<ip>"), "{outcome}");
    assert!(!hosts().contains("10.2.4.1"));
    let text = stage.fails(1, &["attach", "10.2.4.1/24", "--rewrite-hosts", "netns:other"]);
    assert!(text.contains("--rewrite-hosts needs a Docker container"), "{text}");
    assert!(!d.has_interface());
    let outcome = host.weave_env(&env, &["attach", "10.2.1.1/24", "old"]);
    assert!(outcome.stderr == "container old not running\n", "{outcome}");

    step("ps lists bridge, Docker containers and named namespaces once each");
    d.attach(&["10.2.1.2/24"]);
    let bridge = format!("weave:expose {}\n", stage.report("{{.Router.Name}}"));
    let web = format!("3f8a1c5d9e7b {} 10.2.1.1/24 10.2.2.1/24\n", c.mac());
    let other = format!("netns:other {} 10.2.1.2/24\n", d.mac());
    assert_eq!(weave(&["ps"]), format!("{bridge}{web}{other}"));
    assert_eq!(weave(&["ps", "--weave-bridge=weave", "weave:expose"]), bridge);
    assert_eq!(weave(&["ps", ID, "nosuch", "old", "netns:other"]), format!("{web}{other}"));
    assert_eq!(weave(&["ps", "web"]), web.replace("3f8a1c5d9e7b", "web"));
    assert_eq!(
        stage.ok(&["ps", "netns:c", &c.by_pid()]),
        format!("{}{}", web.replace("3f8a1c5d9e7b", "netns:c"), web.replace("3f8a1c5d9e7b", &c.by_pid()))
    );
    let text = stage.fails(1, &["ps", "web"]);
    assert!(text.contains("docker"), "without Docker that is no answer: {text}");

    let helper = |args: &[&str]| weave(&[&["weaveutil"], args].concat());
    assert_eq!(helper(&["container-id", "web"]), format!("{ID}\n"));
    assert_eq!(helper(&["container-state", "old"]), "exited\n");
    assert_eq!(helper(&["container-fqdn", "web"]), "web.weave.local\n");
    assert_eq!(helper(&["list-containers"]), format!("{ID}\n"));
    assert_eq!(helper(&["rewrite-etc-hosts", "web", "image", "10.2.9.9/24", "n:10.1.1.1"]), "");
    assert!(
        hosts().contains("10.2.9.9        web.weave.local web\n") && hosts().contains("10.1.1.1        n\n")
    );
    assert!(
        host.weave_env(&env, &["weaveutil", "container-id", "nosuch"])
            .stderr
            .contains("No such container: nosuch")
    );

    host.weave_env(&env, &["weaveutil", "container-id", "end"]);
    server.join().unwrap();
    std::fs::remove_file(socket).unwrap();
    host.sh("rm /var/lib/weave/hosts-of-web");
    c.end();
    d.end();
}
