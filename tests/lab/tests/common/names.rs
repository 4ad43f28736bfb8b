//! Lookups of names from containers.

use serde_json::Value;
use weave_lab::{Container, Host, Lab};

use super::{LONG_TIMEOUT, SHORT_TIMEOUT, launch_mesh};

/// Launches the peers of a lab, each with the address 10.2.1.10N for its containers' questions.
pub fn launch_with_names(lab: &Lab, options: &[&str]) {
    launch_mesh(lab, options);
    for host in lab.hosts() {
        host.weave_ok(&["expose", &format!("{}/24", server_of(host))]);
    }
}

/// The address at which a host serves names.
pub fn server_of(host: &Host) -> String {
    format!("10.2.1.10{}", host.name().trim_start_matches('h'))
}

/// A container that is attached with a name.
#[track_caller]
pub fn named(host: &Host, container: &str, name: &str, ip: &str) -> Container {
    let c = host.container(container);
    let attached = host.weave_ok(&["attach", &format!("{ip}/24"), "--name", name, &c.netns()]);
    assert_eq!(attached, format!("{ip}\n"));
    c
}

/// Asks the server of the container's host.
pub fn ask(from: &Container, name: &str, more: &[&str]) -> Value {
    from.probe(&[&["dns-query", &server_of(from.host()), name], more].concat())
}

/// The records of one answer, sorted.
pub fn records(answer: &Value) -> Vec<String> {
    let list = answer["records"].as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|r| r.as_str().map(str::to_owned)).collect()
}

/// Waits until a name has exactly these addresses in a container's view.
#[track_caller]
pub fn resolves(from: &Container, name: &str, addresses: &[&str]) {
    from.host().wait(&format!("the addresses of {name}"), LONG_TIMEOUT, || {
        let answer = ask(from, name, &["--wait-ms", "2000"]);
        let found = answer["error"].is_null() && records(&answer) == addresses;
        if found { Ok(()) } else { Err(format!("{answer} instead of {addresses:?}")) }
    });
}

/// A name has no address in any peer's list.
#[track_caller]
pub fn vanishes(hosts: &[&Host], name: &str) {
    for host in hosts {
        host.wait(&format!("the end of {name}"), LONG_TIMEOUT, || {
            let list = host.weave_ok(&["status", "dns"]);
            if list.lines().any(|l| l.split(' ').next() == Some(name)) { Err(list) } else { Ok(()) }
        });
    }
}

/// `weave dns-lookup` on a host, which has to find exactly these addresses.
#[track_caller]
pub fn looked_up(host: &Host, name: &str, addresses: &[&str]) {
    host.wait(&format!("dns-lookup {name}"), SHORT_TIMEOUT, || {
        let outcome = host.weave(&["dns-lookup", name]);
        let mut found: Vec<&str> = outcome.stdout.lines().collect();
        found.sort_unstable();
        if outcome.success() && found == addresses { Ok(()) } else { Err(outcome.to_string()) }
    });
}
