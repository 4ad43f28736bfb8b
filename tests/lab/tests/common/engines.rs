//! Containers of containerd and Podman. Their root is a directory with busybox.

use std::path::PathBuf;

use weave_lab::docker::newer_engines;
use weave_lab::{Background, Host, Outcome};

use super::addresses::long_tests_enabled;
use super::cni::recorded;
use super::{LONG_TIMEOUT, SHORT_TIMEOUT};

/// A root with a shell.
pub const ROOT: &str = "/var/lib/rootfs";
const SOCKET: &str = "/run/containerd-lab/containerd.sock";
/// The image of the container that holds the namespaces of a pod.
const PAUSE_IMAGE: &str = "lab.local/pause:1";

pub const PING: [&str; 5] = ["/bin/ping", "-c", "1", "-w", "2"];

/// The trees of `make engines`; only that of its default suite unless long tests are enabled.
pub fn trees() -> Vec<PathBuf> {
    let mut trees = newer_engines();
    trees.sort_by_key(|tree| !tree.ends_with("trixie"));
    trees.truncate(if long_tests_enabled() { usize::MAX } else { 1 });
    trees
}

/// Gives a host without a tree of its own directories of its own where `weave setup-podman` writes; all share `/usr` otherwise.
pub fn own_usr(host: &Host) {
    host.sh("mount -t tmpfs none /usr/local/lib; mkdir -p /run/share/upper /run/share/work; \
             mount -t overlay none -o lowerdir=/usr/share,upperdir=/run/share/upper,workdir=/run/share/work /usr/share");
}

/// All hosts share `/sys/fs/cgroup`; the containers of each are in a group of their own.
fn group(host: &Host) -> String {
    format!("/weave-lab-{}", host.pid())
}

/// What runtimes need on a host before `weave launch`. The value removes the control groups of the host's containers at the end.
pub fn prepare(host: &Host) -> Groups<'_> {
    host.sh(&format!(
        "mkdir -p /etc/cni/net.d /opt/cni/bin {ROOT}/bin {ROOT}/etc; \
         for p in portmap loopback; do ln -s /usr/lib/cni/$p /opt/cni/bin; done; \
         cp $(command -v busybox) {ROOT}/bin; for p in sh ping sleep ip cat; do ln -s busybox {ROOT}/bin/$p; done"
    ));
    Groups(host)
}

/// Control groups of a host's containers, which would stay.
pub struct Groups<'a>(&'a Host);

impl Drop for Groups<'_> {
    fn drop(&mut self) {
        let group = group(self.0);
        self.0.command(&[
            "sh",
            "-c",
            &format!("find /sys/fs/cgroup -depth -type d -path '*{group}*' -exec rmdir {{}} + 2>/dev/null"),
        ]);
    }
}

pub struct Containerd<'a>(&'a Host);

impl<'a> Containerd<'a> {
    /// `None` after a notice if it is not installed.
    pub fn start(host: &'a Host) -> Option<Containerd<'a>> {
        if !has(host, "containerd", "containerd")
            || !has(host, "/usr/lib/cni/portmap", "containernetworking-plugins")
        {
            return None;
        }
        host.sh(&format!(
            "mkdir -p /run/containerd-lab; cat > /run/containerd-lab/config.toml <<E\nversion = 2\nroot = \"/var/lib/containerd-lab\"\n\
             state = \"/run/containerd-lab/state\"\n[grpc]\naddress = \"{SOCKET}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE_IMAGE}\"\ndisable_apparmor = true\n\
             restrict_oom_score_adj = true\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/opt/cni/bin\"\nconf_dir = \"/etc/cni/net.d\"\nE\n"
        ));
        let containerd = Containerd(host);
        containerd.boot();
        Some(containerd)
    }

    fn boot(&self) {
        self.0.sh(
            "setsid containerd --config /run/containerd-lab/config.toml >> /var/log/containerd.log 2>&1 < /dev/null & \
             echo $! > /run/containerd-lab/pid",
        );
        self.0.wait("containerd", LONG_TIMEOUT, || {
            let version = self.ctr(&["version"]);
            if version.success() { Ok(()) } else { Err(version.to_string()) }
        });
    }

    /// Ends containerd and starts it again; its containers run on.
    pub fn restart(&self) {
        let pid = self.0.sh("cat /run/containerd-lab/pid");
        self.0.command_ok(&["kill", pid.trim()]);
        self.0.wait("the end of containerd", SHORT_TIMEOUT, || {
            !self.0.command(&["kill", "-0", pid.trim()]).success()
        });
        self.boot();
    }

    fn ctr(&self, args: &[&str]) -> Outcome {
        self.0.command(&[&["ctr", "-a", SOCKET], args].concat())
    }

    /// Starts a container that sleeps. The client stays, because it calls `DEL` at the end.
    #[must_use]
    pub fn run(&self, name: &str) -> Background {
        let group = format!("{}/{name}", group(self.0));
        let options = ["run", "--rm", "--cni", "--cgroup", &group, "--rootfs", ROOT, name];
        let command = [&["ctr", "-a", SOCKET], &options[..], &["/bin/sleep", "1000"]].concat();
        let client = self.0.background(&command, false).unwrap();
        self.0.wait("the container", LONG_TIMEOUT, || {
            let list = self.ctr(&["task", "ls"]).stdout;
            let runs = list.lines().any(|line| line.starts_with(name) && line.contains("RUNNING"));
            if runs { Ok(()) } else { Err(list) }
        });
        client
    }

    pub fn exec(&self, name: &str, argv: &[&str]) -> Outcome {
        self.ctr(&[&["task", "exec", "--exec-id", "e", name], argv].concat())
    }

    pub fn remove(&self, name: &str) {
        self.ctr(&["task", "kill", "-s", "KILL", name]).expect_ok();
    }

    /// The client of the CRI service, after the image of its pods has been made.
    pub fn cri(&self) -> Cri<'a> {
        self.0.sh(&format!(
            "mkdir -p /run/pause && cd /run/pause && tar -C {ROOT} -cf layer.tar . && \
             printf '{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Entrypoint\":[\"/bin/sleep\",\"100000\"]}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}}}' $(sha256sum layer.tar | cut -d' ' -f1) > config.json && \
             printf '[{{\"Config\":\"config.json\",\"RepoTags\":[\"{PAUSE_IMAGE}\"],\"Layers\":[\"layer.tar\"]}}]' > manifest.json && \
             tar -cf image.tar config.json layer.tar manifest.json && \
             ctr -a {SOCKET} -n k8s.io images import image.tar"
        ));
        Cri(self.0)
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let ctr = format!("ctr -a {SOCKET}");
        self.0.command(&[
            "sh",
            "-c",
            &format!(
                "for n in default k8s.io; do for c in $({ctr} -n $n task ls -q); do \
                 {ctr} -n $n task kill -s KILL $c; {ctr} -n $n task rm -f $c; done; done; \
                 kill $(cat /run/containerd-lab/pid)"
            ),
        ]);
    }
}

/// The CRI service of containerd, as the kubelet calls it: gRPC, here sent by curl.
pub struct Cri<'a>(&'a Host);

impl Cri<'_> {
    /// Creates a pod and returns its id.
    #[track_caller]
    pub fn run_pod(&self, name: &str) -> Result<String, String> {
        let metadata = [text(1, name), text(2, name), text(3, "default")].concat();
        let config = [field(1, &metadata), text(3, "/run"), field(8, &text(1, &group(self.0)))].concat();
        let answer = self.call("RunPodSandbox", &field(1, &config))?;
        string_at(&answer, &[1]).ok_or_else(|| format!("no id: {answer:?}"))
    }

    /// The address of a pod.
    #[track_caller]
    pub fn pod_address(&self, id: &str) -> String {
        let answer = self.call("PodSandboxStatus", &text(1, id)).unwrap();
        string_at(&answer, &[1, 5, 1]).unwrap_or_else(|| panic!("no address: {answer:?}"))
    }

    #[track_caller]
    pub fn remove_pod(&self, id: &str) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            self.call(method, &text(1, id)).unwrap();
        }
    }

    fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let bytes = [&[0], &length[..], message].concat();
        let octal: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
        let out = self.0.command_with(
            &[],
            &[
                "sh",
                "-ec",
                &format!(
                    "printf '{octal}' > /run/cri.in; curl -sS -m 60 --http2-prior-knowledge --unix-socket {SOCKET} -D /run/cri.headers \
                     -H 'content-type: application/grpc' -H 'te: trailers' --data-binary @/run/cri.in -o /run/cri.out \
                     http://localhost/runtime.v1.RuntimeService/{method}; cat /run/cri.headers >&2; od -An -v -tx1 /run/cri.out"
                ),
            ],
            LONG_TIMEOUT,
        );
        if !out.stderr.contains("grpc-status: 0") {
            return Err(out.to_string());
        }
        let bytes = out.stdout.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap());
        Ok(bytes.skip(5).collect())
    }
}

/// A field of a protobuf message with a message or a text in it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    assert!(length < 1 << 14, "two bytes of a length are enough");
    let prefix = if length < 128 {
        vec![number << 3 | 2, length as u8]
    } else {
        vec![number << 3 | 2, length as u8 | 128, (length >> 7) as u8]
    };
    [&prefix, bytes].concat()
}

fn text(number: u8, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// The text at a path of field numbers.
fn string_at(message: &[u8], path: &[u64]) -> Option<String> {
    let Some((number, rest)) = path.split_first() else { return String::from_utf8(message.to_vec()).ok() };
    let mut bytes = message.iter().copied();
    let varint = |bytes: &mut dyn Iterator<Item = u8>| {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes.next()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    };
    while let Some(tag) = varint(&mut bytes) {
        match tag & 7 {
            0 => drop(varint(&mut bytes)?),
            2 => {
                let length = varint(&mut bytes)?;
                let value: Vec<u8> = bytes.by_ref().take(length as usize).collect();
                if tag >> 3 == *number {
                    return string_at(&value, rest);
                }
            }
            _ => return None,
        }
    }
    None
}

/// The options of the lab's Podman.
pub const PODMAN: &str =
    "podman --cgroup-manager cgroupfs --runtime runc --storage-driver vfs --events-backend file";

pub struct Podman<'a>(&'a Host);

impl<'a> Podman<'a> {
    /// `None` after a notice if there is no Podman that uses this network program, `cni` or `netavark`.
    pub fn find(host: &'a Host, backend: &str) -> Option<Podman<'a>> {
        if !has(host, "podman", "podman")
            || backend == "cni" && !has(host, "/usr/lib/cni/portmap", "containernetworking-plugins")
        {
            return None;
        }
        let podman = Podman(host);
        let info = podman.podman(&["info", "--format", "{{.Host.NetworkBackend}}"]);
        if info.stdout.trim() != backend {
            eprintln!("SKIPPED: this Podman does not use {backend}: {info}");
            return None;
        }
        Some(podman)
    }

    pub fn host(&self) -> &'a Host {
        self.0
    }

    pub fn podman(&self, args: &[&str]) -> Outcome {
        let program: Vec<&str> = PODMAN.split(' ').collect();
        self.0.command_with(&[], &[&program[..], args].concat(), LONG_TIMEOUT)
    }

    /// Runs Podman, which has to succeed; its standard output without the final newline.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.podman(args).expect_ok().trim_end().to_owned()
    }

    /// The control group of its containers.
    pub fn group(&self) -> String {
        group(self.0)
    }

    /// Makes an image of the root of containers.
    #[track_caller]
    pub fn import_image(&self, name: &str) {
        self.0.sh(&format!("tar -C {ROOT} -cf - . | {PODMAN} import - {name}"));
    }

    /// The arguments that start a container that sleeps, with these options.
    pub fn run_arguments(&self, name: &str, options: &str) -> String {
        let group = group(self.0);
        format!(
            "run -d --name {name} {options} --cap-add NET_RAW --cgroup-parent {group} --rootfs {ROOT} /bin/sleep 1000"
        )
    }

    pub fn try_run(&self, name: &str, options: &str) -> Outcome {
        self.podman(&self.run_arguments(name, options).split_whitespace().collect::<Vec<_>>())
    }

    /// Starts a container that sleeps, and returns its id.
    #[track_caller]
    pub fn run(&self, name: &str, options: &str) -> String {
        self.try_run(name, options).expect_ok().trim().to_owned()
    }

    pub fn exec(&self, name: &str, argv: &[&str]) -> Outcome {
        self.podman(&[&["exec", name], argv].concat())
    }

    #[track_caller]
    pub fn remove(&self, name: &str) {
        self.ok(&["rm", "-f", "-t", "0", name]);
    }

    /// Starts its Docker-compatible API at the usual socket.
    #[must_use]
    pub fn serve(&self) -> Background {
        self.0.command_ok(&["mkdir", "-p", "/run/podman"]);
        let service = ["system", "service", "-t", "0", "unix:///run/podman/podman.sock"];
        let program: Vec<&str> = PODMAN.split(' ').collect();
        let service = self.0.background(&[&program[..], &service].concat(), false).unwrap();
        self.0.wait("the socket of Podman", SHORT_TIMEOUT, || {
            let there = self.0.command(&["test", "-S", "/run/podman/podman.sock"]);
            if there.success() { Ok(()) } else { Err("none") }
        });
        service
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.podman(&["rm", "-f", "-t", "0", "-a"]);
    }
}

fn has(host: &Host, program: &str, package: &str) -> bool {
    let there = host.command(&["sh", "-c", &format!("command -v {program}")]).success();
    if !there {
        eprintln!("SKIPPED: {program} is missing (package {package})");
    }
    there
}

/// The allocated address of a container, without prefix length.
pub fn address(host: &Host, container: &str) -> Option<String> {
    let owners = recorded(host).into_iter();
    let (_, addrs) = owners.into_iter().find(|(owner, _)| owner == container)?;
    addrs.first().and_then(|cidr| cidr.split('/').next()).map(str::to_owned)
}

#[track_caller]
pub fn reaches(what: &str, ping: impl Fn() -> Outcome) {
    weave_lab::eventually(what, LONG_TIMEOUT, || {
        let outcome = ping();
        if outcome.success() { Ok(()) } else { Err(outcome.to_string()) }
    });
}
