//! The server of weaveDNS on one host: resolvers of containers, names of other domains, addresses to listen on, bad input.

use weave_lab::{Container, Host, Lab, Topology};

use crate::common::names::*;
use crate::common::*;

/// Runs a program in a container with a `resolv.conf` of its own.
#[track_caller]
fn with_resolver(from: &Container, script: &str) -> weave_lab::Outcome {
    let mount = "mount --bind /run/resolv.conf /etc/resolv.conf && exec sh -c \"$0\"";
    from.command(&["unshare", "-m", "sh", "-ec", mount, script])
}

/// A program that prints the first address that musl finds for a name; `None` after a notice without a compiler for musl.
fn musl_resolver(host: &Host) -> Option<String> {
    const SOURCE: &str = r#"#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int count, char **words) {
    struct addrinfo wanted = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(words[1], 0, &wanted, &found);
    return puts(error ? gai_strerror(error) : inet_ntoa(((struct sockaddr_in *)found->ai_addr)->sin_addr)) < 0;
}"#;
    if !host.command(&["sh", "-c", "command -v musl-gcc"]).success() {
        eprintln!("SKIPPED: the resolver of musl (package musl-tools)");
        return None;
    }
    host.command_ok(&[
        "sh",
        "-ec",
        "printf %s \"$0\" > /run/resolve.c; musl-gcc -static -o /run/resolve /run/resolve.c",
        SOURCE,
    ]);
    Some("/run/resolve".to_owned())
}

#[test]
fn resolvers_of_containers_find_names() {
    let Some(lab) = Lab::start("resolv", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    // Of the first server nothing is heard, the second one does not exist.
    let _mute = h1.probe_background(&["dns-serve", "127.0.0.3:53", "--mute"]);
    let _upstream =
        h1.probe_background(&["dns-serve", "127.0.0.5:53", "--record", "www.example.test=192.0.2.33"]);
    h1.sh("for n in 3 4 5; do echo nameserver 127.0.0.$n; done > /run/upstream.conf");
    let options = [
        "--dns-domain",
        "Example.local",
        "--dns-fallback-timeout",
        "300ms",
        "--dns-ttl",
        "7",
        "--dns-threads",
        "2",
        "--resolv-conf",
        "/run/upstream.conf",
    ];
    launch(h1, &options, &[]);
    h1.weave_ok(&["expose", "10.2.1.101/24"]);
    let status = h1.weave_ok(&["status"]);
    assert!(status.contains("Domain: Example.local.") && status.contains("127.0.0.5"), "{status}");
    let client = h1.container("client");
    client.attach(&["10.2.1.1/24"]);
    let _web = named(h1, "web", "web.example.local", "10.2.1.11");
    h1.sh("printf 'nameserver 10.2.1.101\\nsearch example.local\\n' > /run/resolv.conf");

    let busybox = h1.command(&["sh", "-c", "command -v busybox"]).success();
    let musl = musl_resolver(h1);
    for name in ["web.example.local", "web"] {
        let found = with_resolver(&client, &format!("getent ahostsv4 {name}")).expect_ok();
        assert!(found.starts_with("10.2.1.11 "), "{found}");
        if busybox {
            let found = with_resolver(&client, &format!("busybox nslookup {name}")).expect_ok();
            assert!(found.contains("10.2.1.11"), "{found}");
            let reached = with_resolver(&client, &format!("busybox ping -c 1 -W 5 {name}")).expect_ok();
            assert!(reached.contains(" bytes from 10.2.1.11"), "{reached}");
        }
        if let Some(musl) = &musl {
            assert_eq!(with_resolver(&client, &format!("{musl} {name}")).expect_ok(), "10.2.1.11\n");
        }
    }
    step("names of other domains");
    let other = with_resolver(&client, "getent ahostsv4 www.example.test").expect_ok();
    assert!(other.starts_with("192.0.2.33 "), "{other}");
    if let Some(musl) = &musl {
        assert_eq!(with_resolver(&client, &format!("{musl} www.example.test")).expect_ok(), "192.0.2.33\n");
    }
    for more in [&[][..], &["--tcp"]] {
        let answer = ask(&client, "www.example.test", more);
        assert_eq!(
            (records(&answer), &answer["code"]),
            (vec!["192.0.2.33".to_owned()], &0.into()),
            "{answer}"
        );
    }
    assert_eq!(ask(&client, "none.example.test", &[])["code"], 3);
    assert_eq!(ask(&client, "none.example.local", &[])["code"], 3);
    assert_eq!(ask(&client, "web.example.local", &["--kind", "AAAA"])["code"], 0, "the name exists");
    looked_up(h1, "web", &["10.2.1.11"]);
    looked_up(h1, "www.example.test", &["192.0.2.33"]);

    step("variables, and the options of docker run");
    assert_eq!(h1.report().unwrap()["DNS"]["TTL"], 7);
    assert_eq!(h1.weave_ok(&["dns-args", "--name", "x"]), "--dns=10.2.1.101 --dns-search=Example.local.");
    let elsewhere = h1.weave_env(&[("DNS_ADDRESS", "127.0.0.5")], &["dns-lookup", "www.example.test"]);
    assert_eq!(elsewhere.expect_ok(), "192.0.2.33\n");
    let silent = h1.weave_env(&[("DNS_ADDRESS", "127.0.0.7:54")], &["dns-lookup", "www.example.test"]);
    assert!(silent.code == Some(1) && silent.stderr.contains("127.0.0.7:54 does not answer"), "{silent}");

    step("the list of servers changes");
    h1.sh("echo nameserver 127.0.0.6 > /run/upstream.conf");
    let _later =
        h1.probe_background(&["dns-serve", "127.0.0.6:53", "--record", "new.example.test=192.0.2.44"]);
    resolves(&client, "new.example.test", &["192.0.2.44"]);

    step("questions are not tracked as connections, until the address is hidden");
    let rules = h1.sh("iptables -w -t raw -S");
    assert!(rules.contains("-d 10.2.1.101/32 -i weave -p udp") && rules.contains("--notrack"), "{rules}");

    step("nobody else gets answers about other domains");
    let outside = external_network(h1, "outside", "ext0", "198.51.100.1/24", "198.51.100.2/24");
    let refused = outside.probe(&["dns-query", "10.2.1.101", "new.example.test", "--wait-ms", "3000"]);
    assert!(records(&refused).is_empty(), "{refused}");
    h1.weave_ok(&["hide", "10.2.1.101/24"]);
    assert!(!h1.sh("iptables -w -t raw -S").contains("notrack"));
    h1.weave_ok(&["stop"]);
    let stopped = h1.weave_env(&[("DNS_DOMAIN", "x.local"), ("DNS_ADDRESS", "10.0.0.1")], &["dns-args"]);
    assert_eq!(stopped.expect_ok(), "--dns=10.0.0.1 --dns-search=x.local");
}

#[test]
fn an_address_that_cannot_be_used_is_reported() {
    let Some(lab) = Lab::start("dnsbusy", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let other = h1.probe_background(&["dns-serve", "127.0.0.9:53"]);
    let launched = h1.weave(&["launch", "--no-restart", "--dns-listen-address", "127.0.0.9:53"]);
    assert!(launched.success() && launched.stderr.contains("queries on TCP 127.0.0.9:53"), "{launched}");
    assert!(launched.stderr.contains("uses it") && launched.stderr.contains("--dns-listen-address"));
    assert!(h1.log().contains("queries on TCP 127.0.0.9:53"), "{}", h1.log());
    let problem = |host: &Host| {
        host.weave_ok(&["status"]).contains("Problem: cannot answer DNS queries on TCP 127.0.0.9:53")
    };
    assert!(problem(h1));
    let c = h1.container("c");
    assert_eq!(h1.weave_ok(&["attach", "10.2.1.1/24", "--name", "c.weave.local", "netns:c"]), "10.2.1.1\n");
    assert!(c.has_interface() && h1.weave_ok(&["status", "dns"]).contains("10.2.1.1"));
    step("as soon as the address is free, it is used");
    drop(other);
    h1.wait("the server", SHORT_TIMEOUT, || !problem(h1));
    looked_up(h1, "c", &["10.2.1.1"]);

    step("bad input");
    let listed = h1.weave_ok(&["status", "dns"]);
    for (args, words) in [
        (&["dns-add", "10.2.1.2", "-h", "c.example.com"][..], "is not in the domain weave.local."),
        (&["dns-add", "10.2.1.2", "-h", "c..weave.local"], "is no name of a host"),
        (&["dns-add", "netns:nosuch", "-h", "c.weave.local"], "nosuch"),
        (&["dns-add", "10.2.1.2/24", "-h", "c.weave.local"], "is neither an IPv4 address"),
        (&["expose", "10.2.1.101/24", "-h", "c.example.com"], "is not in the domain weave.local."),
        (&["attach", "10.2.2.1/24", "--name", "c", "netns:c"], "is not in the domain weave.local."),
        (&["attach", "10.2.2.1/24", "--name", "c.weave.local", "--without-dns", "netns:c"], "contradict"),
    ] {
        let refused = h1.weave(args);
        assert!(
            refused.code == Some(1) && refused.stderr.contains(words) && refused.stdout.is_empty(),
            "{refused}"
        );
    }
    assert_eq!(h1.weave_ok(&["status", "dns"]), listed);
    assert!(!h1.sh("ip -4 addr show dev weave").contains("10.2.1.101"), "nothing is half-done");
    step("adding twice is adding once");
    h1.weave_ok(&["dns-add", "netns:c", "-h", "C.weave.local"]);
    assert_eq!(h1.weave_ok(&["status", "dns"]), listed);
    let nothing = h1.weave(&["dns-lookup", "nosuch"]);
    assert!(
        nothing.success() && nothing.stdout.is_empty() && nothing.stderr.contains("no address"),
        "{nothing}"
    );
}

#[test]
fn the_resolver_of_the_host_asks_for_names() {
    let Some(lab) = Lab::start("hostdns", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    step("without systemd-resolved it says what to write where");
    launch(h1, &["--host-dns"], &[]);
    let exposed = h1.weave(&["expose", "10.2.1.101/24"]);
    assert!(exposed.stderr.contains("nameserver 10.2.1.101") && exposed.success(), "{exposed}");
    assert!(h1.weave_ok(&["status"]).contains("server=/weave.local/10.2.1.101"));
    h1.weave_ok(&["stop"]);

    step("with a program that takes down what systemd-resolved is told");
    h1.sh("mkdir -p /run/systemd/resolve /run/fake; printf '#!/bin/sh\\necho \"$@\" >> /run/fake/calls\\n' > /run/fake/resolvectl");
    h1.sh("chmod +x /run/fake/resolvectl");
    let path = [("PATH", "/run/fake:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")];
    let calls = || h1.command(&["cat", "/run/fake/calls"]).stdout;
    let told = "dns weave 10.2.1.101\ndomain weave ~weave.local\n";
    h1.weave_env(&path, &["launch", "--no-restart", "--host-dns"]).expect_ok();
    assert_eq!(calls(), told);
    h1.weave_env(&path, &["stop"]).expect_ok();
    assert_eq!(calls(), format!("{told}revert weave\n"));
    h1.weave_env(&path, &["launch", "--no-restart", "--host-dns"]).expect_ok();
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    h1.weave_env(&path, &["stop"]).expect_ok();
    assert_eq!(calls(), format!("{told}revert weave\n").repeat(2), "a stop after a crash");
    h1.weave_env(&path, &["stop"]).expect_ok();
    assert_eq!(calls(), format!("{told}revert weave\n").repeat(2), "once");
}
