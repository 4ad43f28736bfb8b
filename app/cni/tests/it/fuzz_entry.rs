//! Any configuration from a runtime, any request of netavark. The fuzz targets and the tests that replay their corpora share this module.

use serde_json::Value;
use weave_cni::netavark::{self, Action, Exec, Network};
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
                assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
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

/// The first line has the arguments, the rest is the input. Nothing panics, what is printed is JSON, and a network that has been completed
/// is accepted again.
pub(crate) fn netavark_request(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, input) = (String::from_utf8_lossy(&data[..end]), data.get(end + 1..).unwrap_or_default());
    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let default = "10.32.0.0/12".parse().ok();
    let refused = match Action::parse(&arguments) {
        Ok(Action::Create) => netavark::create(input, default).map(|text| {
            assert_eq!(netavark::create(text.as_bytes(), default).as_ref(), Ok(&text));
            let network: Network = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(matches!(network.subnet(), Ok(Some(_))), "{text}");
        }),
        Ok(Action::Setup(_) | Action::Teardown(_)) => Exec::read(input).and_then(|exec| {
            let _ = (exec.mac(), exec.publishes_ports(), exec.network.bridge(), exec.network.mtu());
            exec.network.check()?;
            for address in exec.addresses(default)? {
                let subnet = address.strip_prefix("net:").unwrap_or(&address);
                assert!(subnet == "default" || subnet.parse::<weave_types::Cidr>().is_ok(), "{address}");
            }
            let names = exec.names();
            assert!(names.iter().all(|name| !name.is_empty()), "{names:?}");
            let status = netavark::status(exec.interface(), "02:00:00:00:00:01", &[], None, None);
            let status: Value = serde_json::from_str(&status).unwrap_or_else(|e| panic!("{status}: {e}"));
            assert!(status["interfaces"].get(exec.interface()).is_some(), "{status}");
            Ok(())
        }),
        Ok(Action::Info) => Ok(()),
        Err(text) => Err(text),
    };
    if let Err(text) = refused {
        let printed = netavark::error(&text);
        let value: Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{printed}: {e}"));
        assert_eq!(value["error"], text);
    }
}
