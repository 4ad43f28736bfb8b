//! The clients of Docker through the Docker API proxy: docker (all versions that a host has), docker-py, Compose.

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Host, Lab, Topology};

use crate::common::docker::TYPED;
use crate::common::names::looked_up;
use crate::common::*;

const PROXY: &str = "unix:///var/run/weave/weave.sock";

/// What each version of `docker` does; `$docker` is the program. A line for each check.
const DOCKER: &str = r#"
export DOCKER_HOST=unix:///var/run/weave/weave.sock
docker=$1; name=$2; dir=/run/$name; mkdir $dir; cd $dir
show='ip -4 -o addr show dev ethwe'
says() { cat > said; grep -q "$2" said || { echo "$1: no $2:" >&2; cat said >&2; exit 1; }; echo "$1"; }

$docker run --rm --add-host up:host-gateway ubuntu sh -c "$show; cat /etc/hosts" | tee hosts | says run 'scope global ethwe'
says '--add-host' '^172.17.0.1 *up$' < hosts
$docker run -d -it --name $name ubuntu >/dev/null
typed 'echo $((40 + 2)); exit' "$docker exec -it $name sh" | says 'exec -it' '^42'
typed "$show; exit" "$docker attach $name" | says attach 'scope global ethwe'
$docker wait $name > /dev/null
$docker start $name > /dev/null
$docker logs $name | says logs 'scope global ethwe'
$docker logs -f $name > followed &
until [ -s followed ]; do sleep 0.1; done
$docker exec $name sh -c 'echo late > /dev/pts/0'
until grep -q late followed; do sleep 0.1; done; echo 'logs -f'
$docker rm -f $name > /dev/null
wait
$docker create --name $name ubuntu > /dev/null
head -c 3000000 /dev/urandom > file
$docker cp file $name:/tmp/file
$docker cp $name:/tmp/file copy
cmp file copy && echo cp
printf 'FROM ubuntu\nCOPY file /file\nCMD ["ls", "/file"]\n' > Dockerfile
DOCKER_BUILDKIT=0 $docker build -q -t $name-classic . > /dev/null
$docker run --rm $name-classic | says 'classic build' '^/file'
if DOCKER_BUILDKIT=1 $docker build -t $name-buildkit . > buildkit.log 2>&1; then
  $docker run --rm $name-buildkit | says BuildKit '^/file'
elif grep -q 'buildx component is missing' buildkit.log; then
  echo 'no BuildKit'
else
  cat buildkit.log >&2; exit 1
fi
$docker save ubuntu -o saved
$docker load -i saved | says load 'Loaded image'
tar -cf - file | $docker import - $name-imported | says import sha256
$docker events --since 10m --until 0s --filter container=$name --format '{{.Action}}' | says events create
$docker rm $name > /dev/null
"#;

const DOCKER_PY: &str = r#"
import docker, socket
client = docker.from_env()
# docker-py drops output that it reads together with the head of the answer: the output has to come later.
def execute(container, *command):
    return container.exec_run(["sh", "-c", "sleep 0.5; \"$@\"", "sh", *command])
out = client.containers.run("ubuntu", ["ip", "-4", "-o", "addr", "show", "dev", "ethwe"], remove=True)
assert b"inet 10." in out, out
c = client.containers.run("ubuntu", ["sleep", "1000"], name="py", detach=True)
code, out = execute(c, "ip", "-4", "-o", "addr", "show", "dev", "ethwe")
assert code == 0 and b"inet 10." in out, out
code, sock = c.exec_run(["cat"], stdin=True, tty=True, socket=True)
sock._sock.sendall(b"hello\n")
assert b"hello" in sock._sock.recv(100)
sock._sock.close()
c.put_archive("/tmp", b"".join(c.get_archive("/etc/passwd")[0]))
assert execute(c, "cat", "/tmp/passwd")[1].startswith(b"root")
c.kill()
assert c.wait()["StatusCode"] == 137
c.start()
assert b"inet 10." in execute(c, "ip", "-4", "-o", "addr", "show", "dev", "ethwe")[1]
c.remove(force=True)
print("docker-py", docker.__version__)
"#;

#[test]
fn clients_of_this_machine() {
    clients(&Topology::hosts(2));
}

#[test]
fn clients_with_newer_engines() {
    for tree in newer_engines() {
        clients(&Topology::hosts(2).with_root(&tree));
    }
}

fn has(host: &Host, command: &str) -> bool {
    let outcome = host.command(&["sh", "-c", command]);
    eprintln!("{}{command}: {}", if outcome.success() { "" } else { "SKIPPED: " }, outcome.stdout);
    outcome.success()
}

fn clients(topology: &Topology) {
    let Some(lab) = Lab::start("clients", topology) else { return };
    let Some(dockers) = lab.hosts().iter().map(Dockerd::start_with_bridge).collect::<Option<Vec<_>>>() else {
        return;
    };
    dockers.iter().for_each(|docker| docker.import_image("ubuntu"));
    launch_mesh(&lab, &["--attach-user-networks"]);
    let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name));

    let programs = h1.sh("ls /usr/bin/docker /usr/local/bin/docker 2> /dev/null || true");
    step("docker");
    for (n, program) in programs.lines().enumerate() {
        eprintln!("{}", h1.sh(&format!("{program} --version")));
        let script = format!("{TYPED}{DOCKER}");
        let argv = ["sh", "-ec", &script, "sh", program, &format!("client{n}")];
        let done = h1.command_with(&[], &argv, LONG_TIMEOUT * 2).expect_ok();
        eprintln!("{}", done.lines().collect::<Vec<_>>().join(", "));
    }

    let env = [("DOCKER_HOST", PROXY)];
    if has(h1, "/usr/bin/python3 -c 'import docker'") {
        step("docker-py");
        let done = h1.command_with(&env, &["/usr/bin/python3", "-c", DOCKER_PY], LONG_TIMEOUT).expect_ok();
        eprintln!("{done}");
    }

    if has(h1, "docker-compose version --short") {
        step("Compose: services on two hosts, with a network of Docker each, reach each other by name");
        for (host, service) in [(h1, "web"), (h2, "db")] {
            let file = format!(
                "version: '2.4'\nservices:\n  {service}:\n    image: ubuntu\n    container_name: {service}\n    \
                 command: sleep 1000\n    networks: [backend]\nnetworks:\n  backend: {{}}\n"
            );
            host.sh(&format!("mkdir -p /run/project; echo \"{file}\" > /run/project/docker-compose.yml"));
        }
        let compose = |host: &Host, args: &str| {
            let line = format!("cd /run/project && docker-compose {args}");
            host.command_with(&env, &["sh", "-c", &line], LONG_TIMEOUT)
        };
        for host in [h1, h2] {
            compose(host, "up -d").expect_ok();
        }
        let address = |host: &Host, service: &str| {
            let shown = compose(host, &format!("exec -T {service} ip -4 -o addr show dev ethwe")).expect_ok();
            shown.split("inet ").nth(1).unwrap().split('/').next().unwrap().to_owned()
        };
        for (from, service, to, other) in [(h1, "web", h2, "db"), (h2, "db", h1, "web")] {
            let address = address(to, other);
            looked_up(from, other, &[&address]);
            from.wait("the other service", LONG_TIMEOUT, || {
                let ping = compose(from, &format!("exec -T {service} ping -c 1 -W 2 {other}"));
                let reached = ping.success() && ping.stdout.contains(&address);
                if reached { Ok(()) } else { Err(ping.to_string()) }
            });
        }
        let once = compose(h1, "run --rm web ip -4 -o addr show dev ethwe < /dev/null").expect_ok();
        assert!(once.contains("inet 10."), "{once}");
        for host in [h1, h2] {
            compose(host, "down -t 0").expect_ok();
        }
    }
}
