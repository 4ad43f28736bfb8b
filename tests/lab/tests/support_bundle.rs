//! `weave support-bundle`: what is in the archive, and what must not be.

use std::time::Duration;

use weave_lab::{Host, Lab, Outcome, Topology};

use crate::common::*;

/// With one request to a daemon that does not answer, and the examination.
const HUNG_TIMEOUT: Duration = Duration::from_secs(60);
const FOLDER: &str = "/run/bundle";

/// Makes a bundle and unpacks it; its files are directly in [`FOLDER`].
#[track_caller]
fn bundle(host: &Host) -> Outcome {
    host.sh(&format!("rm -rf {FOLDER}; mkdir {FOLDER}"));
    let outcome = host.command_with(
        &[],
        &["sh", "-c", "cd /run && umask 0 && exec \"$0\" support-bundle", weave_lab::weave_binary()],
        HUNG_TIMEOUT,
    );
    assert!(outcome.success(), "{outcome}");
    let file = outcome.stdout.trim_end();
    assert!(file.starts_with("weave-support-h") && file.ends_with("Z.tar.gz"), "{outcome}");
    assert_eq!(host.sh(&format!("stat -c '%a %u' /run/{file}")), "600 0\n");
    host.sh(&format!("tar -xzf /run/{file} -C {FOLDER} --strip-components 1; rm /run/{file}"));
    outcome
}

#[track_caller]
fn read(host: &Host, file: &str) -> String {
    host.command_ok(&["cat", &format!("{FOLDER}/{file}")])
}

/// Checks that nothing in the archive contains these words.
#[track_caller]
fn lacks(host: &Host, words: &[&str]) {
    for word in words {
        let found = host.command(&["grep", "-rF", "--", word, FOLDER]);
        assert_eq!(found.code, Some(1), "{found}");
    }
}

#[test]
fn bundle_without_secrets_and_addresses_of_hosts() {
    let Some(lab) = Lab::start("bundle", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    h1.sh("ip link set eth0 address 00:16:3e:11:22:33; echo 'search corp.example' >> /etc/resolv.conf; echo '198.18.0.2 db.corp.example' >> /etc/hosts");
    let password = ("WEAVE_PASSWORD", "Var\"iable%Passw0rd");
    h1.weave_env(&[password], &["launch"]).expect_ok();
    h2.weave_env(&[password], &["launch", "h1"]).expect_ok();
    h1.weave_ok(&["connect", "db.corp.example"]);
    h1.wait_established(1, LONG_TIMEOUT);
    let c = h1.container("c");
    let ip = c.attach(&[]);
    h1.weave_ok(&["attach", "192.0.2.77/24", "netns:c"]);
    h1.sh(
        "mkdir -p /etc/weave /etc/systemd/system; echo 'WEAVE_PASSWORD=FilePassw0rd' > /etc/weave/weave.conf",
    );
    h1.sh(r#"echo 'WEAVE_OPTIONS="--port=6783 --password OptionPassw0rd"' > /etc/default/weave; printf '[Service]\nExecStart=/w daemon "--password=Unit \\" Passw0rd"\n' > /etc/systemd/system/weave.service"#);
    h1.sh(r#"echo 'INFO: dialled 203.0.113.9:6783 and [2001:db8::9]:6783 with Var"iable%Passw0rd FilePassw0rd OptionPassw0rd' >> /var/log/weave.log"#);
    let secrets = ["ariable%", "FilePassw0rd", "OptionPassw0rd", "Passw0rd"];
    let hosts = ["198.18.0.", "203.0.113.9", "2001:db8::9", "00:16:3e:11:22:33", "corp.example"];

    step("everything is there");
    let outcome = bundle(h1);
    let manifest = read(h1, "MANIFEST");
    println!("{manifest}");
    lacks(h1, &secrets);
    lacks(h1, &hosts);
    for (file, words) in [
        ("versions.txt", &["weave: ", "kernel: Linux"][..]),
        ("doctor.txt", &["best overlay of this host"]),
        ("status.txt", &["Protocol: weave", "== weave status ipam", "established"]),
        ("report.json", &["\"Router\"", "\"host-address-"]),
        ("metrics.txt", &["weave_connections"]),
        ("containers.txt", &["weave:expose", &ip, "192.0.2.77/24"]),
        ("process.txt", &["\"daemon\"", "VmRSS", "Max open files"]),
        (
            "service.txt",
            &["WEAVE_PASSWORD=[removed]", "--password [removed]", "--port=6783", "\"--password=[removed]\""],
        ),
        ("log-file.txt", &["dialled host-address-", "with [removed] [removed] [removed]"]),
        ("sysctls.txt", &["net/ipv4/ip_forward = "]),
        ("network.txt", &["hardware-address-1", "eth0", "vethwe"]),
        ("firewall.txt", &["WEAVE"]),
    ] {
        assert!(
            manifest
                .lines()
                .any(|line| line.starts_with(&format!("{file}: ")) && !line.contains(": missing: ")),
            "{file} in {manifest}"
        );
        let text = read(h1, file);
        words.iter().for_each(|word| assert!(text.contains(word), "{word} in {file}:\n{text}"));
    }
    assert!(manifest.contains("log-journal.txt: missing: "), "{manifest}");
    // An address has one replacement in all files.
    let address =
        read(h1, "log-file.txt").split("dialled ").nth(1).unwrap().split(':').next().unwrap().to_owned();
    assert!(address.starts_with("host-address-"), "{address}");
    assert!(outcome.stderr.lines().all(|line| line.starts_with("collecting ")), "{outcome}");

    step("to stdout, and refused");
    h1.sh(&format!(
        "{} support-bundle --output - 2> /dev/null > /run/b; tar -tzf /run/b | grep -q /MANIFEST",
        weave_lab::weave_binary()
    ));
    let user = h1.command(&[
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        weave_lab::weave_binary(),
        "support-bundle",
    ]);
    assert!(user.code == Some(1) && user.stderr.contains("must be run as 'root'"), "{user}");
    let missing = h1.weave(&["support-bundle", "--output", "/no/such/folder/b"]);
    assert!(
        missing.code == Some(1) && missing.stderr.contains("cannot write /no/such/folder/b: "),
        "{missing}"
    );

    step("a password on the command line of the daemon");
    h1.weave_ok(&["stop"]);
    // It has the last password, which nothing tells any more.
    h1.sh(": > /var/log/weave.log");
    let program = weave_lab::weave_binary();
    let _daemon = h1
        .background(
            &[program, "daemon", "--password", "Command Passw0rd", "--ipalloc-range", "10.32.0.0/12"],
            false,
        )
        .unwrap();
    h1.wait("the daemon", SHORT_TIMEOUT, || h1.weave(&["status"]).success());
    bundle(h1);
    lacks(h1, &["Passw0rd", "ariable%"]);
    assert!(read(h1, "process.txt").contains(r#""--password","[removed]""#));
}

#[test]
fn bundle_of_a_daemon_that_is_dead_or_hangs() {
    let Some(lab) = Lab::start("deadbundle", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let password = ("WEAVE_PASSWORD", "VariablePassw0rd");
    h1.weave_env(&[password], &["launch", "--no-restart", "db.corp.example"]).expect_ok();
    h1.signal_daemon("STOP");
    let outcome = bundle(h1);
    assert!(outcome.stderr.contains("collecting doctor.txt"), "{outcome}");
    let manifest = read(h1, "MANIFEST");
    assert!(
        manifest.contains("report.json: missing: talking to /run/weave/control.sock: no response"),
        "{manifest}"
    );
    assert!(
        manifest.contains("status.txt: missing: ") && read(h1, "doctor.txt").contains("does not answer"),
        "{manifest}"
    );
    h1.signal_daemon("KILL");
    h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    bundle(h1);
    let manifest = read(h1, "MANIFEST");
    for file in ["status.txt", "report.json", "metrics.txt", "process.txt"] {
        assert!(manifest.contains(&format!("{file}: missing: ")), "{file} in {manifest}");
    }
    assert!(
        read(h1, "log-file.txt").contains("INFO")
            && read(h1, "versions.txt").contains("daemon: does not answer")
    );
    lacks(h1, &["Passw0rd", "198.18.0.", "corp.example"]);
}
