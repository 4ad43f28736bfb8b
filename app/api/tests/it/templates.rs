//! `report -f`: the templates of the recorded transcript and of 2.8.1's documents and tests.

use std::fs;

use weave_api::Report;
use weave_api::template::Template;

fn report(case: &str) -> Report {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli");
    Report::from_json(&fs::read_to_string(format!("{root}/{case}/report.json")).unwrap()).unwrap()
}

/// Output, or the status that `GET /report` answers with.
fn render(case: &str, template: &str) -> Result<String, u16> {
    Template::parse(template).map_err(|_| 400u16)?.render(&report(case)).map_err(|_| 500)
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).unwrap()
}

/// Every `GET /report?format=` of the transcript, which began on a fresh peer: `one-peer-idle`.
#[test]
fn recorded_reports_are_rendered_equally() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli/http-transcript.txt");
    let text = fs::read_to_string(file).unwrap().replace("\r\n", "\n");
    let mut seen = 0;
    for exchange in text.split("### GET /report?format=").skip(1) {
        let (format, answer) = exchange.split_once(" \n").unwrap();
        let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let length = answer.split("Content-Length: ").nth(1).unwrap();
        let length: usize = length.split_whitespace().next().unwrap().parse().unwrap();
        let body = &answer.split_once("\n\n").unwrap().1[..length];
        let ours = render("one-peer-idle", &decode(format));
        seen += 1;
        match status {
            // Seen from a capture that also had a second address of ours.
            200 if format.contains("MACs") => assert!(body.starts_with(&ours.unwrap())),
            200 => assert_eq!(ours.as_deref(), Ok(body), "{format}"),
            400 => {
                let error = Template::parse(&decode(format)).unwrap_err().to_string();
                assert_eq!(error + "\n", body);
            }
            _ => assert_eq!(ours, Err(status), "{format}"),
        }
    }
    assert_eq!(seen, 10);
}

#[test]
fn templates_of_documents_and_tests() {
    let three = |t: &str| render("three-peers-host3", t);
    for (template, output) in [
        ("{{.Router.NickName}}", "host3"),
        ("{{len .Router.Peers}}", "3"),
        (
            "{{range .Router.Targets}}{{.}}{{\"\\n\"}}{{end}}",
            "192.168.48.99\n192.168.48.11:7777\n192.168.48.12\n",
        ),
        (
            "{{range $i, $t := .Router.Targets}}{{if $i}},{{end}}{{$t}}{{end}}",
            "192.168.48.99,192.168.48.11:7777,192.168.48.12",
        ),
        ("{{(index .Router.Connections 0).Attrs.mtu}}", "1438"),
        ("{{(index .Router.Connections 2).Attrs.mtu}}", "<no value>"),
        ("{{(index .Router.Connections 0).Attrs}}", "map[mtu:1438 name:sleeve]"),
        ("{{with index .Router.Connections 0}}{{.State}} {{.Outbound}}{{end}}", "established true"),
        ("{{json .Router.TrustedSubnets}}", "[\"192.168.48.0/24\",\"10.0.0.0/8\"]"),
        ("{{.Router.TrustedSubnets | json}}", "[\"192.168.48.0/24\",\"10.0.0.0/8\"]"),
        ("{{.Router.TrustedSubnets}}", "[192.168.48.0/24 10.0.0.0/8]"),
        (
            "{{json (index .Router.Connections 2).Info}}",
            "\"dial tcp :0-\\u003e192.168.48.99:6783: connect: no route to host\"",
        ),
        ("{{.DNS.Domain}}", "weave.local."),
        ("{{.IPAM.DefaultSubnet}}", "10.32.0.0/12"),
        ("{{if .Proxy}}yes{{else if .Plugin}}maybe{{else}}no{{end}}", "no"),
        (
            "{{$name := .Router.Name}}{{range .Router.Peers}}{{if eq .Name $name}}{{.UID}}{{end}}{{end}}",
            "9972721143687362816",
        ),
        ("{{range .Router.UnicastRoutes}}{{$.Router.NickName}} {{end}}", "host3 host3 host3 "),
        ("{{/* nothing */ -}}  x  {{- /* here */}}", "x"),
        ("a {{- \" b \" -}} c", "a b c"),
        ("{{printf \"%-6s|%4d|%04x|%q|%t\" \"ab\" 7 255 \"x\" true}}", "ab    |   7|00ff|\"x\"|true"),
        (
            "{{printf \"%v %s\" .Router.TrustedSubnets .Router.Name}}",
            "[192.168.48.0/24 10.0.0.0/8] 8a:3e:3e:3e:3e:03",
        ),
        ("{{printf \"%d\" \"x\"}} {{printf \"%s\"}}", "%!d(string=x) %!s(MISSING)"),
        ("{{print 1 2 \"a\" 3}}{{println \"x\" 1}}", "1 2a3x 1\n"),
        ("{{and true 0}} {{or 0 \"x\"}} {{not nil}}", "0 x true"),
        ("{{lt 1 2}} {{ge 2 2}} {{ne \"a\" \"b\"}} {{eq 3 1 2 3}}", "true true true true"),
        ("{{len (index .Router.Peers 0).Connections}}", "2"),
        ("{{.Router.OverlayDiagnostics.sleeve}} {{.Router.OverlayDiagnostics.nope}}", "<nil> <no value>"),
        ("{{.VersionCheck.NextCheckAt}}", "0001-01-01 00:00:00 +0000 UTC"),
        ("{{range .IPAM.PendingAllocates}}x{{else}}none{{end}}", "none"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"),
        ("{{with $x := .Router}}{{$x.Port}}{{end}}", "6783"),
        ("{{index .Router.CaptureStats \"PacketsReceived\"}}", "8"),
    ] {
        assert_eq!(three(template).as_deref(), Ok(output), "{template}");
    }
    let plugin = |t: &str| render("version-check-failed-plugin-v2", t);
    assert_eq!(plugin("{{.Plugin.DriverName}}").as_deref(), Ok("weave"));
    let sentence = "failed to check latest version - see logs; next check at 2026/11/20 15:13:57";
    assert_eq!(plugin("{{.VersionCheck}}").as_deref(), Ok(sentence));
    assert_eq!(render("no-ipam-no-dns", "{{.DNS}}").as_deref(), Ok("<nil>"));
    assert_eq!(render("no-ipam-no-dns", "{{.DNS.Domain}}"), Err(500));
}

#[test]
fn invalid_templates_have_the_errors_of_2_8_1() {
    for (template, what) in [
        ("{{", "1: unclosed action"),
        ("\n\n{{if}}", "3: missing value for if"),
        ("{{if true}}", "1: unexpected EOF"),
        ("{{end}}", "1: unexpected {{end}}"),
        ("{{else}}", "1: unexpected {{else}}"),
        ("{{nosuch 1}}", "1: function \"nosuch\" not defined"),
        ("{{$x}}", "1: undefined variable \"$x\""),
        ("{{\"x}}", "1: unterminated quoted string"),
        ("{{.A | }}", "1: missing value for command"),
        ("{{(.A}}", "1: unclosed left paren"),
        ("{{.A)}}", "1: unexpected right paren"),
        ("{{/* x}}", "1: unclosed comment"),
    ] {
        let error = Template::parse(template).expect_err(template).to_string();
        assert_eq!(error, format!("template: format:{what}"), "{template}");
    }
    for template in [
        "{{.Nope}}",
        "{{len 3}}",
        "{{index .Router.Peers 99}}",
        "{{.Ready.X}}",
        "{{lt 1 \"x\"}}",
        "{{range 3}}{{end}}",
    ] {
        assert_eq!(render("one-peer-idle", template), Err(500), "{template}");
    }
    let deep = "{{(".to_owned() + &"(".repeat(5000) + "1" + &")".repeat(5000) + ")}}";
    assert!(Template::parse(&deep).is_err());
}

/// The cost of a template is limited even if it prints nothing: otherwise any client that can read the status could exhaust the daemon.
#[test]
fn expensive_templates_are_refused() {
    let nested = "{{range $.Router.Peers}}".repeat(40) + &"{{end}}".repeat(40);
    assert_eq!(render("three-peers-host3", &nested), Err(500));
    let doubled = "{{$x := `0123456789`}}".to_owned() + &"{{$x := printf `%s%s` $x $x}}".repeat(45);
    assert_eq!(render("one-peer-idle", &doubled), Err(500));
    let copied = "{{$x := json .}}".to_owned()
        + &"{{$x := (printf `%s%s` $x $x)}}".repeat(12)
        + &"{{$y := $x}}".repeat(900);
    assert_eq!(render("one-peer-idle", &copied), Err(500));
}

/// No template causes a panic: all prefixes of a long one, and the long one without any single character.
#[test]
fn truncated_templates_do_not_panic() {
    let rich = "{{- range $i, $p := .Router.Peers -}}{{if eq $p.Name \"x\\u00e4\" `raw`}}{{printf \"%5.2f|%*d\" 1.5e3 3 'c' | len}}\
                {{else if not (and .UID 0x1f)}}é{{/* c */}}{{end}}{{with $x := index .Connections 0}}{{json $x}}{{end}}{{end -}}";
    assert!(render("three-peers-host3", rich).is_ok());
    for (at, c) in rich.char_indices() {
        let _ = render("three-peers-host3", &rich[..at]);
        let _ = render("three-peers-host3", &(rich[..at].to_owned() + &rich[at + c.len_utf8()..]));
    }
}
