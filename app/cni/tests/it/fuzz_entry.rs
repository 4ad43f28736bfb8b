//! Any configuration from a runtime. The fuzz target and the test that replays its corpus share this module.

use weave_cni::{AddResult, Call, Plugin, SUPPORTED};

/// The first line is the command, the rest the configuration. Nothing panics, and what is read can be written and read again.
pub(crate) fn request(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (command, config) = (String::from_utf8_lossy(&data[..end]), data.get(end + 1..).unwrap_or_default());
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(command.clone().into_owned()),
        "CNI_ARGS" => Some(String::from_utf8_lossy(config).into_owned()),
        _ => Some("x".to_owned()),
    };
    for plugin in [Plugin::Net, Plugin::Ipam] {
        match Call::read(plugin, variable, config) {
            Ok(call) => {
                let _ = (call.allocation_id(), call.subnet(), call.config.valid_attachments());
                if let Ok(result) = call.previous() {
                    let seen = weave_cni::Observed::default();
                    let _ = weave_cni::check(&result, &call.interface, "weave", &seen);
                    round_trip(&result);
                }
            }
            Err(rejected) => {
                let text = rejected.error.to_json(rejected.version);
                assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
            }
        }
    }
}

fn round_trip(result: &AddResult) {
    for version in SUPPORTED {
        let text = result.to_json(version);
        let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let again = AddResult::parse(&json).unwrap_or_else(|e| panic!("{text}: {e}"));
        // Both forms of a result in one have no common form.
        assert!(again.addresses.len() <= result.addresses.len(), "{text}");
    }
}
