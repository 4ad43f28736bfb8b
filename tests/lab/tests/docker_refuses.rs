//! Docker's socket is absent, refuses, or belongs to something else: commands and clients of the proxy are told why, nothing hangs, and
//! the peer works.

use weave_lab::docker::Dockerd;
use weave_lab::{Lab, Topology};

use crate::common::*;

/// Answers every connection with a line that is no HTTP.
const GARBAGE: &str = "import socket
s = socket.socket(socket.AF_UNIX); s.bind('/run/garbage.sock'); s.listen(); print('ready', flush=True)
while True:
    c = s.accept()[0]; c.recv(4096); c.sendall(b'garbage\\r\\n\\r\\n'); c.close()";

/// A socket on which nobody listens, and one that only root's capabilities open.
const SOCKETS: &str = "for s in refuses denied; do python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('/run/$s.sock')\"; done; \
     chmod 0 /run/denied.sock";

const WITHOUT_CAPABILITIES: &str =
    "setpriv --bounding-set -dac_override,-dac_read_search --inh-caps -dac_override,-dac_read_search";

#[test]
fn a_docker_that_cannot_be_used() {
    let Some(lab) = Lab::start("dockno", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let c = h1.container("c");
    h1.sh(SOCKETS);
    let _garbage = h1.background(&["python3", "-c", GARBAGE], true).unwrap();
    let weave = weave_lab::weave_binary();
    let has_docker = h1.command(&["sh", "-c", "command -v docker"]).success();
    let client = "docker --host unix:///run/weave/weave.sock";
    let curl = "curl -sS -w '\\n%{http_code}' --unix-socket /run/weave/weave.sock http://docker";
    for (name, reason) in [
        ("absent", "cannot connect: No such file or directory (os error 2)"),
        ("refuses", "cannot connect: Connection refused (os error 111)"),
        ("denied", "cannot connect: Permission denied (os error 13)"),
        ("garbage", "malformed response: invalid HTTP version parsed"),
    ] {
        let problem = format!("docker at unix:///run/{name}.sock: {reason}");
        let prefix = if name == "denied" { WITHOUT_CAPABILITIES } else { "" };
        let command = |line: &str| {
            h1.command(&["sh", "-c", &format!("DOCKER_HOST=unix:///run/{name}.sock {prefix} {weave} {line}")])
        };
        let launched = command("launch --no-restart");
        let notice = "Notice: the Docker API proxy and the containers of Docker wait until it answers";
        assert!(launched.success() && launched.stderr == format!("{notice}: {problem}\n"), "{launched}");
        h1.wait("the reason in its status", SHORT_TIMEOUT, || {
            let status = h1.weave_ok(&["status"]);
            if status.contains(&format!("Notice: Docker does not answer: {problem}")) {
                Ok(())
            } else {
                Err(status)
            }
        });
        for line in ["attach 10.2.1.1/24 web", "dns-add web -h web.weave.local", "ps web"] {
            let refused = command(line);
            let hint = "without docker, name a container by netns:<name> or pid:<number>";
            assert!(refused.code == Some(1) && refused.stderr == format!("{problem}; {hint}\n"), "{refused}");
        }
        for line in ["start web", "restart web"] {
            let refused = command(line);
            assert!(refused.code == Some(1) && refused.stderr == format!("{problem}\n"), "{refused}");
        }
        assert!(command("ps").success());
        if has_docker {
            let refused = command("run -ti ubuntu");
            let words: Vec<&str> = refused.stderr.lines().collect();
            let warning =
                "Warning: the container does not use weaveDNS: weaveDNS has no address to listen on yet";
            assert!(
                matches!(refused.code, Some(125 | 126)) && words[0].starts_with(warning) && words.len() > 1,
                "{refused}"
            );
            let listed = h1.command(&["sh", "-c", &format!("{client} ps")]);
            assert!(
                listed.code == Some(1) && (name == "garbage" || listed.stderr.contains(reason)),
                "{listed}"
            );
        }

        step("the proxy answers as Docker would");
        for request in [
            "/containers/create -X POST -d '{\"Image\":\"ubuntu\"}'",
            "/containers/web/start -X POST",
            "/containers/web/exec -d '{}'",
        ] {
            let answer = h1.sh(&format!("{curl}{request}"));
            let (body, status) = answer.rsplit_once('\n').unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            let text = if name == "garbage" {
                problem.clone()
            } else {
                format!("Could not connect to target: {problem}")
            };
            assert_eq!((status, &body["message"]), ("500", &text.into()), "{request}");
        }
        // What is not intercepted passes as it is.
        let passed = h1.sh(&format!("{curl}/_ping --http0.9"));
        assert!(passed.contains(if name == "garbage" { "garbage" } else { reason }), "{passed}");

        step("the peer works");
        c.attach(&["10.2.1.1/24"]);
        c.detach(&["10.2.1.1/24"]);
        h1.weave_ok(&["stop"]);
    }

    let Some(docker) = Dockerd::start(h1) else { return };
    step("Docker goes and comes back");
    launch(h1, &[], &[]);
    let says = |expected: bool| {
        h1.wait("the state of Docker in the status", LONG_TIMEOUT, || {
            let status = h1.weave_ok(&["status"]);
            if status.contains("Docker does not answer") == expected { Ok(()) } else { Err(status) }
        });
    };
    docker.stop();
    says(true);
    docker.boot();
    says(false);
}
