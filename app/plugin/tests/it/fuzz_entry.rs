//! Entry for the fuzz target, and for the test that replays its corpus.

use std::collections::BTreeMap;

use serde_json::Value;
use weave_plugin::{Action, Answer, Driver, Mode, Plugin};
use weave_types::MacAddr;

/// The bytes are requests, one a line: a path, a blank and the body. Asserts that answers are JSON or say what is wrong, that names of devices
/// fit, and that addresses are in their subnet.
pub(crate) fn plugin_request(data: &[u8]) {
    let mut plugin = Plugin::new(Mode::Legacy, BTreeMap::from([("n1".to_owned(), true)]));
    for line in data.split(|b| *b == b'\n') {
        let at = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
        let path = String::from_utf8_lossy(&line[..at]).into_owned();
        let body = line.get(at + 1..).unwrap_or_default();
        for driver in [Driver::Global, Driver::Local] {
            let answer = match plugin.handle(driver, &path, body) {
                Ok(action) => answer(&mut plugin, action),
                Err(error) => Answer::from(error),
            };
            match answer.status {
                400 | 404 => {}
                _ => drop(serde_json::from_str::<Value>(&answer.body).expect("JSON")),
            }
        }
    }
}

fn answer(plugin: &mut Plugin, action: Action) -> Answer {
    match action {
        Action::Answer(answer) => answer,
        Action::NetworksChanged { .. } | Action::ReleaseAddress(_) => Answer::done(),
        Action::CreateEndpoint(endpoint) => {
            for name in [&endpoint.pair.outside, &endpoint.pair.inside, &endpoint.pair.old_outside] {
                assert!(name.len() <= 15 && name.bytes().all(|b| b.is_ascii_alphanumeric()), "{name}");
            }
            Plugin::created(&endpoint, MacAddr([2, 0, 0, 0, 0, 1]))
        }
        Action::DeleteEndpoint(_) => Answer::done(),
        Action::Join(join) => {
            let known = plugin.join(&join, false).or_else(|_| {
                plugin.learn(&join.network, false);
                plugin.join(&join, false)
            });
            known.expect("a network that is known")
        }
        Action::DefaultPool { range } => {
            let subnet = "10.32.0.0/12".parse().expect("a subnet");
            plugin.pool(subnet, range).unwrap_or_else(Answer::from)
        }
        Action::RequestAddress(request) => {
            let subnet = request.pool.map_or("10.32.0.0/12".parse().expect("a subnet"), |pool| pool.subnet());
            if let (Some(pool), Some(address)) = (request.pool, request.address) {
                assert!(pool.subnet().contains(address.into()), "{request:?}");
            }
            if let Some(pool) = request.pool {
                assert!(pool.subnet().contains(pool.range().addr()), "{request:?}");
            }
            request.answer(subnet)
        }
    }
}
