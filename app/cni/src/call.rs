use std::path::PathBuf;

use serde_json::Value;
use weave_types::Cidr;

use crate::{AddResult, Error, NetConf, SUPPORTED, Version, code};

/// Which of the two plugins is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// `weave-net` attaches containers.
    Net,
    /// `weave-ipam` only allocates addresses, for other plugins.
    Ipam,
}

/// What the runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the CNI specification")]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    fn parse(text: &str) -> Option<Command> {
        Some(match text {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            _ => return None,
        })
    }

    /// The first version that has the command.
    fn since(self) -> Version {
        match self {
            Command::Check => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
            Command::Add | Command::Del | Command::Version => Version::V0_1_0,
        }
    }

    /// Variables that must be set, in the order of complaints.
    fn required(self) -> &'static [&'static str] {
        match self {
            Command::Add => &["CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Command::Del => &["CNI_IFNAME", "CNI_PATH"],
            Command::Gc | Command::Status => &["CNI_PATH"],
            Command::Version => &[],
        }
    }
}

/// A request that cannot be carried out, and lines that standard error gets about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// What the runtime reads.
    pub error: Error,
    /// The version in whose form it reads it.
    pub version: Version,
    /// Lines for standard error.
    pub remarks: Vec<String>,
}

/// A request of a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What is asked for.
    pub command: Command,
    /// The version of the configuration.
    pub version: Version,
    /// The container; empty if it is not named.
    pub container: String,
    /// The file of the container's network namespace; empty if there is none any more.
    pub netns: String,
    /// The name of the interface in the container.
    pub interface: String,
    /// Directories of plugins.
    pub path: Vec<PathBuf>,
    /// The name that the runtime gives the container, if it says it.
    pub name: Option<String>,
    /// The configuration.
    pub config: NetConf,
    /// Lines for standard error.
    pub remarks: Vec<String>,
}

impl Call {
    /// Reads a request from the environment and the configuration.
    ///
    /// # Errors
    /// It cannot be understood, or asks for something that is not offered.
    pub fn read(
        plugin: Plugin,
        variable: impl Fn(&str) -> Option<String>,
        input: &[u8],
    ) -> Result<Call, Rejected> {
        let get = |name: &str| variable(name).unwrap_or_default();
        let rejected = |error, version| Rejected { error, version, remarks: Vec::new() };
        let word = get("CNI_COMMAND");
        if word.is_empty() {
            return Err(missing(&["CNI_COMMAND"]));
        }
        let unknown = || Error::other(format!("unknown CNI_COMMAND: {word}"));
        let Some(command) = Command::parse(&word) else { return Err(rejected(unknown(), Version::V0_1_0)) };
        let unset: Vec<&str> =
            command.required().iter().copied().filter(|name| get(name).is_empty()).collect();
        if !unset.is_empty() {
            return Err(missing(&unset));
        }
        let (version, config) = if command == Command::Version {
            (Version::V1_1_0, Value::Null)
        } else {
            parse_version(input).map_err(|error| rejected(error, Version::V0_1_0))?
        };
        if version < command.since() {
            return Err(rejected(unknown(), version));
        }
        let mut remarks = Vec::new();
        let config = match serde_json::from_value::<Option<NetConf>>(config) {
            Ok(config) => config.unwrap_or_default(),
            // So that the runtime can forget the container, as with 2.8.1.
            Err(e) if command == Command::Del => {
                remarks.push(format!("error loading network configuration: {e}"));
                NetConf::default()
            }
            Err(e) => {
                let error = Error::other(format!("failed to load network configuration: {e}"));
                return Err(rejected(error, version));
            }
        };
        let call = Call {
            command,
            version,
            container: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            interface: get("CNI_IFNAME"),
            path: get("CNI_PATH").split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect(),
            name: argument(&get("CNI_ARGS"), "K8S_POD_NAME"),
            config,
            remarks,
        };
        if command == Command::Add && plugin == Plugin::Net {
            call.refuse_unsupported().map_err(|error| rejected(error, version))?;
        }
        Ok(call)
    }

    fn refuse_unsupported(&self) -> Result<(), Error> {
        if self.config.is_gateway {
            return Err(Error::other("Gateway functionality not supported"));
        }
        if self.config.ip_masq {
            return Err(Error::other("IP Masquerading functionality not supported"));
        }
        Ok(())
    }

    /// The container, which weave's own allocation needs.
    ///
    /// # Errors
    /// The runtime has not named it.
    pub fn allocation_id(&self) -> Result<&str, Error> {
        if self.container.is_empty() {
            return Err(Error::other("Weave CNI Allocate: blank container name"));
        }
        // Owners of addresses that are no containers of runtimes are named with these.
        if self.container.contains([':', '/']) {
            return Err(Error::other(format!("{:?} is not the id of a container", self.container)));
        }
        Ok(&self.container)
    }

    /// The subnet to allocate in; `None` for the default subnet.
    ///
    /// # Errors
    /// The text in the configuration is not a subnet.
    pub fn subnet(&self) -> Result<Option<Cidr>, Error> {
        let text = &self.config.ipam.subnet;
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = text.parse().map(Some);
        parsed.map_err(|e| Error::other(format!("subnet given in config, but not parseable: {e}")))
    }

    /// The result of `ADD`, which the runtime gives back.
    ///
    /// # Errors
    /// The runtime has not given it, or it cannot be read.
    pub fn previous(&self) -> Result<AddResult, Error> {
        let previous = self.config.prev_result.as_ref();
        let previous =
            previous.ok_or_else(|| Error::new(code::INVALID_CONFIG, "required prevResult is missing"))?;
        AddResult::parse(previous).map_err(|e| Error::new(code::INVALID_CONFIG, format!("prevResult: {e}")))
    }
}

fn missing(names: &[&str]) -> Rejected {
    Rejected {
        error: Error::other("required env variables missing"),
        version: Version::V0_1_0,
        remarks: names.iter().map(|name| format!("{name} env variable missing")).collect(),
    }
}

fn parse_version(input: &[u8]) -> Result<(Version, Value), Error> {
    let failed = |e: String| Error::other(format!("decoding version from network config: {e}"));
    let config: Value = serde_json::from_slice(input).map_err(|e| {
        failed(if e.is_eof() { "unexpected end of JSON input".to_owned() } else { e.to_string() })
    })?;
    if !config.is_object() {
        return Err(failed("not a JSON object".to_owned()));
    }
    let text = match config.get("cniVersion") {
        None | Some(Value::Null) => "",
        Some(Value::String(text)) => text,
        Some(_) => return Err(failed("cniVersion is not a text".to_owned())),
    };
    match Version::parse(text) {
        Some(version) => Ok((version, config)),
        None => {
            let all = SUPPORTED.map(|version| format!("{:?}", version.as_str())).join(" ");
            Err(Error {
                code: code::INCOMPATIBLE_VERSION,
                msg: "incompatible CNI versions".to_owned(),
                details: format!("config is {text:?}, plugin supports [{all}]"),
            })
        }
    }
}

/// The value of `key` in `CNI_ARGS`, which is a list such as `IgnoreUnknown=1;K8S_POD_NAME=web`.
fn argument(args: &str, key: &str) -> Option<String> {
    let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
    pairs.find(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value.to_owned())
}
