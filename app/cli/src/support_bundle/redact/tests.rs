use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn known() -> Known {
    let text = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    let mac = |text: &str| BTreeSet::from([text.parse().expect("an address")]);
    Known {
        secrets: text(&["s3cr\"t$", "abc"]),
        networks: vec!["10.32.0.0/12".parse().expect("a network")],
        peers: mac("00:16:3e:00:00:01"),
        hardware: mac("02:00:00:00:00:07"),
        names: text(&["db1", "corp.example", "node7"]),
        nicknames: text(&["node7"]),
    }
}

#[test]
fn what_is_replaced_and_what_stays() {
    let mut redactor = Redactor::new(known());
    for (text, expected) in [
        ("192.0.2.1:6783, again 192.0.2.1", "host-address-1:6783, again host-address-1"),
        ("[2001:db8::1]:6783 and 2001:DB8:0::1.", "[host-address-2]:6783 and host-address-2."),
        ("::ffff:192.0.2.1, fe80::1%eth0/64:", "host-address-1, host-address-3%eth0/64:"),
        ("10.32.0.1/12 10.47.255.255 10.48.0.0/16", "10.32.0.1/12 10.47.255.255 host-address-4/16"),
        (
            "127.0.0.1:6784 0.0.0.0/0 ::1 [::]:53 224.0.0.251",
            "127.0.0.1:6784 0.0.0.0/0 ::1 [::]:53 224.0.0.251",
        ),
        ("2.8.1 20.10.24 1.3.6.1.4.1 v192.0.2.1", "2.8.1 20.10.24 [removed] vhost-address-1"),
        (
            "03:15:27.123 std::io::Error de::Error a::b",
            "03:15:27.123 std::io::Error de::Error host-address-5",
        ),
        ("link/ether 00:16:3e:aa:bb:cc 02:42:0a:20:00:01", "link/ether hardware-address-1 02:42:0a:20:00:01"),
        ("00:16:3e:00:00:01(node7) 02:00:00:00:00:07", "00:16:3e:00:00:01(node7) hardware-address-2"),
        ("80:00:02:08:fe:80:00:00:00:00:00:00:7c:fe:90", "[removed]"),
        (
            "db1:6783 DB1.Corp.Example. my-db1 web.weave.local",
            "host-name-1:6783 host-name-2. my-db1 web.weave.local",
        ),
        ("node7.corp.example node7", "host-name-3 node7"),
        ("the log has s3cr\"t$ in it", "the log has [removed] in it"),
        (r#"{"a":"s3cr\"t$"} Environment="x=s3cr\"t$$""#, r#"{"a":"[removed]"} Environment="x=[removed]""#),
        ("no password specificed, but peer", "no password specificed, but peer"),
        ("--password-file /root/pw --password=", "--password-file /root/pw --password="),
        ("WEAVE_PASSWORD=abc PEERS=h1", "WEAVE_PASSWORD=[removed] PEERS=h1"),
        ("-password 'a b' --port 7000", "-password '[removed]' --port 7000"),
        ("WEAVE_PASSWORD='a b'c d", "WEAVE_PASSWORD=[removed] d"),
        (r#"ExecStart=/w "--password=a \" b" x"#, r#"ExecStart=/w "--password=[removed]" x"#),
        (
            r#"["--password","a, b","x"] {"Password": "p q", "b": 1}"#,
            r#"["--password","[removed]","x"] {"Password": "[removed]", "b": 1}"#,
        ),
        ("http://me:pw@proxy.corp.example:8080/ a@b", "http://[removed]@host-name-4:8080/ a@b"),
    ] {
        assert_eq!(redactor.redact(text), expected, "{text}");
        assert_eq!(redactor.redact(expected), expected);
    }
    let Replaced { addresses, hardware, names, secrets } = redactor.replaced();
    assert_eq!((addresses, hardware, names), (5, 2, 4));
    assert!(secrets > 5);
}

#[test]
fn a_mark_in_what_looks_like_an_address_counts() {
    assert_eq!(Redactor::new(known()).redact("htt:://me:pw@h/"), "htt:://[removed]@h/");
}

#[test]
fn known_secrets_go_whole_beside_marks() {
    let secrets = ["token=ab cd", "two words", "x-secret=y"].map(str::to_owned).into();
    let mut redactor = Redactor::new(Known { secrets, ..Known::default() });
    for (text, expected) in [
        ("has token=ab cd in it, token=q", "has [removed] in it, token=[removed]"),
        ("password=two words token=q", "password=[removed] token=[removed]"),
        ("a x-secret=yes b", "a [removed][removed] b"),
        ("x-secret=y token=q", "[removed] token=[removed]"),
    ] {
        assert_eq!(redactor.redact(text), expected, "{text}");
        assert_eq!(redactor.redact(expected), expected);
    }
}

#[test]
fn secrets_are_found_where_they_are_marked() {
    let values = |text: &str| marked_values(text).collect::<BTreeSet<_>>();
    let expected = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(values("WEAVE_PASSWORD='a b'\nPEERS=x"), expected(&["'a b'", "a b", "'a"]));
    assert_eq!(values(r#"WEAVE_OPTIONS="--password a\b --port 1""#), expected(&[r"a\b", "ab"]));
    assert_eq!(values("weave\0daemon\0".replace('\0', " ").as_str()), expected(&[]));
}

/// Pieces of which logs consist, and some that resemble addresses.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<Ipv4Addr>().prop_map(|ip| ip.to_string()),
        any::<Ipv6Addr>().prop_map(|ip| ip.to_string()),
        any::<[u8; 6]>().prop_map(|mac| MacAddr(mac).to_string()),
        "[0-9a-f.:]{1,12}",
        "[ -~]{1,6}",
        "\\PC{1,3}",
        Just("10.32.0.7".to_owned()),
        Just(" corp.example ".to_owned()),
        Just("--password=".to_owned()),
        Just(" s3cr\"t$ ".to_owned()),
        prop_oneof![
            Just(" "),
            Just(":"),
            Just("."),
            Just("/24"),
            Just("["),
            Just("]"),
            Just("\n"),
            Just("=")
        ]
        .prop_map(str::to_owned),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(piece(), 0..12).prop_map(|pieces| pieces.concat())
}

/// Whether nothing in the text is an address of a host, or a secret.
fn is_clean(text: &str) -> bool {
    let own = &known().networks;
    let is_own = |ip: Ipv4Addr| {
        ip.is_loopback()
            || ip.is_unspecified()
            || ip.is_multicast()
            || ip.is_broadcast()
            || own.iter().any(|network| network.contains(ip.into()))
    };
    let runs = text.split(|c: char| !(c.is_ascii_digit() || c == '.'));
    let mut addresses = runs.filter_map(|run| run.trim_matches('.').parse::<Ipv4Addr>().ok());
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || ".:".contains(c)));
    let mut v6 = words.filter_map(|word| Some(word.parse::<Ipv6Addr>().ok()?.to_canonical()));
    let is_own_v6 = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => is_own(v4),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_multicast(),
    };
    addresses.all(is_own) && v6.all(is_own_v6) && !text.contains("s3cr\"t$")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_of_a_host_stays(text in text()) {
        let redacted = Redactor::new(known()).redact(&text);
        prop_assert!(is_clean(&redacted), "{text:?} became {redacted:?}");
    }

    #[test]
    fn redacted_text_stays_as_it_is(text in text()) {
        let mut redactor = Redactor::new(known());
        let once = redactor.redact(&text);
        let twice = redactor.redact(&once);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn the_same_address_has_the_same_name(ip: Ipv4Addr, between in "[a-z ]{1,9}") {
        let redacted = Redactor::new(known()).redact(&format!("{ip} {between} {ip}"));
        let (first, last) = (redacted.split(' ').next(), redacted.rsplit(' ').next());
        prop_assert_eq!(first, last);
    }
}
