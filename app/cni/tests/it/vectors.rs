//! Runs of the plugins of 2.8.1 (`tests/vectors/containers/cni.json`): what is answered without asking the daemon, and results with the
//! addresses that were allocated there.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weave_cni::{
    AddResult, Address, Call, Command, Error, Interface, Plugin, SUPPORTED, Version, code, version_text,
};

#[derive(Deserialize)]
struct Vectors {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    plugin: String,
    env: BTreeMap<String, String>,
    stdin: Value,
    stdout: String,
    stdout_json: Value,
    stderr: String,
    exit: i32,
    weave_api_calls: Vec<Value>,
}

/// Vectors that are answered differently, because more versions are spoken.
const MORE_VERSIONS: [&str; 4] = ["version_net", "version_ipam", "add_bad_version", "add_version_031"];
/// Vectors about the control API and the host, which a test in the lab repeats.
const ON_THE_HOST: [&str; 10] = [
    "add_host_namespace",
    "ipam_del",
    "del",
    "del_again_interface_missing",
    "del_no_netns",
    "del_with_ipam_section",
    "del_no_addresses_known",
    "ipam_del_no_addresses_known",
    "del_api_down",
    "add_api_down",
];

fn vectors() -> Vec<Vector> {
    let text = include_str!("../../../../tests/vectors/containers/cni.json");
    serde_json::from_str::<Vectors>(text).unwrap().vectors
}

fn plugin(vector: &Vector) -> Plugin {
    if vector.plugin == "weave-net" { Plugin::Net } else { Plugin::Ipam }
}

fn input(vector: &Vector) -> Vec<u8> {
    match &vector.stdin {
        Value::String(text) => text.clone().into_bytes(),
        json => json.to_string().into_bytes(),
    }
}

/// The result with the address and the gateway that the vector shows, in our words.
fn result(call: &Call, vector: &Vector) -> AddResult {
    let shown = AddResult::parse(&vector.stdout_json).unwrap();
    let [address] = shown.addresses.as_slice() else { panic!("{}: one address", vector.name) };
    let interface = |name: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        mtu: Some(1376),
        sandbox: sandbox.to_owned(),
    };
    let ipam = &call.config.ipam;
    let (interfaces, gateway) = match plugin(vector) {
        Plugin::Net => {
            (vec![interface("vethwepl1", ""), interface(&call.interface, &call.netns)], address.gateway)
        }
        Plugin::Ipam => (Vec::new(), ipam.gateway),
    };
    AddResult {
        addresses: vec![Address {
            cidr: address.cidr,
            gateway,
            interface: (!interfaces.is_empty()).then_some(1),
        }],
        interfaces,
        routes: ipam.routes.clone(),
        dns: call.config.dns.clone(),
    }
}

#[test]
fn answers_of_2_8_1() {
    let mut shown = 0;
    for vector in vectors() {
        let name = vector.name.as_str();
        let read = Call::read(plugin(&vector), |name| vector.env.get(name).cloned(), &input(&vector));
        if MORE_VERSIONS.contains(&name) || ON_THE_HOST.contains(&name) {
            assert!(read.is_ok(), "{name}: {read:?}");
            continue;
        }
        shown += 1;
        match read {
            Ok(call) => {
                assert_eq!(call.command, Command::Add, "{name}");
                let ids = call.allocation_id().and_then(|_| call.subnet());
                if let Err(error) = ids {
                    let prefix =
                        if vector.plugin == "weave-net" { "unable to allocate IP address: " } else { "" };
                    let error = Error { msg: format!("{prefix}{}", error.msg), ..error };
                    assert_eq!((error.to_json(call.version), 1), (vector.stdout, vector.exit), "{name}");
                    assert!(vector.weave_api_calls.is_empty(), "{name}");
                    continue;
                }
                let result = result(&call, &vector);
                assert_eq!((result.to_json(call.version), 0), (vector.stdout, vector.exit), "{name}");
            }
            Err(rejected) => {
                assert_eq!(
                    (rejected.error.to_json(rejected.version), 1),
                    (vector.stdout, vector.exit),
                    "{name}"
                );
                let remarks: String = rejected.remarks.iter().map(|line| format!("{line}\n")).collect();
                assert_eq!(remarks, vector.stderr, "{name}");
            }
        }
    }
    assert_eq!(shown, 29 - MORE_VERSIONS.len() - ON_THE_HOST.len());
}

#[test]
fn versions() {
    let json: Value = serde_json::from_str(&version_text()).unwrap();
    assert_eq!(json["cniVersion"], "1.1.0");
    assert_eq!(json["supportedVersions"].as_array().unwrap().len(), SUPPORTED.len());
    for version in SUPPORTED {
        assert_eq!(Version::parse(version.as_str()), Some(version));
    }
    let environment = |name: &str| Some(if name == "CNI_COMMAND" { "ADD" } else { "x" }.to_owned());
    let refused = Call::read(Plugin::Net, environment, br#"{"cniVersion":"1.2.0"}"#).unwrap_err();
    assert_eq!(refused.error.code, code::INCOMPATIBLE_VERSION);
    assert_eq!(
        refused.error.details,
        r#"config is "1.2.0", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#
    );
}

/// A result in the forms of all versions, which are read again.
#[test]
fn results_in_each_version() {
    let interfaces = vec![
        Interface {
            name: "vethweplc1".into(),
            mac: "02:00:00:00:00:09".into(),
            mtu: None,
            sandbox: String::new(),
        },
        Interface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: Some(1376),
            sandbox: "/run/netns/c1".into(),
        },
    ];
    let route = serde_json::json!({ "dst": "0.0.0.0/0", "gw": "10.32.0.2", "mtu": 1400 });
    let result = AddResult {
        interfaces,
        addresses: vec![Address {
            cidr: "10.32.0.1/12".parse().unwrap(),
            gateway: "10.32.0.2".parse().ok(),
            interface: Some(1),
        }],
        routes: Some(vec![serde_json::from_value(route).unwrap()]),
        dns: serde_json::Map::new(),
    };
    for version in SUPPORTED {
        let text = result.to_json(version);
        let json: Value = serde_json::from_str(&text).unwrap();
        let shows_interfaces = version > Version::V0_3_0;
        assert_eq!(json.get("cniVersion").is_some(), shows_interfaces, "{version:?}");
        assert_eq!(json.get("ip4").is_some(), version < Version::V0_3_0, "{version:?}");
        let ip_version = version >= Version::V0_3_0 && version < Version::V1_0_0;
        assert_eq!(json["ips"][0].get("version").is_some(), ip_version, "{version:?}");
        assert_eq!(json["interfaces"][1]["sandbox"] == "/run/netns/c1", shows_interfaces, "{version:?}");
        assert_eq!(json["interfaces"][1]["mac"] == "02:00:00:00:00:01", shows_interfaces, "{version:?}");
        assert_eq!(json["interfaces"][1].get("mtu").is_some(), version == Version::V1_1_0, "{version:?}");
        let again = AddResult::parse(&json).unwrap();
        assert_eq!((&again.addresses[0].cidr, &again.routes), (&result.addresses[0].cidr, &result.routes));
        assert_eq!(again.addresses[0].interface, shows_interfaces.then_some(1));
    }
}

#[test]
fn commands_of_later_versions() {
    let read = |command: &str, config: Value| {
        let variable = |name: &str| Some(if name == "CNI_COMMAND" { command } else { "x" }.to_owned());
        Call::read(Plugin::Net, variable, config.to_string().as_bytes())
    };
    for (command, first) in [("CHECK", Version::V0_4_0), ("GC", Version::V1_1_0), ("STATUS", Version::V1_1_0)]
    {
        for version in SUPPORTED {
            let call = read(command, serde_json::json!({ "cniVersion": version.as_str(), "name": "n" }));
            assert_eq!(call.is_ok(), version >= first, "{command} {version:?}");
        }
    }
    let attachments = serde_json::json!([{ "containerID": "c1", "ifname": "eth0" }]);
    let mut config = serde_json::json!({ "cniVersion": "1.1.0", "name": "n" });
    let without = read("GC", config.clone()).unwrap().config;
    assert_eq!(without.valid_attachments().unwrap_err().code, code::INVALID_CONFIG);
    // libcni sends both spellings.
    for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
        config[key] = attachments.clone();
        let call = read("GC", config.clone()).unwrap();
        assert_eq!(call.config.valid_attachments().unwrap()[0].container, "c1");
    }
}

#[test]
fn configurations_that_cannot_be_read() {
    let read = |command: &str, config: &str| {
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_ARGS" => Some("IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=".to_owned()),
            _ => Some("x".to_owned()),
        };
        Call::read(Plugin::Net, variable, config.as_bytes())
    };
    for config in [
        "[]",
        "7",
        "null",
        r#"{"cniVersion":1}"#,
        r#"{"mtu":-1}"#,
        r#"{"mtu":"x"}"#,
        r#"{"ipam":{"routes":[{}]}}"#,
        r#"{"ipam":{"gateway":"x"}}"#,
    ] {
        assert_eq!(read("ADD", config).unwrap_err().error.code, code::OTHER, "{config}");
    }
    let ignored = read("DEL", r#"{"mtu":"x"}"#).unwrap();
    assert_eq!(ignored.remarks.len(), 1, "{ignored:?}");
    let nulls = r#"{"cniVersion":null,"name":null,"mtu":null,"hairpinMode":null,"ipam":null,"dns":null}"#;
    let call = read("ADD", nulls).unwrap();
    assert_eq!((call.version, call.config.hairpin_mode), (Version::V0_1_0, None));
    assert_eq!(call.name.as_deref(), Some("web"));
    assert_eq!(call.previous().unwrap_err().code, code::INVALID_CONFIG);
}
