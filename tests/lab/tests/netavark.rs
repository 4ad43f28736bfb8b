//! The plugin of netavark, called as netavark calls it.

use serde_json::{Value, json};
use weave_lab::{Host, Lab, Outcome, Topology};

use crate::common::cni::{json_of, recorded, with};
use crate::common::engines::{address, own_usr};
use crate::common::names::looked_up;
use crate::common::*;

const PLUGIN: &str = "/usr/local/lib/netavark/weave";

fn call(host: &Host, args: &str, input: &Value) -> Outcome {
    let text = input.to_string();
    host.command_with(
        &[("INPUT", &text)],
        &["sh", "-c", &format!("printf %s \"$INPUT\" | {PLUGIN} {args}")],
        LONG_TIMEOUT,
    )
}

/// What netavark says about a container with interface `eth0`.
fn exec(network: &Value, container: &str, options: Value) -> Value {
    json!({
        "container_id": container, "container_name": container, "port_mappings": null, "network": network,
        "network_options": with(json!({ "interface_name": "eth0" }), options),
    })
}

#[track_caller]
fn error(outcome: &Outcome) -> String {
    assert_eq!(outcome.code, Some(1), "{outcome}");
    json_of(&outcome.stdout)["error"].as_str().expect("an error").to_owned()
}

#[test]
fn networks_of_podman() {
    let Some(lab) = Lab::start("netavark", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch_mesh(&lab, &[]);
    for host in [h1, h2] {
        own_usr(host);
        host.weave_ok(&["setup-podman"]);
    }
    let info = call(h1, "info", &json!({})).expect_ok();
    assert_eq!(json_of(&info)["api_version"], "1.0.0");
    assert_eq!(h1.weave_ok(&["netavark", "info"]), info);
    let new = json!({ "name": "web", "id": "2f25", "driver": "weave", "dns_enabled": true, "internal": false, "ipv6_enabled": false });
    let network = json_of(&call(h1, "create", &new).expect_ok());
    assert_eq!(network["subnets"], json!([{ "subnet": "10.32.0.0/12" }]));
    assert!(error(&call(h1, "create", &with(new.clone(), json!({ "ipv6_enabled": true })))).contains("IPv6"));

    let (one, two) = (h1.container("one"), h2.container("two"));
    let near = exec(&network, "one", json!({ "aliases": ["www"] }));
    let far =
        exec(&network, "two", json!({ "static_ips": ["10.32.7.7"], "static_mac": "02:11:22:33:44:55" }));
    let near_status = json_of(&call(h1, "setup /run/netns/one", &near).expect_ok());
    let far_status = json_of(&call(h2, "setup /run/netns/two", &far).expect_ok());
    let subnet = &near_status["interfaces"]["eth0"]["subnets"][0];
    let ip = subnet["ipnet"].as_str().unwrap().split('/').next().unwrap().to_owned();
    let server = near_status["dns_server_ips"][0].as_str().expect("a name server");
    assert_eq!(
        (server, &near_status["dns_search_domains"]),
        (subnet["gateway"].as_str().unwrap(), &json!(["weave.local"]))
    );
    assert_eq!(far_status["interfaces"]["eth0"]["mac_address"], "02:11:22:33:44:55");
    one.reaches("10.32.7.7", LONG_TIMEOUT);
    two.reaches(&ip, SHORT_TIMEOUT);
    looked_up(h2, "www", &[&ip]);
    looked_up(h1, "two", &["10.32.7.7"]);
    assert!(two.command_ok(&["ip", "link", "show", "eth0"]).contains("02:11:22:33:44:55"));

    step("errors leave nothing");
    let before = recorded(h1);
    let taken = exec(&network, "three", json!({ "static_ips": ["10.32.7.7"] }));
    h1.sh("ip netns add three");
    let text = error(&call(h1, "setup /run/netns/three", &taken));
    assert!(text.contains("10.32.7.7"), "{text}");
    let outside = exec(&network, "three", json!({ "static_ips": ["10.99.7.7"] }));
    assert!(error(&call(h1, "setup /run/netns/three", &outside)).contains("10.99.7.7"));
    error(&call(h1, "setup /run/netns/none", &exec(&network, "none", json!({}))));
    error(&call(h1, "setup", &near));
    error(&call(h1, "setup /run/netns/three", &json!({ "container_id": 7 })));
    assert_eq!(recorded(h1), before);
    assert!(!h1.command(&["ip", "-n", "three", "link", "show", "eth0"]).success());

    step("a container is removed while no daemon runs");
    let lost = exec(&network, "three", json!({}));
    call(h1, "setup /run/netns/three", &lost).expect_ok();
    looked_up(h2, "three", &[&address(h1, "three").expect("an address")]);
    h1.weave_ok(&["stop"]);
    assert!(error(&call(h1, "teardown /run/netns/three", &lost)).contains("weave is not running"));
    h1.sh("ip netns del three");
    launch(h1, &[], &["h2"]);
    assert_eq!(recorded(h1), before);
    looked_up(h1, "three", &[]);
    looked_up(h1, "one", &[&ip]);
    one.reaches("10.32.7.7", LONG_TIMEOUT);

    step("teardown");
    for _ in 0..2 {
        assert_eq!(call(h1, "teardown /run/netns/one", &near).expect_ok(), "");
    }
    assert!(!one.command(&["ip", "link", "show", "eth0"]).success());
    looked_up(h2, "www", &[]);
    let internal = exec(&with(network, json!({ "internal": true, "dns_enabled": false })), "one", json!({}));
    let status = json_of(&call(h1, "setup /run/netns/one", &internal).expect_ok());
    assert_eq!(status["dns_server_ips"], json!([]));
    assert!(!one.command_ok(&["ip", "route"]).contains("default"));
    call(h1, "teardown /run/netns/gone", &internal).expect_ok();
    h1.weave_ok(&["stop"]);
    assert!(error(&call(h1, "setup /run/netns/one", &near)).contains("weave is not running"));
    h1.weave_ok(&["setup-podman", "--undo"]);
    assert!(!h1.command(&["test", "-e", PLUGIN]).success());
}
