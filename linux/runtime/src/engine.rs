//! What running the daemon itself as a container takes: images, containers, volumes. Only the few calls that are needed,
//! each one question to Docker.

use std::io;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::http::{Body, Response, encode_segment};
use crate::{Docker, Error};

/// A container that is there, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash that Docker shows.
    pub name: String,
    /// As it was named when the container was made.
    pub image: String,
    /// The program that it runs, as a path inside.
    pub program: String,
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub state: String,
    /// How it ended last.
    pub exit_code: i64,
    /// Since when it runs, as Docker writes times; changes with every start.
    pub started_at: String,
}

/// A network of Docker's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The plugin that makes it: `bridge`, `weavemesh`, ...
    pub driver: String,
    /// Running containers in it, by id.
    #[serde(default, deserialize_with = "keys")]
    pub containers: Vec<String>,
}

fn keys<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let map = Option::<std::collections::BTreeMap<String, serde::de::IgnoredAny>>::deserialize(from)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

/// What Docker says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    /// Name of the log driver that containers get: `json-file`, `journald`, ...
    pub logging_driver: String,
    /// Version of the engine.
    pub server_version: String,
}

impl Docker {
    /// What Docker says about itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn info(&self) -> Result<Info, Error> {
        self.json("GET", "/info", None, "be asked about itself")
    }

    /// Whether it answers at all, which it does at once.
    ///
    /// # Errors
    /// It does not.
    pub fn ping(&self) -> Result<(), Error> {
        self.act("GET", "/_ping", "answer")
    }

    /// The container of that name or id, running or not.
    ///
    /// # Errors
    /// Docker does not answer, or cannot describe it.
    pub fn service(&self, name: &str) -> Result<Option<Service>, Error> {
        let path = format!("/containers/{}/json", encode_segment(name));
        let what = format!("describe {name}");
        let response = self.exchange("GET", &path, None)?;
        if response.status == 404 {
            return Ok(None);
        }
        let inspect: Inspect = read(self.expect(response, &what)?, &what)?;
        Ok(Some(Service {
            id: inspect.id,
            name: inspect.name.trim_start_matches('/').to_owned(),
            image: inspect.config.image,
            program: inspect.path,
            state: inspect.state.status,
            exit_code: inspect.state.exit_code,
            started_at: inspect.state.started_at,
        }))
    }

    /// Whether there is an image of that name.
    ///
    /// # Errors
    /// Docker does not answer.
    pub fn has_image(&self, name: &str) -> Result<bool, Error> {
        let response = self.exchange("GET", &format!("/images/{}/json", encode_segment(name)), None)?;
        match response.status {
            404 => Ok(false),
            _ => self.expect(response, &format!("look for image {name}")).map(|_| true),
        }
    }

    /// Makes the image `name:tag` whose only file is `program` (an executable that needs no libraries) at `/<file>`, and
    /// which runs it. No registry is asked.
    ///
    /// # Errors
    /// Docker does not answer, or refuses the image.
    pub fn import_program(
        &self,
        name: &str,
        tag: &str,
        file: &str,
        program: &[u8],
        label: &str,
    ) -> Result<(), Error> {
        let what = format!("make image {name}:{tag}");
        let tar = archive(file, program).map_err(|e| Error::Docker(format!("cannot {what}: {e}")))?;
        let changes = [format!("ENTRYPOINT [\"/{file}\"]"), format!("LABEL {label}")];
        let changes: String = changes.iter().map(|c| format!("&changes={}", encode_segment(c))).collect();
        let path = format!(
            "/images/create?fromSrc=-&repo={}&tag={}{changes}",
            encode_segment(name),
            encode_segment(tag)
        );
        let body = Body { content_type: "application/x-tar", bytes: &tar };
        let answer = self.expect(self.exchange("POST", &path, Some(body))?, &what)?;
        // The answer is a stream of progress messages, and an error is one of them.
        for line in answer.body.split(|b| *b == b'\n') {
            if let Ok(Progress { error: Some(error) }) = serde_json::from_slice(line) {
                return Err(Error::Docker(format!("docker cannot {what}: {error}")));
            }
        }
        Ok(())
    }

    /// Makes a container; its id.
    ///
    /// # Errors
    /// Docker does not answer, or refuses.
    pub fn create(&self, name: &str, spec: &Value) -> Result<String, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Created {
            id: String,
        }
        let body = spec.to_string();
        let body = Body { content_type: "application/json", bytes: body.as_bytes() };
        let path = format!("/containers/create?name={}", encode_segment(name));
        let created: Created = self.json("POST", &path, Some(body), &format!("make container {name}"))?;
        Ok(created.id)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// Docker does not answer, or the name is taken.
    pub fn rename(&self, id: &str, name: &str) -> Result<(), Error> {
        let path = format!("/containers/{}/rename?name={}", encode_segment(id), encode_segment(name));
        self.act("POST", &path, &format!("rename {id} to {name}"))
    }

    /// Removes a container with its anonymous volumes, running or not. One that is gone is fine.
    ///
    /// # Errors
    /// Docker does not answer, or cannot.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        self.act(
            "DELETE",
            &format!("/containers/{}?force=true&v=true", encode_segment(id)),
            &format!("remove {id}"),
        )
    }

    /// The network of that name.
    ///
    /// # Errors
    /// Docker does not answer, or cannot describe it.
    pub fn network(&self, name: &str) -> Result<Option<Network>, Error> {
        let what = format!("describe network {name}");
        let response = self.exchange("GET", &format!("/networks/{}", encode_segment(name)), None)?;
        match response.status {
            404 => Ok(None),
            _ => read(self.expect(response, &what)?, &what).map(Some),
        }
    }

    /// Removes a network. One that is gone is fine.
    ///
    /// # Errors
    /// Docker does not answer, or the network is in use.
    pub fn remove_network(&self, id: &str) -> Result<(), Error> {
        self.act("DELETE", &format!("/networks/{}", encode_segment(id)), &format!("remove network {id}"))
    }

    /// Removes an image. One that is gone is fine.
    ///
    /// # Errors
    /// Docker does not answer, or the image is in use.
    pub fn remove_image(&self, name: &str) -> Result<(), Error> {
        self.act("DELETE", &format!("/images/{}", encode_segment(name)), &format!("remove image {name}"))
    }

    /// The last line that a container wrote, if its log can be read.
    ///
    /// # Errors
    /// Docker does not answer, or keeps no log.
    pub fn last_line(&self, id: &str) -> Result<String, Error> {
        let path = format!("/containers/{}/logs?stdout=true&stderr=true&tail=1", encode_segment(id));
        let response = self.expect(self.exchange("GET", &path, None)?, &format!("show the log of {id}"))?;
        // Each piece has a head of eight bytes: which stream, three zeros, length.
        let mut rest = response.body.as_slice();
        let mut text = Vec::new();
        while let [_, 0, 0, 0, a, b, c, d, tail @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let (piece, after) = tail.split_at(length.min(tail.len()));
            text.extend_from_slice(piece);
            rest = after;
        }
        Ok(String::from_utf8_lossy(&text).lines().last().unwrap_or_default().to_owned())
    }

    /// Names of all containers with this label, running or not.
    ///
    /// # Errors
    /// Docker does not answer.
    pub fn containers_labelled(&self, label: &str) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Row {
            id: String,
            #[serde(default)]
            names: Vec<String>,
        }
        let path = format!("/containers/json?all=true&filters={}", label_filter(label));
        let rows: Vec<Row> = self.json("GET", &path, None, "list containers")?;
        let name =
            |row: Row| row.names.first().map(|n| n.trim_start_matches('/').to_owned()).unwrap_or(row.id);
        Ok(rows.into_iter().map(name).collect())
    }

    /// Names (or ids, where there is no name) of all images with this label.
    ///
    /// # Errors
    /// Docker does not answer.
    pub fn images_labelled(&self, label: &str) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Row {
            id: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
        }
        let path = format!("/images/json?filters={}", label_filter(label));
        let rows: Vec<Row> = self.json("GET", &path, None, "list images")?;
        let names = |row: Row| match row.repo_tags {
            Some(tags) if !tags.is_empty() => tags,
            _ => vec![row.id],
        };
        Ok(rows.into_iter().flat_map(names).collect())
    }

    fn json<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<Body<'_>>,
        what: &str,
    ) -> Result<T, Error> {
        read(self.expect(self.exchange(method, path, body)?, what)?, what)
    }

    /// For what leaves nothing to say: done, or done before, or gone.
    fn act(&self, method: &str, path: &str, what: &str) -> Result<(), Error> {
        let response = self.exchange(method, path, None)?;
        let gone = response.status == 404 && method == "DELETE";
        if response.status == 304 || gone { Ok(()) } else { self.expect(response, what).map(|_| ()) }
    }

    fn expect(&self, response: Response, what: &str) -> Result<Response, Error> {
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let said = serde_json::from_slice::<Message>(&response.body)
            .map_or_else(|_| format!("status {}", response.status), |m| m.message);
        Err(Error::Docker(format!("docker cannot {what}: {said}")))
    }
}

fn read<T: DeserializeOwned>(response: Response, what: &str) -> Result<T, Error> {
    serde_json::from_slice(&response.body)
        .map_err(|e| Error::Docker(format!("docker answers in an unknown way when asked to {what}: {e}")))
}

fn label_filter(label: &str) -> String {
    encode_segment(&serde_json::json!({ "label": [label] }).to_string())
}

/// A tar archive with one executable.
fn archive(file: &str, program: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    let mut tar = tar::Builder::new(Vec::with_capacity(program.len() + 4096));
    tar.append_data(&mut header, file, program)?;
    tar.into_inner()
}

#[derive(Deserialize)]
struct Progress {
    #[serde(default)]
    error: Option<String>,
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
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
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
    image: String,
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What Docker was asked, and what the client makes of `answer`.
    fn asked<T>(answer: &str, call: impl FnOnce(&Docker) -> T) -> (Vec<u8>, T) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let docker = Docker::at(Some(&format!("unix://{}", path.display())));
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut chunk = [0; 65536];
                loop {
                    let n = stream.read(&mut chunk).unwrap();
                    request.extend_from_slice(&chunk[..n]);
                    let text = String::from_utf8_lossy(&request);
                    let Some(end) = text.find("\r\n\r\n") else { continue };
                    let length = text[..end].lines().find_map(|l| l.strip_prefix("Content-Length: "));
                    let length: usize = length.map_or(0, |l| l.parse().unwrap());
                    let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                    if request.len() >= head + length {
                        break;
                    }
                }
                stream.write_all(answer.as_bytes()).unwrap();
                request
            });
            let result = call(&docker);
            (server.join().unwrap(), result)
        })
    }

    fn answer(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn services() {
        let body = r#"{"Id":"abc","Name":"/weave","State":{"Status":"exited","ExitCode":3,"StartedAt":"t"},"Config":{"Image":"weave:3"}}"#;
        let (request, service) = asked(&answer(200, body), |d| d.service("we/ave").unwrap().unwrap());
        assert!(request.starts_with(b"GET /containers/we%2Fave/json HTTP/1.1\r\n"));
        assert_eq!((service.name.as_str(), service.image.as_str()), ("weave", "weave:3"));
        assert_eq!((service.state.as_str(), service.exit_code), ("exited", 3));
        let missing = answer(404, r#"{"message":"No such container"}"#);
        assert_eq!(asked(&missing, |d| d.service("x").unwrap()).1, None);
        let broken = answer(500, r#"{"message":"disk on fire"}"#);
        let error = asked(&broken, |d| d.service("x").unwrap_err().to_string()).1;
        assert_eq!(error, "docker cannot describe x: disk on fire");
    }

    #[test]
    fn an_image_from_a_program() {
        let program = vec![7; 5000];
        let import = |d: &Docker| d.import_program("weave", "3.0.0", "weave", &program, "a.b=c");
        let (request, result) = asked(&answer(200, "{\"status\":\"sha256:1\"}\r\n"), import);
        result.unwrap();
        let text = String::from_utf8_lossy(&request);
        let start = "POST /images/create?fromSrc=-&repo=weave&tag=3.0.0&changes=ENTRYPOINT%20%5B%22%2Fweave%22%5D&changes=LABEL%20a.b%3Dc HTTP/1.1\r\n";
        assert!(text.starts_with(start), "{}", text.lines().next().unwrap());
        let at = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let mut tar = tar::Archive::new(&request[at..]);
        let mut entries = tar.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.path().unwrap().to_str(), Some("weave"));
        assert_eq!(entry.header().mode().unwrap(), 0o755);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert_eq!(content, program);
        assert!(entries.next().is_none());
        // An error after the good status.
        let late = answer(200, "{\"status\":\"x\"}\r\n{\"error\":\"no space left\"}\r\n");
        let error = asked(&late, import).1.unwrap_err().to_string();
        assert_eq!(error, "docker cannot make image weave:3.0.0: no space left");
    }

    #[test]
    fn done_before() {
        let gone = answer(404, r#"{"message":"No such container"}"#);
        assert!(asked(&gone, |d| d.remove("x")).1.is_ok());
        assert!(asked(&gone, |d| d.rename("x", "y")).1.is_err());
        assert!(asked(&answer(409, r#"{"message":"in use"}"#), |d| d.remove_image("x")).1.is_err());
    }

    #[test]
    fn logs() {
        let body = "\x01\0\0\0\0\0\0\x04one\n\x02\0\0\0\0\0\0\x08two\nthre";
        assert_eq!(asked(&answer(200, body), |d| d.last_line("x").unwrap()).1, "thre");
        assert_eq!(asked(&answer(200, ""), |d| d.last_line("x").unwrap()).1, "");
        let cut = "\x01\0\0\0\0\0\0\x7fcut";
        assert_eq!(asked(&answer(200, cut), |d| d.last_line("x").unwrap()).1, "cut");
    }

    #[test]
    fn lists() {
        let body = r#"[{"Id":"1","Names":["/weavedb"]},{"Id":"2"}]"#;
        let (request, names) = asked(&answer(200, body), |d| d.containers_labelled("weavevolumes").unwrap());
        assert_eq!(names, ["weavedb", "2"]);
        let start =
            "GET /containers/json?all=true&filters=%7B%22label%22%3A%5B%22weavevolumes%22%5D%7D HTTP/1.1";
        assert!(String::from_utf8_lossy(&request).starts_with(start));
        let body = r#"[{"Id":"i1","RepoTags":["weave:3","weave:latest"]},{"Id":"i2","RepoTags":null}]"#;
        assert_eq!(
            asked(&answer(200, body), |d| d.images_labelled("l").unwrap()).1,
            ["weave:3", "weave:latest", "i2"]
        );
    }
}
