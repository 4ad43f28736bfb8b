//! What Docker says about a container.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::Error;
use crate::http::{self, Endpoint};

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
const DEFAULT_PORT: u16 = 2375;
/// A loaded machine may take seconds to describe a container.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Docker daemon, or anything that speaks its API (Podman does).
#[derive(Clone, Debug)]
pub struct Docker {
    /// Or why there is none: of interest only to who asks.
    endpoint: Result<Endpoint, String>,
    patience: Duration,
}

/// A container as Docker describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInfo {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash that Docker shows.
    pub name: String,
    /// Its first process; none if it is not running.
    pub pid: Option<u32>,
    /// Its host name, without domain.
    pub hostname: String,
    /// Its domain; often empty.
    pub domainname: String,
    /// `host`, `bridge`, `none`, `container:<id>`, the name of a network, ...
    pub network_mode: String,
    /// Its state in Docker's word: `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`.
    pub state: String,
    /// Its `/etc/hosts`, as a file of the host that Docker runs on; none without.
    pub hosts_path: Option<PathBuf>,
}

impl ContainerInfo {
    /// `hostname.domainname`; none without a domain.
    pub fn fqdn(&self) -> Option<String> {
        (!self.domainname.is_empty()).then(|| format!("{}.{}", self.hostname, self.domainname))
    }
}

impl Docker {
    /// From the value of `DOCKER_HOST`: `unix://<path>` or `tcp://<host>[:<port>]`; unset or empty means the usual
    /// socket. No connection is made yet; a value that is not understood is an error of the first question, so that it
    /// hinders nobody who does not need Docker.
    pub fn at(docker_host: Option<&str>) -> Docker {
        let endpoint = match docker_host.map(str::trim).filter(|h| !h.is_empty()) {
            None => Ok(Endpoint::Unix(DEFAULT_SOCKET.into())),
            Some(host) => parse(host),
        };
        Docker { endpoint, patience: PATIENCE }
    }

    /// The same with another limit for each question.
    pub fn with_patience(self, patience: Duration) -> Docker {
        Docker { patience, ..self }
    }

    /// Whether it is on this machine: reached through a unix socket.
    pub fn is_local(&self) -> bool {
        matches!(self.endpoint, Ok(Endpoint::Unix(_)))
    }

    /// Asks a question; status and body, whatever they are.
    pub(crate) fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<http::Body<'_>>,
    ) -> Result<http::Response, Error> {
        let endpoint = self.endpoint.as_ref().map_err(|e| Error::Docker(e.clone()))?;
        http::request(endpoint, method, path, body, self.patience)
            .map_err(|source| Error::Http { endpoint: endpoint.to_string(), source })
    }

    /// Describes the container of that name or (beginning of an) id; none if there is no such container.
    pub fn inspect(&self, name: &str) -> Result<Option<ContainerInfo>, Error> {
        Ok(self.describe::<Inspect>(name)?.map(ContainerInfo::from))
    }

    /// The description of a container as whoever asks reads it.
    pub(crate) fn describe<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        // "." and ".." are no names, but would change the path.
        if name.is_empty() || name == "." || name == ".." {
            return Ok(None);
        }
        self.ask(&path(name, "json"), name)
    }

    /// Full ids of all running containers.
    pub fn running(&self) -> Result<Vec<String>, Error> {
        let list = self.ask::<Vec<Listed>>("/containers/json", "its containers")?;
        Ok(list.unwrap_or_default().into_iter().map(|l| l.id).collect())
    }

    /// The answer to a question about `what`; none if Docker does not know it.
    fn ask<T: serde::de::DeserializeOwned>(&self, path: &str, what: &str) -> Result<Option<T>, Error> {
        let endpoint = self.endpoint()?;
        let response = http::get(endpoint, path, self.patience)
            .map_err(|source| Error::Http { endpoint: endpoint.to_string(), source })?;
        understand(endpoint, what, &response)
    }

    /// What [`Docker::inspect`] makes of these bytes if a daemon answers with them and closes the connection.
    pub fn read_inspect(name: &str, answer: &[u8]) -> Result<Option<ContainerInfo>, Error> {
        let endpoint = Endpoint::Unix(DEFAULT_SOCKET.into());
        let response =
            http::read(answer).map_err(|source| Error::Http { endpoint: endpoint.to_string(), source })?;
        understand::<Inspect>(&endpoint, name, &response).map(|found| found.map(Into::into))
    }

    /// Asks for a change. `verb` and `name` are for the error's text.
    pub(crate) fn post(&self, path: &str, body: Option<&str>, verb: &str, name: &str) -> Result<(), Error> {
        let endpoint = self.endpoint()?;
        let body = body.map(|text| http::Body { content_type: "application/json", bytes: text.as_bytes() });
        let response = http::request(endpoint, "POST", path, body, self.patience)
            .map_err(|source| Error::Http { endpoint: endpoint.to_string(), source })?;
        match response.status {
            // 304: it already was so.
            200..=299 | 304 => Ok(()),
            _ => {
                Err(Error::Docker(format!("docker at {endpoint} cannot {verb} {name}: {}", said(&response))))
            }
        }
    }

    fn endpoint(&self) -> Result<&Endpoint, Error> {
        self.endpoint.as_ref().map_err(|e| Error::Docker(e.clone()))
    }
}

fn understand<T: serde::de::DeserializeOwned>(
    endpoint: &Endpoint,
    what: &str,
    response: &http::Response,
) -> Result<Option<T>, Error> {
    match response.status {
        200 => serde_json::from_slice(&response.body).map(Some).map_err(|e| {
            Error::Docker(format!("docker at {endpoint} describes {what} in an unknown way: {e}"))
        }),
        404 => Ok(None),
        _ => Err(Error::Docker(format!("docker at {endpoint} cannot describe {what}: {}", said(response)))),
    }
}

/// Where the API has something of a container.
pub(crate) fn path(name: &str, what: &str) -> String {
    format!("/containers/{}/{what}", http::encode_segment(name))
}

fn said(response: &http::Response) -> String {
    let message: Option<Message> = serde_json::from_slice(&response.body).ok();
    message.map_or_else(|| format!("status {}", response.status), |m| m.message)
}

fn parse(host: &str) -> Result<Endpoint, String> {
    if let Some(path) = host.strip_prefix("unix://") {
        let path = if path.is_empty() { DEFAULT_SOCKET } else { path };
        return Ok(Endpoint::Unix(path.into()));
    }
    let address =
        host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://")).map(|a| a.trim_end_matches('/'));
    match address {
        Some(address) if !address.is_empty() && !address.contains('/') => {
            // A port is behind the last colon, unless that is inside the brackets of an IPv6 address.
            let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let whole_v6 = address.ends_with(']');
            let plain =
                if has_port && !whole_v6 { address.to_owned() } else { format!("{address}:{DEFAULT_PORT}") };
            Ok(Endpoint::Tcp(plain))
        }
        _ => Err(format!(
            "DOCKER_HOST is {host:?}, of which only unix://<path> and tcp://<host>:<port> (without TLS) are understood"
        )),
    }
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    id: String,
    #[serde(default)]
    hosts_path: String,
    #[serde(default)]
    name: String,
    state: State,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    host_config: HostConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    hostname: String,
    domainname: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: String,
}

impl From<Inspect> for ContainerInfo {
    fn from(i: Inspect) -> ContainerInfo {
        ContainerInfo {
            id: i.id,
            name: i.name.trim_start_matches('/').to_owned(),
            pid: (i.state.running && i.state.pid != 0).then_some(i.state.pid),
            hostname: i.config.hostname,
            domainname: i.config.domainname,
            network_mode: i.host_config.network_mode,
            state: i.state.status,
            hosts_path: (!i.hosts_path.is_empty()).then(|| i.hosts_path.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_host() {
        for (value, endpoint) in [
            (None, "unix:///var/run/docker.sock"),
            (Some(""), "unix:///var/run/docker.sock"),
            (Some("unix://"), "unix:///var/run/docker.sock"),
            (Some("unix:///run/user/0/podman.sock"), "unix:///run/user/0/podman.sock"),
            (Some("tcp://10.0.0.1:12375"), "tcp://10.0.0.1:12375"),
            (Some("tcp://docker.example"), "tcp://docker.example:2375"),
            (Some("http://127.0.0.1:1/"), "tcp://127.0.0.1:1"),
            (Some("tcp://[::1]:77"), "tcp://[::1]:77"),
            (Some("tcp://[::1]"), "tcp://[::1]:2375"),
        ] {
            assert_eq!(Docker::at(value).endpoint.unwrap().to_string(), endpoint);
        }
        for value in ["ssh://host", "npipe:////./pipe/docker", "docker.sock", "tcp://", "tcp://host/path"] {
            let error = Docker::at(Some(value)).inspect("web").unwrap_err().to_string();
            assert!(error.starts_with("DOCKER_HOST is "), "{error}");
        }
    }
}
