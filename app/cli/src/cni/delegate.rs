//! Another plugin, which allocates addresses.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;
use weave_cni::{AddResult, Call, Error, MAX_INPUT, Version, code};

pub(super) struct Delegate<'a> {
    program: PathBuf,
    name: String,
    input: &'a [u8],
}

/// An error as plugins print it.
#[derive(Deserialize)]
struct Printed {
    #[serde(default)]
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    supported_versions: Vec<String>,
}

impl<'a> Delegate<'a> {
    /// Looks for the plugin `name` in the directories of a request.
    pub(super) fn find(name: &str, call: &Call, input: &'a [u8]) -> Result<Delegate<'a>, Error> {
        if name.contains('/') {
            return Err(Error::new(code::INVALID_CONFIG, format!("invalid plugin name: {name:?}")));
        }
        let program = call.path.iter().map(|dir| dir.join(name)).find(|program| program.is_file());
        let directories: Vec<_> = call.path.iter().map(|dir| dir.display().to_string()).collect();
        let missing = || {
            let text = format!("failed to find plugin {name:?} in path [{}]", directories.join(" "));
            Error::new(code::OTHER, text)
        };
        Ok(Delegate { program: program.ok_or_else(missing)?, name: name.to_owned(), input })
    }

    /// Calls it with the request's input and environment, except for the command and `variables`. Returns what it prints.
    pub(super) fn call(&self, command: &str, variables: &[(&str, &str)]) -> Result<Vec<u8>, Error> {
        let failed = |e: std::io::Error| Error::new(code::OTHER, format!("cannot run {}: {e}", self.name));
        let mut process = Command::new(&self.program);
        process.env("CNI_COMMAND", command).envs(variables.iter().copied());
        let process = process.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = process.spawn().map_err(failed)?;
        let mut output = Vec::new();
        let read = std::thread::scope(|scope| {
            let stdin = child.stdin.take();
            // It may end without reading its input.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(self.input)));
            let stdout = child.stdout.take();
            stdout.map_or(Ok(0), |stdout| stdout.take(MAX_INPUT).read_to_end(&mut output))
        });
        let status = child.wait().map_err(failed)?;
        read.map_err(failed)?;
        if status.success() {
            return Ok(output);
        }
        Err(match serde_json::from_slice(&output) {
            Ok(Printed { code, msg, details }) => Error { code, msg, details },
            Err(_) => Error::new(code::OTHER, format!("{} failed: {status}", self.name)),
        })
    }

    pub(super) fn add(&self, variables: &[(&str, &str)]) -> Result<AddResult, Error> {
        let output = self.call("ADD", variables)?;
        let result = serde_json::from_slice(&output).map_err(|e| e.to_string());
        result
            .and_then(|value| AddResult::parse(&value))
            .map_err(|e| Error::new(code::OTHER, format!("cannot read the result of {}: {e}", self.name)))
    }

    /// Whether it knows this version of the specification.
    pub(super) fn supports(&self, version: Version) -> bool {
        let versions = self.call("VERSION", &[]).ok().and_then(|text| serde_json::from_slice(&text).ok());
        versions.is_some_and(|v: Versions| v.supported_versions.iter().any(|v| v == version.as_str()))
    }
}
