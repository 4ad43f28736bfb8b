//! A client of Docker's engine API, which Podman serves as well.

mod containers;
mod events;
mod images;
mod networks;

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use weave_host::fault_injection::io_fail_point;
use weave_http::{Client, Endpoint, Request, Response, Tls};

use crate::Error;

pub use containers::{ContainerInfo, EndpointInfo};
pub use events::ContainerState;
pub use images::{EngineInfo, ImageInfo};
pub use networks::Network;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
const DEFAULT_PORT: u16 = 2375;
const PODMAN_SOCKET: &str = "/run/podman/podman.sock";
/// A loaded machine may take seconds to describe a container.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A container engine.
#[derive(Clone, Debug)]
pub struct Docker {
    /// The error is returned by the first request.
    client: Result<Client, String>,
}

impl Docker {
    /// The engine at a value of `DOCKER_HOST`: `unix://<path>` or `tcp://<host>[:<port>]`; unset or empty means Docker's
    /// usual socket. Nothing is sent yet: a value that is not understood is an error of the first request.
    pub fn at(docker_host: Option<&str>) -> Docker {
        let endpoint = match docker_host.map(str::trim).filter(|h| !h.is_empty()) {
            None => Ok(Endpoint::Unix(DEFAULT_SOCKET.into())),
            Some(host) => parse_host(host),
        };
        Docker { client: endpoint.map(|e| Client::new(e).with_timeout(DEFAULT_TIMEOUT)) }
    }

    /// Root's Podman, where it serves Docker's API; `None` if it does not.
    pub fn podman() -> Option<Docker> {
        let path = Path::new(PODMAN_SOCKET);
        let client = Client::new(Endpoint::Unix(path.into())).with_timeout(DEFAULT_TIMEOUT);
        path.exists().then_some(Docker { client: Ok(client) })
    }

    /// Whether the engine is Podman.
    pub fn is_podman(&self) -> bool {
        self.change("GET", "/libpod/_ping", None, "say whether it is Podman").is_ok()
    }

    /// Uses TLS on TCP connections, with the files of a `DOCKER_CERT_PATH`.
    pub fn with_tls(self, certificates: &Path) -> Docker {
        let client = self.client.and_then(|client| match client.endpoint() {
            Endpoint::Tcp(address) => {
                let tls = Tls::from_directory(certificates).map_err(|e| e.to_string())?;
                Ok(Client::new(Endpoint::Tls(address.clone(), tls)).with_timeout(DEFAULT_TIMEOUT))
            }
            Endpoint::Unix(_) | Endpoint::Tls(..) => Ok(client),
        });
        Docker { client }
    }

    /// Sets another limit on the time of each request.
    pub fn with_timeout(self, timeout: Duration) -> Docker {
        Docker { client: self.client.map(|client| client.with_timeout(timeout)) }
    }

    /// Whether the engine is on this machine: reached through a unix socket.
    pub fn is_local(&self) -> bool {
        self.socket().is_some()
    }

    /// Its unix socket; `None` over TCP.
    pub fn socket(&self) -> Option<&Path> {
        match self.client.as_ref().ok()?.endpoint() {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Tcp(_) | Endpoint::Tls(..) => None,
        }
    }

    /// Where the engine is.
    ///
    /// # Errors
    /// The value of `DOCKER_HOST` is not understood.
    pub fn endpoint(&self) -> Result<&Endpoint, Error> {
        self.client.as_ref().map(Client::endpoint).map_err(|e| Error::Docker(e.clone()))
    }

    /// Checks that the engine answers.
    ///
    /// # Errors
    /// It does not.
    pub fn ping(&self) -> Result<(), Error> {
        self.change("GET", "/_ping", None, "answer")
    }

    /// Sends a request. `purpose` completes "docker cannot ..." in errors.
    fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &[u8])>,
        purpose: &str,
    ) -> Result<Reply<'_>, Error> {
        let client = self.client.as_ref().map_err(|e| Error::Docker(e.clone()))?;
        let endpoint = client.endpoint();
        io_fail_point(&format_args!("asking Docker: {method} {path}"))
            .map_err(weave_http::Error::Io)
            .and_then(|()| {
                let headers = &[("Accept", "application/json")];
                client.exchange_blocking(Request { method, path, headers, body }, None)
            })
            .map(|response| Reply { endpoint, response, purpose: purpose.to_owned() })
            .map_err(|source| Error::Http { endpoint: endpoint.to_string(), source })
    }

    /// Requests something to read; `None` if the engine does not know it.
    fn find<T: DeserializeOwned>(&self, path: &str, purpose: &str) -> Result<Option<T>, Error> {
        let reply = self.request("GET", path, None, purpose)?;
        if reply.response.status == 404 { Ok(None) } else { reply.read().map(Some) }
    }

    /// Requests a change that has no result. What was done before, or is to be deleted and is gone, is no error.
    fn change(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &[u8])>,
        purpose: &str,
    ) -> Result<(), Error> {
        let reply = self.request(method, path, body, purpose)?;
        match reply.response.status {
            304 => Ok(()),
            404 if method == "DELETE" => Ok(()),
            _ => reply.success().map(drop),
        }
    }
}

/// An answer of the engine.
struct Reply<'a> {
    endpoint: &'a Endpoint,
    response: Response,
    purpose: String,
}

impl Reply<'_> {
    fn read<T: DeserializeOwned>(self) -> Result<T, Error> {
        let text = format!("docker at {} cannot {}: its answer cannot be read", self.endpoint, self.purpose);
        let body = self.success()?;
        serde_json::from_slice(&body).map_err(|e| Error::Docker(format!("{text}: {e}")))
    }

    /// The body of an answer with a status of success.
    fn success(self) -> Result<Vec<u8>, Error> {
        if (200..300).contains(&self.response.status) {
            return Ok(self.response.body);
        }
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let message = serde_json::from_slice::<Message>(&self.response.body);
        Err(self.failure(&message.map_or(format!("status {}", self.response.status), |m| m.message)))
    }

    fn failure(&self, why: &str) -> Error {
        Error::Docker(format!("docker at {} cannot {}: {why}", self.endpoint, self.purpose))
    }
}

/// Docker writes `null` for an empty list.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn parse_host(host: &str) -> Result<Endpoint, String> {
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(Endpoint::Unix(if path.is_empty() { DEFAULT_SOCKET } else { path }.into()));
    }
    let address = ["tcp://", "http://", "https://"].iter().find_map(|scheme| host.strip_prefix(scheme));
    match address.map(|address| address.trim_end_matches('/')) {
        Some(address) if !address.is_empty() && !address.contains('/') => {
            // A port follows the last colon, unless that is inside the brackets of an IPv6 address.
            let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let complete = has_port && !address.ends_with(']');
            Ok(Endpoint::Tcp(if complete { address.to_owned() } else { format!("{address}:{DEFAULT_PORT}") }))
        }
        _ => Err(format!(
            "DOCKER_HOST is {host:?}, of which only unix://<path> and tcp://<host>:<port> are supported"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_host_is_parsed() {
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
            assert_eq!(Docker::at(value).client.unwrap().endpoint().to_string(), endpoint);
        }
        for value in ["ssh://host", "npipe:////./pipe/docker", "docker.sock", "tcp://", "tcp://host/path"] {
            let error = Docker::at(Some(value)).inspect("web").unwrap_err().to_string();
            assert!(error.starts_with("DOCKER_HOST is "), "{error}");
        }
    }
}
