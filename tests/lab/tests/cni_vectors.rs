//! Runs of the plugins of 2.8.1 that are about the control API and the host (`tests/vectors/containers/cni.json`), repeated.

use serde_json::{Value, json};
use weave_lab::{Lab, Topology};

use crate::common::cni::{Attachment, config, json_of, recorded, with};
use crate::common::*;

/// Vectors, and code and message of the error where ours is another (`docs/guide/cni.md`, differences).
const VECTORS: [(&str, Option<(u64, &str)>); 10] = [
    ("add_host_namespace", None),
    ("ipam_del", None),
    ("del", None),
    ("del_again_interface_missing", None),
    ("del_no_netns", None),
    ("del_with_ipam_section", None),
    ("del_no_addresses_known", None),
    ("ipam_del_no_addresses_known", Some((0, ""))),
    ("del_api_down", Some((11, "weave is not running"))),
    ("add_api_down", Some((11, "weave is not running"))),
];

#[test]
fn vectors_about_the_host() {
    let Some(lab) = Lab::start("cniv", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch_mesh(&lab, &[]);
    h1.sh("ip netns add one; ip netns add three");
    let text = include_str!("../../vectors/containers/cni.json");
    let file: Value = json_of(text);
    let vectors = file["vectors"].as_array().unwrap();
    let named = |name: &str| vectors.iter().find(|vector| vector["name"] == name).unwrap();
    // The containers of the vectors.
    let add = |netns: &str, container: &str, conf: Value| {
        Attachment { container, ..Attachment::new(h1, netns) }.add(&conf)
    };
    add("one", "1111111111aaaaaaaaaa", config("0.3.0"));
    let subnet = json!({ "ipam": { "type": "weave-ipam", "subnet": "10.40.0.0/16" } });
    add("three", "3333333333aaaaaaaaaa", with(config("0.3.0"), subnet));
    for (name, other) in VECTORS {
        let vector = named(name);
        let env = |key: &str| vector["env"][key].as_str().unwrap_or_default();
        if name == "del_api_down" {
            h1.weave_ok(&["stop"]);
        }
        let container = env("CNI_CONTAINERID");
        let netns = match (env("CNI_NETNS"), container) {
            ("", _) => String::new(),
            (_, _) if name == "add_host_namespace" => "/proc/1/ns/net".to_owned(),
            (_, id) => format!("/run/netns/{}", if id.starts_with('3') { "three" } else { "one" }),
        };
        let of = Attachment { container, interface: env("CNI_IFNAME"), ..Attachment::new(h1, "") };
        let plugin = vector["plugin"].as_str().unwrap();
        let outcome = of.plugin_with(
            plugin,
            &[("CNI_COMMAND", env("CNI_COMMAND")), ("CNI_NETNS", &netns)],
            &vector["stdin"].to_string(),
        );
        match other {
            None => {
                let (stdout, exit) = (vector["stdout"].as_str().unwrap(), vector["exit"].as_i64());
                assert_eq!((outcome.stdout.as_str(), outcome.code.map(i64::from)), (stdout, exit), "{name}");
            }
            Some((0, _)) => assert!(outcome.success() && outcome.stdout.is_empty(), "{name}: {outcome}"),
            Some((code, text)) => {
                let error = json_of(&outcome.stdout);
                let said = error["msg"].as_str().is_some_and(|msg| msg.contains(text));
                assert!(!outcome.success() && error["code"] == code && said, "{name}: {outcome}");
            }
        }
        if name.starts_with("del") {
            let at = if container.starts_with('3') { "three" } else { "one" };
            assert!(!h1.command(&["ip", "-n", at, "link", "show", "eth0"]).success(), "{name}");
        }
        if name == "del_no_addresses_known" {
            let owners: Vec<_> = recorded(h1).into_iter().map(|(owner, _)| owner).collect();
            assert_eq!(owners, ["weave:expose"], "{name}");
        }
    }
}
