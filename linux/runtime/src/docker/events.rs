//! Starts and ends of an engine's containers.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::Deserialize;
use weave_http::Request;

use super::Docker;
use crate::Error;

/// Only events of containers.
const PATH: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%7D";
/// Longest event; the attributes of a container are part of it.
const MAX_EVENT: usize = 1 << 20;

/// Whether a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// It runs, or may be started yet.
    Running,
    /// It has ended, and the engine is about to start it again.
    Restarting,
    /// It has ended, and may be started again.
    Stopped,
    /// It does not exist.
    Removed,
}

impl Docker {
    /// The states of all containers that exist, by id.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn states(&self) -> Result<BTreeMap<String, ContainerState>, Error> {
        let rows: Vec<Row> =
            self.request("GET", "/containers/json?all=true", None, "list containers")?.read()?;
        let state = |row: &Row| match row.state.as_str() {
            "restarting" => ContainerState::Restarting,
            "exited" | "dead" | "removing" | "stopped" => ContainerState::Stopped,
            _ => ContainerState::Running,
        };
        Ok(rows.into_iter().map(|row| (row.id.clone(), state(&row))).collect())
    }

    /// The state of a container about which `reported` was reported: its end does not tell whether it is about to be started again.
    pub fn refine(&self, container: &str, reported: ContainerState) -> ContainerState {
        match reported {
            ContainerState::Stopped
                if self.inspect(container).ok().flatten().is_some_and(|info| info.is_restarting()) =>
            {
                ContainerState::Restarting
            }
            reported => reported,
        }
    }

    /// Reports changes of containers' states until `report` breaks or the engine ends. `report` is first called with `None`, when all
    /// later changes will be reported.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn watch(
        &self,
        mut report: impl FnMut(Option<(String, ContainerState)>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let client = self.client.as_ref().map_err(|e| Error::Docker(e.clone()))?;
        let mut lines = Vec::new();
        let mut refused = None;
        let request = Request { method: "GET", path: PATH, ..Request::default() };
        let result = client.stream_blocking(request, |status, bytes| {
            if status != 200 {
                refused = Some(status);
                return ControlFlow::Break(());
            }
            if bytes.is_empty() {
                return report(None);
            }
            lines.extend_from_slice(bytes);
            while let Some(end) = lines.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = lines.drain(..=end).collect();
                if let Some(change) = parse(&line) {
                    report(Some(change))?;
                }
            }
            if lines.len() > MAX_EVENT { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let endpoint = client.endpoint().to_string();
        match refused {
            Some(status) => {
                Err(Error::Docker(format!("docker at {endpoint} cannot report events: status {status}")))
            }
            None => result.map_err(|source| Error::Http { endpoint, source }),
        }
    }
}

/// The container's new state; `None` for events that change none. Podman calls some events differently.
fn parse(line: &[u8]) -> Option<(String, ContainerState)> {
    let event: Event = serde_json::from_slice(line).ok()?;
    let state = match event.action.as_str() {
        "start" => ContainerState::Running,
        "die" | "died" => ContainerState::Stopped,
        "destroy" | "remove" => ContainerState::Removed,
        _ => return None,
    };
    (event.kind == "container").then_some((event.actor.id, state))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    #[serde(default)]
    state: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(rename = "Type")]
    kind: String,
    action: String,
    actor: Actor,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_change_a_state() {
        let line = |kind: &str, action: &str| {
            let text = format!(
                r#"{{"status":"{action}","id":"c1","Type":"{kind}","Action":"{action}","Actor":{{"ID":"c1","Attributes":{{"image":"x"}}}},"time":1}}"#
            );
            parse(text.as_bytes()).map(|(id, state)| (id == "c1").then_some(state).unwrap())
        };
        assert_eq!(line("container", "start"), Some(ContainerState::Running));
        assert_eq!(line("container", "die"), Some(ContainerState::Stopped));
        assert_eq!(line("container", "died"), Some(ContainerState::Stopped));
        assert_eq!(line("container", "destroy"), Some(ContainerState::Removed));
        assert_eq!(line("container", "exec_create: sh"), None);
        assert_eq!(line("network", "destroy"), None);
        // API 1.52 has neither `status` nor `id` nor `from`.
        let line = br#"{"Type":"container","Action":"die","Actor":{"ID":"c1","Attributes":{"exitCode":"0"}},"scope":"local","time":1,"timeNano":1}"#;
        assert_eq!(parse(line), Some(("c1".to_owned(), ContainerState::Stopped)));
        for damaged in ["", "{}", "[]", r#"{"Type":"container","Action":"die"}"#] {
            assert_eq!(parse(damaged.as_bytes()), None, "{damaged}");
        }
    }
}
