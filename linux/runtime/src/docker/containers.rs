//! Containers of an engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use weave_http::encode;

use super::{Docker, null_is_default};
use crate::Error;

/// A container, running or not, as the engine describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerInfo {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash of the API.
    pub name: String,
    /// Its first process; `None` if it is not running.
    pub pid: Option<u32>,
    /// Its host name, without domain.
    pub hostname: String,
    /// Its domain; often empty.
    pub domainname: String,
    /// `host`, `bridge`, `none`, `container:<id>`, the name of a network, ...
    pub network_mode: String,
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub state: String,
    /// Exit code of its last run.
    pub exit_code: i64,
    /// Start of its last run, in the API's format; different for each run.
    pub started_at: String,
    /// The image by the name that was used to create the container.
    pub image: String,
    /// Path of its program, inside.
    pub program: String,
    /// `Config.Entrypoint`: the program that was to be run in front of the command.
    pub entrypoint: Vec<String>,
    /// Its environment, as `NAME=value`.
    pub env: Vec<String>,
    /// `no`, `always`, `unless-stopped` or `on-failure`.
    pub restart_policy: String,
    /// Its `/etc/hosts`, as a file of the engine's host.
    pub hosts_path: Option<PathBuf>,
    /// Names and addresses of `--add-host`, as `name:address`.
    pub extra_hosts: Vec<String>,
    /// Its connections to networks.
    pub endpoints: Vec<EndpointInfo>,
    /// Directories of the engine's host, and the paths at which the container sees them.
    pub mounts: Vec<(PathBuf, PathBuf)>,
}

/// A container's connection to a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EndpointInfo {
    /// Id of the network.
    #[serde(rename = "NetworkID")]
    pub network: String,
    /// Its IPv4 address there, without prefix length; empty while it does not run.
    #[serde(rename = "IPAddress")]
    pub address: String,
    /// Further names in this network.
    #[serde(rename = "Aliases", deserialize_with = "null_is_default")]
    pub aliases: Vec<String>,
}

impl ContainerInfo {
    /// Reads the JSON of a container's description.
    ///
    /// # Errors
    /// The text is not such JSON.
    pub fn from_json(json: &[u8]) -> Result<ContainerInfo, serde_json::Error> {
        serde_json::from_slice::<Inspect>(json).map(ContainerInfo::from)
    }

    /// `hostname.domainname`; `None` without a domain.
    pub fn fqdn(&self) -> Option<String> {
        (!self.domainname.is_empty()).then(|| format!("{}.{}", self.hostname, self.domainname))
    }

    /// The name under which it is registered: its host name in its domain, or a host name that has a domain itself.
    pub fn dns_name(&self) -> Option<String> {
        self.fqdn().or_else(|| Some(self.hostname.clone()).filter(|name| name.contains('.')))
    }

    /// Whether it is running.
    pub fn is_running(&self) -> bool {
        self.pid.is_some()
    }

    /// Whether the engine is about to start it again.
    pub fn is_restarting(&self) -> bool {
        self.state == "restarting"
    }

    /// Whether it runs the daemon of 2.8.1.
    pub fn is_legacy_daemon(&self) -> bool {
        self.program == "/home/weave/weaver" || self.image.starts_with("weaveworks/weave:")
    }

    /// The directory of the host that the container sees as `destination`.
    pub fn volume(&self, destination: &Path) -> Option<&Path> {
        let (source, _) = self.mounts.iter().find(|(_, inside)| inside == destination)?;
        source.is_absolute().then_some(source)
    }
}

impl Docker {
    /// Describes the container with a name or the beginning of an id; `None` if there is none.
    ///
    /// # Errors
    /// The engine does not answer, or cannot describe it.
    pub fn inspect(&self, name: &str) -> Result<Option<ContainerInfo>, Error> {
        // "." and ".." are no names, but would change the path.
        if name.is_empty() || name == "." || name == ".." {
            return Ok(None);
        }
        let found: Option<Inspect> = self.find(&path(name, "json"), &format!("describe {name}"))?;
        Ok(found.map(ContainerInfo::from))
    }

    /// Full ids of all running containers.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn running(&self) -> Result<Vec<String>, Error> {
        let rows: Vec<Row> = self.request("GET", "/containers/json", None, "list containers")?.read()?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    }

    /// Names of all containers with a label, running or not.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn containers_labelled(&self, label: &str) -> Result<Vec<String>, Error> {
        let path = format!("/containers/json?all=true&filters={}", super::images::label_filter(label));
        let rows: Vec<Row> = self.request("GET", &path, None, "list containers")?.read()?;
        let name = |row: Row| row.names.first().map_or(row.id, |n| n.trim_start_matches('/').to_owned());
        Ok(rows.into_iter().map(name).collect())
    }

    /// Creates a container from the API's JSON and returns its id.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn create(&self, name: &str, settings: &Value) -> Result<String, Error> {
        let body = settings.to_string();
        let body = Some(("application/json", body.as_bytes()));
        let path = format!("/containers/create?name={}", encode(name));
        let row: Row = self.request("POST", &path, body, &format!("create container {name}"))?.read()?;
        Ok(row.id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn start(&self, id: &str) -> Result<(), Error> {
        self.change("POST", &path(id, "start"), None, &format!("start {id}"))
    }

    /// Stops a container if it runs, and starts it.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn restart(&self, id: &str) -> Result<(), Error> {
        self.change("POST", &path(id, "restart"), None, &format!("restart {id}"))
    }

    /// Kills a container. It is no error if it does not run.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn kill(&self, id: &str) -> Result<(), Error> {
        let reply = self.request("POST", &path(id, "kill"), None, &format!("kill {id}"))?;
        match reply.response.status {
            404 | 409 => Ok(()),
            _ => reply.success().map(drop),
        }
    }

    /// Stops a container, and kills it after `timeout` seconds.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn stop(&self, id: &str, timeout: u32) -> Result<(), Error> {
        self.change("POST", &path(id, &format!("stop?t={timeout}")), None, &format!("stop {id}"))
    }

    /// Renames a container.
    ///
    /// # Errors
    /// The engine does not answer, or the name is taken.
    pub fn rename(&self, id: &str, name: &str) -> Result<(), Error> {
        let path = path(id, &format!("rename?name={}", encode(name)));
        self.change("POST", &path, None, &format!("rename {id} to {name}"))
    }

    /// Sets when the engine restarts a container.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn set_restart_policy(&self, id: &str, policy: &str) -> Result<(), Error> {
        let body = serde_json::json!({ "RestartPolicy": { "Name": policy } }).to_string();
        let body = Some(("application/json", body.as_bytes()));
        self.change("POST", &path(id, "update"), body, &format!("change the restart policy of {id}"))
    }

    /// Removes a container, running or not, with its anonymous volumes. It is no error if it is gone.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let path = format!("/containers/{}?force=true&v=true", encode(id));
        self.change("DELETE", &path, None, &format!("remove {id}"))
    }

    /// The last line of a container's log; empty if there is none.
    ///
    /// # Errors
    /// The engine does not answer, or keeps no log.
    pub fn last_log_line(&self, id: &str) -> Result<String, Error> {
        Ok(self.log(id, 1)?.lines().last().unwrap_or_default().to_owned())
    }

    /// The last lines of a container's log, of stdout and stderr.
    ///
    /// # Errors
    /// The engine does not answer, or keeps no log.
    pub fn log(&self, id: &str, lines: u32) -> Result<String, Error> {
        let path = path(id, &format!("logs?stdout=true&stderr=true&tail={lines}"));
        let body = self.request("GET", &path, None, &format!("show the log of {id}"))?.success()?;
        // Each piece has a header of eight bytes: stream, three zeros, length.
        let (mut rest, mut text) = (body.as_slice(), Vec::new());
        while let [_, 0, 0, 0, a, b, c, d, tail @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let (piece, after) = tail.split_at(length.min(tail.len()));
            text.extend_from_slice(piece);
            rest = after;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn path(container: &str, what: &str) -> String {
    format!("/containers/{}/{what}", encode(container))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    #[serde(default)]
    names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    path: String,
    state: State,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    host_config: HostConfig,
    #[serde(default)]
    hosts_path: PathBuf,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default, deserialize_with = "null_is_default")]
    network_settings: NetworkSettings,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    #[serde(deserialize_with = "null_is_default")]
    networks: BTreeMap<String, Option<EndpointInfo>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    status: String,
    #[serde(default)]
    exit_code: i64,
    #[serde(default)]
    started_at: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    hostname: String,
    domainname: String,
    image: String,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: String,
    extra_hosts: Option<Vec<String>>,
    restart_policy: RestartPolicy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RestartPolicy {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    source: PathBuf,
    destination: PathBuf,
}

impl From<Inspect> for ContainerInfo {
    fn from(inspect: Inspect) -> ContainerInfo {
        let Inspect { id, name, path, state, config, host_config, hosts_path, mounts, network_settings } =
            inspect;
        ContainerInfo {
            id,
            name: name.trim_start_matches('/').to_owned(),
            pid: (state.running && state.pid != 0).then_some(state.pid),
            hostname: config.hostname,
            domainname: config.domainname,
            network_mode: host_config.network_mode,
            state: state.status,
            exit_code: state.exit_code,
            started_at: state.started_at,
            image: config.image,
            program: path,
            entrypoint: config.entrypoint,
            env: config.env,
            restart_policy: host_config.restart_policy.name,
            extra_hosts: host_config.extra_hosts.unwrap_or_default(),
            endpoints: network_settings.networks.into_values().flatten().collect(),
            hosts_path: Some(hosts_path).filter(|path| !path.as_os_str().is_empty()),
            mounts: mounts.into_iter().map(|m| (m.source, m.destination)).collect(),
        }
    }
}
