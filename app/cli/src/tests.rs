//! Spellings, errors and texts.

use std::collections::BTreeMap;
use std::path::Path;

use weave_runtime::AddressRequest;

use crate::addresses;
use crate::env::Env;
use crate::options;
use crate::{Failure, args, commands, container, launch_options};

impl Env for BTreeMap<&str, &str> {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).map(|v| (*v).to_owned())
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(|w| if w == "''" { String::new() } else { w.to_owned() }).collect()
}

fn parse(command: &str, line: &str) -> Result<args::Parsed, args::ArgsError> {
    args::parse(commands::find(command).expect("a command"), &words(line))
}

fn launch(line: &str) -> args::Parsed {
    parse("launch", line).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn config(line: &str, env: &[(&'static str, &'static str)]) -> Result<weave_daemon::config::Config, String> {
    let env: BTreeMap<&str, &str> = env.iter().copied().collect();
    options::config(&launch(line), &env, "host1").map_err(|e| e.to_string())
}

/// The columns: the spelling, its canonical form, and the names in the warning on stderr.
#[test]
fn every_spelling_gives_the_canonical_option() {
    let deprecated = |old: &str, new: &str| format!("Warning: {old} is deprecated; please use {new}");
    for (line, canonical, warning) in [
        ("--port 7000", "--port=7000", None),
        ("--port=7000", "--port=7000", None),
        ("-port 7000", "--port=7000", Some(("-port", "--port"))),
        ("-port=7000", "--port=7000", Some(("-port", "--port"))),
        ("--password wEaVe", "--password=wEaVe", None),
        ("-password wEaVe", "--password=wEaVe", Some(("-password", "--password"))),
        ("-nickname=n", "--nickname=n", Some(("-nickname", "--nickname"))),
        ("-name ::1", "--name=::1", Some(("-name", "--name"))),
        ("--iprange 10.2.3.0/24", "--ipalloc-range=10.2.3.0/24", Some(("--iprange", "--ipalloc-range"))),
        ("-iprange 10.2.3.0/24", "--ipalloc-range=10.2.3.0/24", Some(("-iprange", "--ipalloc-range"))),
        ("-iprange=10.2.3.0/24", "--ipalloc-range=10.2.3.0/24", Some(("-iprange", "--ipalloc-range"))),
        (
            "-ipsubnet 10.2.0.0/16",
            "--ipalloc-default-subnet=10.2.0.0/16",
            Some(("-ipsubnet", "--ipalloc-default-subnet")),
        ),
        (
            "-initpeercount 3",
            "--ipalloc-init=consensus=3",
            Some(("-initpeercount", "--ipalloc-init consensus=3")),
        ),
        (
            "--initpeercount=3",
            "--ipalloc-init=consensus=3",
            Some(("--initpeercount", "--ipalloc-init consensus=3")),
        ),
        (
            "--init-peer-count 3",
            "--ipalloc-init=consensus=3",
            Some(("--init-peer-count", "--ipalloc-init consensus=3")),
        ),
        (
            "--init-peer-count=3",
            "--ipalloc-init=consensus=3",
            Some(("--init-peer-count", "--ipalloc-init consensus=3")),
        ),
        ("--observer", "--ipalloc-init=observer", Some(("--observer", "--ipalloc-init observer"))),
        ("--observer=false", "", None),
        (
            "--ipam-seed ::1,::2",
            "--ipalloc-init=seed=::1,::2",
            Some(("--ipam-seed", "--ipalloc-init seed=::1,::2")),
        ),
        ("--ipalloc-init=observer", "--ipalloc-init=observer", None),
        ("--ipalloc-init consensus", "--ipalloc-init=consensus", None),
        ("-nodiscovery", "--no-discovery=true", Some(("-nodiscovery", "--no-discovery"))),
        ("--nodiscovery", "--no-discovery=true", Some(("--nodiscovery", "--no-discovery"))),
        ("--no-discovery=false", "--no-discovery=false", None),
        ("-connlimit 5", "--conn-limit=5", Some(("-connlimit", "--conn-limit"))),
        ("-debug", "--log-level=debug", Some(("-debug", "--log-level debug"))),
        ("-httpaddr :7", "--http-addr=:7", Some(("-httpaddr", "--http-addr"))),
        ("--api unix:///x", "--docker-api=unix:///x", Some(("--api", "--docker-api"))),
        ("-D tcp://x:1", "--docker-api=tcp://x:1", Some(("-D", "--docker-api"))),
        ("-H tcp://0.0.0.0:9", "-H=tcp://0.0.0.0:9", None),
        ("-H=unix:///x", "-H=unix:///x", None),
        ("--plugin=false --proxy=false", "--plugin=false --proxy=false", None),
        (
            "--no-default-ipam",
            "--no-default-ipalloc=true",
            Some(("--no-default-ipam", "--no-default-ipalloc")),
        ),
        ("--domain weave.", "--dns-domain=weave.", Some(("--domain", "--dns-domain"))),
        ("-iface eth0 -wait 5 --with-dns", "", None),
    ] {
        // Before, between and after the peers.
        for line in [format!("{line} h1 h2:7"), format!("h1 {line} h2:7"), format!("h1 h2:7 {line}")] {
            let parsed = launch(&line);
            assert_eq!(parsed.canonical().join(" "), canonical, "{line}");
            assert_eq!(parsed.rest, ["h1", "h2:7"], "{line}");
            let expected: Vec<_> = warning.iter().map(|(old, new)| deprecated(old, new)).collect();
            assert_eq!(parsed.warnings, expected, "{line}");
            // The daemon understands the canonical form in the same way.
            let again = args::parse(commands::daemon(), &parsed.canonical()).expect(&line);
            assert_eq!(again.canonical(), parsed.canonical());
            assert!(again.warnings.is_empty());
        }
    }
    let parsed = launch("h1 --no-restart -- --port -x");
    assert_eq!(parsed.rest, ["h1", "--port", "-x"]);
    assert!(parsed.flag("no-restart"));
    assert_eq!(launch("--port 1 --port=2").number("port"), Some(2), "the last one counts");
}

#[test]
fn malformed_options_are_refused() {
    for (line, error) in [
        ("--bogus", "flag provided but not defined: --bogus"),
        ("-bogus=3", "flag provided but not defined: -bogus"),
        ("h1 --port", "flag needs an argument: --port"),
        (
            "--port=abc",
            "invalid value \"abc\" for flag --port: strconv.ParseInt: parsing \"abc\": invalid syntax",
        ),
        (
            "--port 99999999999999999999",
            "invalid value \"99999999999999999999\" for flag --port: strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
        ),
        (
            "--resume=maybe",
            "invalid boolean value \"maybe\" for --resume: strconv.ParseBool: parsing \"maybe\": invalid syntax",
        ),
    ] {
        let got = parse("launch", line).expect_err(line).to_string();
        assert_eq!(got.replace("for flag --resume", "for --resume"), error, "{line}");
    }
}

/// The recorded errors of 2.8.1's daemon, except those whose reason does not exist here.
#[test]
fn daemon_errors_are_those_of_the_capture() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/cli/daemon-flag-errors.txt");
    let text = std::fs::read_to_string(path).expect("vector");
    let mut checked = 0;
    for case in text.split("$ weaver ").skip(1) {
        let mut lines = case.lines();
        let line = lines.next().expect("command");
        let mut answer: Vec<&str> = lines.collect();
        let code: u8 = answer.pop().and_then(|l| l.strip_prefix("rc=")?.parse().ok()).expect("code");
        let different = [
            // Old spellings are accepted with a warning.
            "-iprange 10.2.0.0/16",
            // Prints instead; see below.
            "--version",
            "--print-peer-name --name ::1",
            "--print-peer-name --name 01:02:03:04:05:06",
            // The default range of launch is the daemon's default, too.
            "--docker-api '' --no-fastdp --ipalloc-init observer",
            "--docker-api '' --no-fastdp --ipalloc-default-subnet 10.2.0.0/24",
            // A name that does not resolve is retried; it does not prevent a launch.
            "--docker-api '' --no-fastdp --ipalloc-range 10.2.0.0/16 --no-dns host.invalid",
            // Only the daemon examines devices.
            "--docker-api '' --no-fastdp --weave-bridge weave2 --docker-bridge nosuch",
        ];
        if different.contains(&line) {
            continue;
        }
        checked += 1;
        let error = match parse("daemon", line) {
            Err(e) => {
                assert_eq!(code, 125, "{line}");
                e.to_string()
            }
            Ok(parsed) => {
                assert_eq!(code, 1, "{line}");
                let env = BTreeMap::new();
                options::config(&parsed, &env, "host1").expect_err(line).to_string()
            }
        };
        let expected = answer.iter().find(|l| !l.starts_with("INFO")).expect("text");
        assert_eq!(error, expected.trim_start_matches("FATA: <time> "), "{line}");
    }
    assert_eq!(checked, 19);
}

#[test]
fn values_from_options_and_environment() {
    let c = config("--name ::1 -password x --port 7000 --trusted-subnets 10.0.0.1/8,192.168.1.0/24 h1 h2:7 --conn-limit 0 --no-discovery", &[]).expect("good");
    assert_eq!(c.name.map(|n| n.to_string()).as_deref(), Some("00:00:00:00:00:01"));
    assert_eq!((c.port, c.connection_limit, c.discovery), (7000, 0, false));
    assert_eq!(c.password.as_ref().map(|p| p.reveal()), Some(&b"x"[..]));
    let trusted: Vec<_> = c.trusted_subnets.iter().map(ToString::to_string).collect();
    assert_eq!(trusted, ["10.0.0.0/8", "192.168.1.0/24"]);
    assert_eq!(c.peers, ["h1", "h2:7"]);
    assert_eq!(c.nickname, "host1");

    let env =
        [("WEAVE_PORT", "7001"), ("WEAVE_PASSWORD", "env"), ("WEAVE_MTU", "1400"), ("WEAVE_NO_FASTDP", "1")];
    let c = config("", &env).expect("good");
    assert_eq!((c.port, c.mtu, c.new_mtu), (7001, Some(1400), 65535));
    assert_eq!(c.password.as_ref().map(|p| p.reveal()), Some(&b"env"[..]));
    assert!(!c.overlays.fastdp && c.overlays.warp && c.overlays.sleeve);
    let c = config("--overlays fastdp,warp", &[("WEAVE_OVERLAYS", "sleeve")]).expect("good");
    assert!(c.overlays.fastdp && c.overlays.warp && !c.overlays.sleeve && c.new_mtu == 1376);
    let c = config("--port 7 --password opt --mtu 9000 --no-fastdp=false", &env).expect("good");
    assert_eq!((c.port, c.mtu, c.new_mtu), (7, Some(9000), 1376), "options beat the environment");
    assert_eq!(c.password.as_ref().map(|p| p.reveal()), Some(&b"opt"[..]));

    for (line, env, http, status) in [
        ("", &[][..], Some("127.0.0.1:6784"), Some("127.0.0.1:6782")),
        ("", &[("WEAVE_HTTP_ADDR", ":7000"), ("WEAVE_STATUS_ADDR", "")], Some("127.0.0.1:7000"), None),
        ("", &[("WEAVE_HTTP_ADDR", ""), ("WEAVE_STATUS_ADDR", ":9")], Some("127.0.0.1:6784"), Some(":9")),
        ("", &[("WEAVE_HTTP_ADDR", "10.0.0.1")], Some("10.0.0.1:6784"), Some("127.0.0.1:6782")),
        ("--http-addr '' --status-addr=", &[("WEAVE_HTTP_ADDR", ":7000")], None, None),
        ("--http-addr /run/x.sock", &[], Some("/run/x.sock"), Some("127.0.0.1:6782")),
    ] {
        let c = config(line, env).expect(line);
        assert_eq!(c.http_addr.map(|a| a.to_string()).as_deref(), http, "{line} {env:?}");
        assert_eq!(c.status_addr.map(|a| a.to_string()).as_deref(), status, "{line} {env:?}");
    }
    let c = config("--run-dir /r", &[("WEAVE_RUN_DIR", "/e"), ("WEAVE_STATE_DIR", "/s")]).expect("good");
    assert_eq!((c.run_dir.as_path(), c.state_dir.as_path()), (Path::new("/r"), Path::new("/s")));
    assert_eq!(c.pid_file(), Path::new("/r/weave.pid"));
}

#[test]
fn password_file_is_read_without_its_newline() {
    let path = std::env::temp_dir().join(format!("weave-cli-test-{}", std::process::id()));
    std::fs::write(&path, " wEaVe \n").expect("temporary file");
    let c = config(&format!("--password-file {}", path.display()), &[]).expect("good");
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(c.password.as_ref().map(|p| p.reveal()), Some(&b" wEaVe "[..]));
    let error = config("--password-file /no/such/file", &[]).expect_err("missing");
    assert!(error.starts_with("--password-file: cannot read \"/no/such/file\""), "{error}");
}

/// A variable of any bytes.
struct PasswordVariable(&'static [u8]);

impl Env for PasswordVariable {
    fn var(&self, _name: &str) -> Option<String> {
        None
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        (name == "WEAVE_PASSWORD").then(|| self.0.to_owned())
    }
}

#[test]
fn a_password_has_the_same_bytes_for_launch_and_daemon() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("password");
    let parsed =
        |line: &str| args::parse(commands::find("daemon").expect("it exists"), &words(line)).expect(line);
    let with_file = parsed(&format!("--password-file {}", path.display()));
    for bytes in [&b"wEaVe"[..], b"s3cret\n", b"\n", b"a\r", b"a\r\n", b"gr\xfcn", b" "] {
        let launched = options::config(&parsed(""), &PasswordVariable(bytes), "h1").expect("good").password;
        let launched = launched.expect("a password");
        assert_eq!(launched.reveal(), bytes, "as in 2.8.1");
        std::fs::write(&path, options::password_file(&launched)).expect("temporary file");
        let started = options::config(&with_file, &PasswordVariable(b"other"), "h1").expect("good");
        assert_eq!(started.password.as_ref(), Some(&launched));
        let notice = options::password_notice(&with_file, &started, &PasswordVariable(b"other"));
        assert!(notice.is_some_and(|n| n.contains("that of --password-file; WEAVE_PASSWORD")));
        assert_eq!(options::password_notice(&with_file, &started, &PasswordVariable(bytes)), None);
    }
    assert_eq!(options::config(&parsed(""), &PasswordVariable(b""), "h1").expect("good").password, None);
    for empty in ["", "\n", "\r\n"] {
        std::fs::write(&path, empty).expect("temporary file");
        let error = options::config(&with_file, &PasswordVariable(b"other"), "h1").expect_err("no password");
        assert!(error.to_string().starts_with("--password-file: there is no password in "), "{error}");
    }
    assert!(options::config(&parsed("--password-file ''"), &PasswordVariable(b"other"), "h1").is_err());
    let both = parsed(&format!("--password x --password-file {}", path.display()));
    assert!(options::config(&both, &PasswordVariable(b""), "h1").is_err(), "the last option counts");
}

#[test]
fn arguments_that_are_not_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let args = ["launch".into(), std::ffi::OsString::from_vec(b"--password=gr\xfcn".to_vec())];
    let error = crate::text_arguments(args.into_iter()).expect_err("not text");
    assert!(
        error.message.starts_with("argument 2 is not UTF-8 text; a password may be any bytes"),
        "{error:?}"
    );
    assert!(!error.message.contains("gr"), "{error:?}");
}

#[test]
fn invalid_values_are_refused() {
    for (line, env, error) in [
        ("--port 0", &[][..], "--port 0: must be in range [1,65534]"),
        ("--port 65535", &[], "--port 65535: must be in range [1,65534]"),
        ("", &[("WEAVE_PORT", "x")], "WEAVE_PORT: invalid number \"x\""),
        ("--mtu 10", &[], "--mtu 10: must be in range [68,65535]"),
        ("--host h1", &[], "--host: \"h1\" is not an IP address"),
        ("--conn-limit -1", &[], "--conn-limit -1: must not be negative"),
        (
            "--weave-bridge abcdefghijklmnop",
            &[],
            "--weave-bridge: \"abcdefghijklmnop\" is not a device name of at most 15 characters",
        ),
        ("a:b:c", &[], "invalid peer name \"a:b:c\", should be host[:port]"),
        ("h1:70000", &[], "invalid peer name \"h1:70000\", should be host[:port]"),
        ("--resume h1", &[], "You must not specify an initial peer list in conjunction with --resume"),
        (
            "--observer --init-peer-count 3",
            &[],
            "at most one of --ipalloc-init, --init-peer-count, --observer and --ipam-seed may be given",
        ),
        (
            "--ipalloc-init observer --ipam-seed ::1",
            &[],
            "at most one of --ipalloc-init, --init-peer-count, --observer and --ipam-seed may be given",
        ),
        ("--ipalloc-range '' --observer", &[], "--ipalloc-init specified without --ipalloc-range."),
        (
            "-H unix://x.sock",
            &[],
            "When launching the proxy, unix sockets must be specified as an absolute path.",
        ),
        (
            "--http-addr 127.0.0.1",
            &[],
            "--http-addr: \"127.0.0.1\" is not host:port, :port or the path of a unix socket",
        ),
    ] {
        assert_eq!(config(line, env).expect_err(line), error, "{line}");
    }
}

#[test]
fn allocation_options() {
    let of = |line: &str| config(line, &[]).expect(line).allocation;
    assert_eq!(of(""), None, "a daemon on its own allocates nothing; launch sets the default");
    assert_eq!(of("--ipalloc-range ''"), None);
    let init = |line: &str| of(&format!("--ipalloc-range 10.2.0.0/16 {line}")).expect(line).init;
    for (line, expected) in [
        ("", "consensus"),
        ("--ipalloc-init consensus", "consensus"),
        ("--ipalloc-init=consensus=3", "consensus=3"),
        ("--init-peer-count 3", "consensus=3"),
        ("-initpeercount=3", "consensus=3"),
        ("--ipalloc-init consensus=0", "consensus"),
        ("--observer", "observer"),
        ("--ipalloc-init=observer", "observer"),
        ("--ipam-seed ::1,::2", "seed=00:00:00:00:00:01,00:00:00:00:00:02"),
        ("--ipalloc-init seed=::1", "seed=00:00:00:00:00:01"),
    ] {
        assert_eq!(init(line).to_string(), expected, "{line}");
    }
    let both = of("--iprange 10.2.0.0/16 --ipsubnet 10.2.3.0/24").expect("on");
    assert_eq!(
        (both.range.to_string(), both.default_subnet.to_string()),
        ("10.2.0.0/16".into(), "10.2.3.0/24".into())
    );
    let wider = of("--ipalloc-range 10.9.0.0/17 --ipalloc-default-subnet 10.9.0.0/16").expect("on");
    assert_eq!(wider.default_subnet.to_string(), "10.9.0.0/16");
    for (line, error) in [
        ("--ipalloc-range 10.2.0.0", "invalid CIDR address: 10.2.0.0"),
        ("--ipalloc-range fd00::/8", "invalid Non-IPv4 address not supported: fd00::/8"),
        ("--ipalloc-range 10.2.0.0/31", "invalid subnet - smaller than minimum size 4: 10.2.0.0/31"),
        (
            "--ipalloc-range 10.2.0.0/16 --ipalloc-default-subnet 10.3.0.0/24",
            "IP address allocation default subnet \
          10.3.0.0/24 does not overlap with allocation range 10.2.0.0/16",
        ),
    ] {
        assert_eq!(config(line, &[]).expect_err(line), error, "{line}");
    }
    assert!(config("--ipalloc-range 240.0.0.0/4", &[]).is_err(), "its end cannot be said on the wire");
}

#[test]
fn missing_features_are_noticed_only_if_asked_for() {
    let notices = |line: &str| launch(line).notices();
    let silent = "--no-dns --plugin=false --proxy=false --ipalloc-range '' --no-fastdp --no-restart --password x --docker-api '' h1";
    assert_eq!(notices(silent), [""; 0]);
    assert_eq!(
        notices("--ipalloc-range 10.2.0.0/16 --dns-domain x. -H tcp://:1 --awsvpc --bufsz 16"),
        [
            "Notice: this version does not do AWS routes yet; no effect: --awsvpc",
            "Notice: obsolete, no effect: --bufsz",
        ]
    );
}

#[test]
fn attach_arguments() {
    let call = |line: &str| container::call(&parse("attach", line).expect(line));
    let good = call("10.2.1.1/24 net:10.2.3.0/24 ip:10.2.2.1/24 net:default 10.2.1.1/24 c1").expect("good");
    let fixed = |text: &str| AddressRequest::Fixed(text.parse().expect("an address"));
    let net = |text: &str| AddressRequest::Net(Some(text.parse().expect("a subnet")));
    assert_eq!(
        good.addresses,
        [fixed("10.2.1.1/24"), net("10.2.3.0/24"), fixed("10.2.2.1/24"), AddressRequest::Net(None)]
    );
    assert_eq!(good.container, "c1");
    assert_eq!(addresses::plain(&["10.2.1.1/24".to_owned()]), "10.2.1.1\n");
    assert_eq!(call("c1").expect("good").addresses, [AddressRequest::Net(None)]);
    assert_eq!(call("10.2.1.0/24 c1").expect("2.8.1 accepts it").addresses, [fixed("10.2.1.0/24")]);
    assert_eq!(call("10.2.1.1/24 netns:/run/netns/blue").expect("good").container, "netns:/run/netns/blue");
    for (line, error) in [
        ("net:10.2.1.1/24 c1", "invalid subnet - bits after network prefix are not all zero: 10.2.1.1/24"),
        ("net:10.2.1.0/31 c1", "invalid subnet - smaller than minimum size 4: 10.2.1.0/31"),
        ("10.2.1.1/24 net:10.2.1.0/33 c1", "invalid CIDR address: 10.2.1.0/33"),
        ("", "usage: weave attach [<addr> ...] [options] <container>"),
        ("10.2.1.1/24", "usage: weave attach [<addr> ...] [options] <container>"),
        (
            "c1 10.2.1.1/24",
            "addresses come before the container; usage: weave attach [<addr> ...] [options] <container>",
        ),
        (
            "10.2.1.1/24 c1 c2",
            "'c1' and 'c2' cannot both be the container; usage: weave attach [<addr> ...] [options] <container>",
        ),
        ("10.2.1.1/33 c1", "invalid CIDR address: 10.2.1.1/33"),
        ("10.2.1.999/24 c1", "invalid CIDR address: 10.2.1.999/24"),
        ("10.2.1.1 c1", "'10.2.1.1' is no container; an address is <ip>/<bits>, as 10.2.1.1/24"),
        ("10.2.1.1", "'10.2.1.1' is no container; an address is <ip>/<bits>, as 10.2.1.1/24"),
        ("10.2.1/24", "'10.2.1/24' is no container; an address is <ip>/<bits>, as 10.2.1.1/24"),
        ("10.2.1.255/24 c1", "10.2.1.255/24 is the network's broadcast address; choose another"),
    ] {
        assert_eq!(call(line), Err(Failure::new(1, error)), "{line}");
    }
}

/// Texts and codes of the recorded command line that need no daemon.
#[test]
fn command_line_errors() {
    let env: BTreeMap<&str, &str> = [("WEAVE_RUN_DIR", "/nonexistent/weave")].into_iter().collect();
    let fails = |line: &str| crate::run(&words(line), &env).expect_err(line);
    for (line, code, start) in [
        ("", 1, "connects containers on many hosts into one network\n\nUsage: weave <command>"),
        ("nosuchcmd", 1, "Unknown weave command 'nosuchcmd'\n"),
        ("connect", 1, "usage: weave connect [OPTIONS] [peer]..."),
        ("forget", 1, "the following required arguments were not provided: <peer>...; usage: weave forget"),
        ("attach", 1, "usage: weave attach "),
        ("report -x foo", 1, "flag provided but not defined: -x\nSee 'weave report --help'."),
        ("report extra", 1, "unexpected argument 'extra' found; usage: weave report [OPTIONS]\n"),
        ("stop now", 1, "unexpected argument 'now' found; usage: weave stop"),
        ("status a b", 1, "Invalid 'weave status' sub-command: a b\nusage: weave status"),
        ("status", 1, "weave is not running. Have you launched it?"),
        ("connect h1", 1, "weave is not running. Have you launched it?"),
        ("--local connect h1", 1, "weave is not running. Have you launched it?"),
        ("daemon --bogus", 125, "flag provided but not defined: --bogus\nSee 'weave daemon --help'."),
        ("launch --bogus", 1, "flag provided but not defined: --bogus\n"),
        ("launch --port 0", 1, "--port 0: must be in range"),
        ("prime", 1, "weave is not running. Have you launched it?"),
        ("consense", 1, "weave is not running. Have you launched it?"),
        ("rmpeer", 1, "the following required arguments were not provided: <peer>...; usage: weave rmpeer"),
        ("run", 1, "usage: weave run [options] [<addr> ...] <arguments of docker run>"),
        ("run 10.2.1.1/24", 1, "usage: weave run "),
        ("run 10.2.1.255/24 ubuntu", 1, "10.2.1.255/24 is the network's broadcast address; choose another"),
        ("start", 1, "usage: weave start "),
        ("start netns:c1", 1, "netns:c1 is not a container of Docker, which alone can be started"),
        ("restart", 1, "usage: weave restart "),
        ("restart pid:7", 1, "pid:7 is not a container of Docker, which alone can be started"),
        ("env", 0, "weave is not running. Have you launched it?"),
        ("config", 1, "weave is not running. Have you launched it?"),
        ("dns-add", 1, "neither an address nor a container is given; usage: weave dns-add"),
        ("dns-add 10.2.1.1", 1, "an address without a container needs a name"),
        ("dns-add c1 10.2.1.1", 1, "addresses come before the container"),
        ("dns-add 10.2.1.1/24 c1", 1, "'10.2.1.1/24' and 'c1' cannot both be the container"),
        ("dns-remove 10.2.1.1/24", 1, "'10.2.1.1/24' is neither an IPv4 address"),
        ("dns-lookup", 1, "usage: weave dns-lookup <name>"),
        ("dns-lookup a", 1, "weave is not running. Have you launched it?"),
        (
            "launch --dns-listen-address 1.2.3.4",
            1,
            "invalid DNS listen address \"1.2.3.4\": address 1.2.3.4: missing port",
        ),
        ("launch --data-threads 9", 1, "--data-threads 9: must be in range [1,8]"),
        ("launch --dns-threads 0", 1, "--dns-threads 0: must be in range [1,1024]"),
        ("launch --dns-ttl -1", 1, "--dns-ttl -1: must be in range"),
        ("launch --dns-domain a..b", 1, "--dns-domain: \"a..b\" is not a host name"),
        (
            "launch --dns-fallback-timeout 5",
            1,
            "invalid value \"5\" for flag --dns-fallback-timeout: time: invalid duration",
        ),
        ("expose bogus", 1, "'bogus' is no address, as 10.2.1.102/24 is; usage: weave expose"),
        ("hide 10.2.1.1", 1, "'10.2.1.1' is no address"),
        ("expose 10.2.1.255/24", 1, "10.2.1.255/24 is the network's broadcast address; choose another"),
        ("expose 10.2.1.1/33", 1, "invalid CIDR address: 10.2.1.1/33"),
        ("help nosuch", 1, "Unknown weave command 'nosuch'"),
    ] {
        // A daemon of this host on the default address would answer.
        if start.starts_with("weave is not running") && std::net::TcpStream::connect("127.0.0.1:6784").is_ok()
        {
            continue;
        }
        let failure = fails(line);
        assert_eq!(failure.code, code, "{line}: {failure:?}");
        assert!(failure.message.starts_with(start), "{line}: {failure:?}");
    }
    for line in ["help", "--help", "launch --help", "help attach", "status --help", "status -h"] {
        assert_eq!(crate::run(&words(line), &env), Ok(()), "{line}");
    }
    let fatal = fails("daemon --name zz");
    assert!(
        fatal.message.starts_with("FATA: ") && fatal.message.ends_with(" invalid peer name format: \"zz\"")
    );
}

#[test]
fn every_option_is_explained() {
    let overview = commands::program().render_help().to_string();
    for command in commands::all() {
        let name = command.get_name();
        let text = commands::help(name).expect(name);
        assert!(text.lines().all(|l| l.chars().count() <= 130), "{text}");
        for option in command.get_arguments().filter(|a| !a.is_positional()) {
            assert!(text.contains(&args::dashed(args::name(option))), "{name}: {option}");
            assert!(option.get_help().is_some_and(|h| !h.to_string().is_empty()), "{name}: {option}");
        }
        assert!(overview.contains(&format!("\n  {name} ")), "{name}");
    }
}

#[test]
fn definitions_of_commands_and_options_are_consistent() {
    commands::program().debug_assert();
    let options: Vec<_> = launch_options::daemon_options();
    for (_, names) in launch_options::MISSING {
        assert!(names.iter().all(|n| options.iter().any(|o| args::name(o) == *n)), "{names:?}");
    }
}

/// Runs a program with `input`; `None`, with a notice, where it is not installed.
pub(crate) fn piped(program: &str, args: &[&str], input: &str) -> Option<std::process::Output> {
    use std::io::Write;
    use std::process::{Command as Process, Stdio};
    let child = Process::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("NOTICE: {program} is not installed; its test is skipped");
        return None;
    };
    let mut stdin = child.stdin.take().expect("a pipe");
    // The program may write before it has read everything.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        child.wait_with_output().expect("ends")
    });
    Some(output)
}
