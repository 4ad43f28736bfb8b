//! The text of the systemd unit.

/// First words of a unit that `launch` wrote and `reset` removes.
pub(super) const MARK: &str = "# Written by 'weave launch'";

/// The variable parts of a unit.
#[derive(Clone, Debug, Default)]
pub(super) struct Unit<'a> {
    pub(super) program: &'a str,
    pub(super) instance: Option<&'a str>,
    /// Options for `weave daemon`.
    pub(super) options: &'a [String],
    /// Peers to connect to; if empty, `$PEERS` from [`FILES`].
    pub(super) peers: &'a [String],
    /// Whether `$PEERS` is ignored.
    pub(super) resume: bool,
    /// Whether the daemon is started again after a crash.
    pub(super) restart: bool,
    /// Environment of the daemon.
    pub(super) environment: &'a [(String, String)],
}

/// Files with `NAME=value` lines; later files win. `PEERS` and `WEAVE_OPTIONS` become part of the command line, the others are
/// environment variables of `weave`.
pub(crate) const FILES: [&str; 3] = ["/etc/weave/weave.conf", "/etc/default/weave", "/etc/sysconfig/weave"];

/// Capabilities: devices, addresses and packet filter (NET_ADMIN, NET_RAW, NET_BIND_SERVICE), namespaces of
/// containers (SYS_ADMIN, SYS_PTRACE, DAC_*), programs in the kernel (BPF, PERFMON, and SYS_ADMIN and IPC_LOCK before
/// Linux 5.8), modules that the kernel has not loaded yet (iptables-legacy loads its own), its limits, the group of the proxy's socket (CHOWN).
const CAPABILITIES: &str = "CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_OVERRIDE \
CAP_DAC_READ_SEARCH CAP_BPF CAP_PERFMON CAP_IPC_LOCK CAP_SYS_MODULE CAP_SYS_RESOURCE \
CAP_CHOWN";

/// Directories for the files that make other programs ignore weave's devices; the rest of `/etc` is read-only.
const WRITABLE: &str = "-/etc/systemd/network -/etc/NetworkManager";

impl Unit<'_> {
    pub(super) fn text(&self) -> String {
        let mut command = vec![quote(self.program), "daemon".to_owned(), "$WEAVE_OPTIONS".to_owned()];
        command.extend(self.options.iter().map(|o| quote(o)));
        match self.peers {
            [] if self.resume => {}
            [] => command.push("$PEERS".to_owned()),
            peers => {
                command.push("--".to_owned());
                command.extend(peers.iter().map(|p| quote(p)));
            }
        }
        let of = self.instance.map(|i| format!(" {i}")).unwrap_or_default();
        let restart = if self.restart { "always" } else { "no" };
        let environment: String = self
            .environment
            .iter()
            .map(|(name, value)| format!("Environment={}\n", quote_literal(&format!("{name}={value}"))))
            .collect();
        let files: String = FILES.iter().map(|f| format!("EnvironmentFile=-{f}\n")).collect();
        format!(
            "{MARK}; 'weave reset' removes it. Change it with 'systemctl edit', or launch again.\n\
             [Unit]\n\
             Description=Weave Net peer{of}\n\
             Wants=network-online.target\n\
             After=network-online.target\n\
             # Their containers find the network when they start, and leave it when they stop.\n\
             Before=docker.service podman-restart.service\n\
             StartLimitIntervalSec=0\n\
             \n\
             [Service]\n\
             Type=notify\n\
             # PEERS, WEAVE_OPTIONS, WEAVE_PASSWORD, WEAVE_PORT, WEAVE_MTU, ...\n\
             {environment}{files}\
             ExecStart={}\n\
             Restart={restart}\n\
             RestartSec=1\n\
             TimeoutStopSec=15\n\
             LimitNOFILE=1048576\n\
             OOMScoreAdjust=-500\n\
             \n\
             # Less than these and containers cannot be attached, or the kernel's fast path is lost.\n\
             CapabilityBoundingSet={CAPABILITIES}\n\
             NoNewPrivileges=yes\n\
             RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET\n\
             RestrictNamespaces=net\n\
             SystemCallArchitectures=native\n\
             SystemCallFilter=@system-service @module bpf perf_event_open\n\
             SystemCallErrorNumber=EPERM\n\
             MemoryDenyWriteExecute=yes\n\
             LockPersonality=yes\n\
             RestrictRealtime=yes\n\
             RestrictSUIDSGID=yes\n\
             ProtectSystem=full\n\
             ReadWritePaths={WRITABLE}\n\
             ProtectHome=read-only\n\
             ProtectControlGroups=yes\n\
             ProtectKernelLogs=yes\n\
             ProtectHostname=yes\n\
             ProtectClock=yes\n\
             DevicePolicy=closed\n\
             DeviceAllow=/dev/net/tun rw\n\
             PrivateTmp=yes\n\
             KeyringMode=private\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            command.join(" ")
        )
    }
}

/// One word of `ExecStart` (systemd.service(5), command lines): `%` begins a specifier and `$` a variable unless doubled.
fn quote(word: &str) -> String {
    quote_literal(word).replace('$', "$$")
}

/// One word of a setting in which `$` has no meaning.
fn quote_literal(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@$%".contains(c);
    let escaped: String = word
        .chars()
        .flat_map(|c| match c {
            '%' => vec!['%', '%'],
            '"' | '\\' => vec!['\\', c],
            '\n' => vec!['\\', 'n'],
            c => vec![c],
        })
        .collect();
    if !word.is_empty() && word.chars().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    fn start(unit: &Unit<'_>) -> String {
        let text = unit.text();
        text.lines().find_map(|l| l.strip_prefix("ExecStart=")).expect("a command").to_owned()
    }

    #[test]
    fn command_lines() {
        let unit = Unit { program: "/usr/local/bin/weave", restart: true, ..Unit::default() };
        assert_eq!(start(&unit), "/usr/local/bin/weave daemon $WEAVE_OPTIONS $PEERS");
        let (options, peers) = (words(&["--port=7000", "--nickname=a b"]), words(&["h1", "h2:7000"]));
        let full = Unit { options: &options, peers: &peers, ..unit.clone() };
        let line = "/usr/local/bin/weave daemon $WEAVE_OPTIONS --port=7000 \"--nickname=a b\" -- h1 h2:7000";
        assert_eq!(start(&full), line);
        let resumed = Unit { resume: true, options: &options[..1], ..unit };
        assert_eq!(start(&resumed), "/usr/local/bin/weave daemon $WEAVE_OPTIONS --port=7000");
    }

    #[test]
    fn special_characters_are_quoted() {
        for (word, quoted) in [
            ("plain-1.2:3=4", "plain-1.2:3=4"),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("50%", "50%%"),
            ("$HOME", "$$HOME"),
            ("${X}", "\"$${X}\""),
            ("say \"hi\" \\", "\"say \\\"hi\\\" \\\\\""),
            ("a;b", "\"a;b\""),
            ("a\nExecStart=/bin/sh", "\"a\\nExecStart=/bin/sh\""),
        ] {
            assert_eq!(quote(word), quoted);
            assert!(!quote(word).contains('\n'));
        }
        assert_eq!(quote_literal("A=$x%"), "A=$x%%");
    }

    #[test]
    fn shipped_unit_equals_the_generated_one() {
        let unit = Unit { program: "/usr/local/bin/weave", restart: true, ..Unit::default() };
        let shipped = include_str!("../../weave.service");
        let body = |text: &str| text.split_once('\n').map(|(_, rest)| rest.to_owned());
        assert_eq!(body(shipped), body(&unit.text()));
        assert!(!shipped.starts_with(MARK), "reset must not remove a unit that an operator installed");
        assert!(unit.text().starts_with(MARK));
        let crash = Unit { restart: false, ..unit.clone() }.text();
        assert!(crash.contains("\nRestart=no\n") && unit.text().contains("\nRestart=always\n"));
        let environment = [("DOCKER_HOST".to_owned(), "unix:///x y".to_owned())];
        let text = Unit { environment: &environment, ..unit }.text();
        assert!(
            text.contains("\nEnvironment=\"DOCKER_HOST=unix:///x y\"\nEnvironmentFile=-/etc/weave/"),
            "{text}"
        );
    }

    /// Only where systemd is installed.
    #[test]
    fn systemd_accepts_the_unit() {
        let Ok(version) = std::process::Command::new("systemd-analyze").arg("--version").output() else {
            eprintln!("NOTICE: systemd-analyze is not installed; the unit is not verified");
            return;
        };
        assert!(version.status.success());
        let dir = std::env::temp_dir().join(format!("weave-unit-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temporary directory");
        let path = dir.join("weave.service");
        let odd = words(&["--nickname=a $b %c \"d\" \\e;f"]);
        let unit = Unit { program: "/bin/sh", options: &odd, restart: true, ..Unit::default() };
        std::fs::write(&path, unit.text()).expect("write");
        let verify = |args: &[&str]| {
            let output =
                std::process::Command::new("systemd-analyze").args(args).arg(&path).output().expect("run");
            (
                output.status.success(),
                String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            )
        };
        let (good, text) = verify(&["verify", "--man=no"]);
        let warnings: Vec<&str> = text.lines().filter(|l| l.contains("weave.service")).collect();
        let (_, security) = verify(&["security", "--offline=true", "--no-pager"]);
        std::fs::remove_dir_all(&dir).expect("clean up");
        assert!(good && warnings.is_empty(), "{text}");
        let level = security.lines().find(|l| l.contains("Overall exposure level"));
        println!("{}", level.unwrap_or("systemd-analyze security says nothing"));
    }
}
