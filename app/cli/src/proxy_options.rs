//! Options of the Docker API proxy (docs/spec/containers.md A.1 to A.3).

use std::path::{Path, PathBuf};

use weave_daemon::config::{
    HostnameError, PROXY_SOCKET, ProxyConfig, ProxyEndpoint, RUN_DIR, ServerTlsFiles,
};

use crate::args::{Parsed, dashed};
use crate::env::Env;

/// Where the proxy listens if the client reaches Docker over TCP.
const DEFAULT_TCP: &str = "tcp://0.0.0.0:12375";
/// Options that name a file of the proxy's TLS, and the file's usual name.
const TLS_FILES: [(&str, &str); 3] =
    [("tlscacert", "ca.pem"), ("tlscert", "cert.pem"), ("tlskey", "key.pem")];
const TLS_FLAGS: [&str; 2] = ["tls", "tlsverify"];

/// Why an option is refused. Texts of 2.8.1 where it has the same error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyOptionError {
    #[error("Invalid protocol format: {0:?}")]
    Endpoint(String),
    #[error("Could not start proxy: {0}")]
    Hostname(#[from] HostnameError),
    #[error("{0} is missing, which TLS of the proxy needs")]
    TlsFile(String),
    #[error("When launching the proxy, unix sockets must be specified as an absolute path.")]
    RelativePath,
}

/// Docker's own address, also in a shell in which `eval $(weave env)` has put the proxy in front of it. `None`: the usual one.
pub(crate) fn docker_host(env: &dyn Env) -> Option<String> {
    let host = env.var("DOCKER_HOST").filter(|host| !host.is_empty())?;
    match env.var("ORIG_DOCKER_HOST") {
        Some(original) => Some(original).filter(|host| !host.is_empty()),
        None => Some(host).filter(|host| !is_proxy(host)),
    }
}

/// Whether it is the unix socket of a proxy.
fn is_proxy(host: &str) -> bool {
    host.strip_prefix("unix://")
        .is_some_and(|path| Path::new(path).ends_with(Path::new("weave").join(PROXY_SOCKET)))
}

/// What `weave launch` adds to its command line, because the daemon may have another environment: that the proxy runs, where it listens,
/// where Docker is, and TLS as Docker has it. `only_peer`: no other peer of this host has a proxy. Returns a warning.
pub(crate) fn complete(parsed: &mut Parsed, only_peer: bool, env: &dyn Env) -> Option<String> {
    if parsed.text("proxy").is_none() && parsed.text("docker-api") != Some("") && only_peer {
        parsed.set("proxy", "true");
    }
    if !parsed.flag("proxy") {
        return None;
    }
    if let Some(host) = docker_host(env).filter(|_| parsed.text("docker-api").is_none()) {
        parsed.set("docker-api", host);
    }
    if parsed.list("H").is_empty() && env.var("DOCKER_HOST").is_some_and(|host| host.starts_with("tcp://")) {
        parsed.set("H", DEFAULT_TCP);
    }
    // TLS is for TCP only.
    let listens_on_tcp =
        parsed.list("H").iter().any(|endpoint| !endpoint.trim_start_matches("unix://").starts_with('/'));
    if !listens_on_tcp {
        return None;
    }
    let given = TLS_FLAGS
        .iter()
        .chain(TLS_FILES.iter().map(|(option, _)| option))
        .any(|option| parsed.text(option).is_some());
    if given || parsed.flag("no-detect-tls") {
        set_tls_files(parsed, env);
        return None;
    }
    let Some(arguments) = docker_arguments() else {
        return Some(
            "Warning: unable to detect proxy TLS configuration, no Docker daemon runs here. To enable TLS, launch with the --tls \
             options of the guide. To suppress this warning, supply '--no-detect-tls'."
                .to_owned(),
        );
    };
    for (option, value) in tls_options(&arguments) {
        parsed.set(option, value);
    }
    set_tls_files(parsed, env);
    None
}

/// Names the files that TLS uses.
fn set_tls_files(parsed: &mut Parsed, env: &dyn Env) {
    if !TLS_FLAGS.iter().any(|flag| parsed.flag(flag)) {
        return;
    }
    let home = env.var("HOME").unwrap_or_else(|| "/root".to_owned());
    let directory = env.var("DOCKER_CERT_PATH").filter(|path| !path.is_empty());
    let directory = directory.map_or_else(|| Path::new(&home).join(".docker"), PathBuf::from);
    for (option, file) in TLS_FILES {
        // The daemon does not run in the directory of the command.
        let path = parsed.text(option).map_or_else(|| directory.join(file), PathBuf::from);
        let path = std::path::absolute(&path).unwrap_or(path);
        parsed.remove(option);
        parsed.set(option, path.to_string_lossy());
    }
}

/// The arguments of the running Docker daemon: `dockerd`, or `docker -d` and `docker daemon` in old versions.
fn docker_arguments() -> Option<Vec<String>> {
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let is_process =
            entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !is_process || !matches!(comm.trim_end(), "dockerd" | "docker") {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let arguments: Vec<String> = words.skip(1).filter(|word| !word.is_empty()).collect();
        if comm.trim_end() == "dockerd" || arguments.iter().any(|a| a == "-d" || a == "daemon") {
            return Some(arguments);
        }
    }
    None
}

/// The TLS options among the arguments of Docker's daemon.
fn tls_options(arguments: &[String]) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let Some(body) = argument.strip_prefix("--") else { continue };
        let (name, inline) =
            body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value.to_owned())));
        if let Some(flag) = TLS_FLAGS.into_iter().find(|flag| *flag == name) {
            found.push((flag, inline.unwrap_or_else(|| "true".to_owned())));
        } else if let Some((option, _)) = TLS_FILES.into_iter().find(|(option, _)| *option == name) {
            found.extend(inline.or_else(|| arguments.next().cloned()).map(|value| (option, value)));
        }
    }
    found
}

/// The proxy as the options say.
pub(crate) fn config(
    parsed: &Parsed,
    run_dir: &Path,
    with_docker: bool,
) -> Result<ProxyConfig, ProxyOptionError> {
    let given = |name| parsed.text(name).filter(|v| !v.is_empty());
    let mut config = ProxyConfig {
        attach_by_default: !parsed.flag("no-default-ipalloc"),
        user_networks: parsed.flag("attach-user-networks"),
        without_dns: parsed.flag("without-dns"),
        rewrite_hosts: !parsed.flag("no-rewrite-hosts"),
        multicast_route: !parsed.flag("no-multicast-route"),
        rewrite_inspect: parsed.flag("rewrite-inspect"),
        ..ProxyConfig::default()
    };
    config.set_hostname_rule(
        given("hostname-from-label").map(str::to_owned),
        given("hostname-match").unwrap_or("(.*)"),
        parsed.text("hostname-replacement").unwrap_or("$1"),
    )?;
    let mut endpoints = Vec::new();
    for text in parsed.list("H") {
        if text.strip_prefix("unix://").is_some_and(|path| !path.starts_with('/')) {
            return Err(ProxyOptionError::RelativePath);
        }
        let endpoint = ProxyEndpoint::parse(text);
        endpoints.push(endpoint.ok_or_else(|| ProxyOptionError::Endpoint(text.to_owned()))?);
    }
    if endpoints.is_empty() {
        // 2.8.1 names the usual one so.
        let run_dir = if run_dir == Path::new(RUN_DIR) { Path::new("/var/run/weave") } else { run_dir };
        endpoints.push(ProxyEndpoint::Unix(run_dir.join(PROXY_SOCKET)));
    }
    if parsed.flag("proxy") && with_docker {
        config.endpoints = endpoints;
    }
    if TLS_FLAGS.iter().any(|flag| parsed.flag(flag)) {
        let file = |option| {
            given(option).map(PathBuf::from).ok_or_else(|| ProxyOptionError::TlsFile(dashed(option)))
        };
        config.tls = Some(ServerTlsFiles {
            client_ca: parsed.flag("tlsverify").then(|| file("tlscacert")).transpose()?,
            certificate: file("tlscert")?,
            key: file("tlskey")?,
        });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::args;
    use crate::commands;

    fn parsed(line: &str) -> Parsed {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        args::parse(commands::find("launch").expect("a command"), &words).expect(line)
    }

    #[test]
    fn docker_behind_the_proxy() {
        for (variables, host) in [
            (&[][..], None),
            (&[("DOCKER_HOST", "")], None),
            (&[("DOCKER_HOST", "tcp://10.0.0.1:2375")], Some("tcp://10.0.0.1:2375")),
            (&[("DOCKER_HOST", "unix:///var/run/weave/weave.sock")], None),
            (&[("DOCKER_HOST", "unix:///run/weave/weave.sock"), ("ORIG_DOCKER_HOST", "")], None),
            (
                &[("DOCKER_HOST", "tcp://127.0.0.1:12375"), ("ORIG_DOCKER_HOST", "tcp://127.0.0.1:2375")],
                Some("tcp://127.0.0.1:2375"),
            ),
        ] {
            let variables: BTreeMap<_, _> = variables.iter().copied().collect();
            assert_eq!(docker_host(&variables).as_deref(), host, "{variables:?}");
        }
    }

    #[test]
    fn what_launch_adds() {
        let complete = |line: &str, variables: &[(&str, &str)]| {
            let mut parsed = parsed(line);
            let before = parsed.canonical().len();
            let variables: BTreeMap<_, _> = variables.iter().copied().collect();
            assert_eq!(super::complete(&mut parsed, true, &variables), None, "{line}");
            parsed.canonical()[before..].join(" ")
        };
        assert_eq!(complete("", &[]), "--proxy=true");
        assert_eq!(complete("--proxy=false", &[]), "");
        assert_eq!(complete("--docker-api=", &[]), "");
        assert_eq!(
            complete("--no-detect-tls", &[("DOCKER_HOST", "tcp://10.0.0.1:2375")]),
            "--proxy=true --docker-api=tcp://10.0.0.1:2375 -H=tcp://0.0.0.0:12375"
        );
        assert_eq!(
            complete("-H :1 --tlsverify --tlscacert=/ca", &[("DOCKER_CERT_PATH", "/certs")]),
            "--tlscacert=/ca --tlscert=/certs/cert.pem --tlskey=/certs/key.pem"
        );
    }

    #[test]
    fn tls_options_of_docker() {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let found = tls_options(&words(
            "-H tcp://:2376 --tlsverify --tlscacert /ca --tlscert=/cert --tlskey /key --tlsx y",
        ));
        let values: Vec<_> = found.iter().map(|(option, value)| (*option, value.as_str())).collect();
        assert_eq!(
            values,
            [("tlsverify", "true"), ("tlscacert", "/ca"), ("tlscert", "/cert"), ("tlskey", "/key")]
        );
    }

    #[test]
    fn options_of_the_proxy() {
        let config = |line: &str| super::config(&parsed(line), Path::new("/run/weave"), true);
        let shown = |line: &str| {
            config(line)
                .map(|c| c.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        assert_eq!(shown(""), Ok(vec![]));
        assert_eq!(shown("--proxy"), Ok(vec!["unix:///var/run/weave/weave.sock".to_owned()]));
        assert_eq!(
            shown("--proxy -H :9 -H /x.sock"),
            Ok(vec!["tcp://0.0.0.0:9".to_owned(), "unix:///x.sock".to_owned()])
        );
        for (line, error) in [
            ("-H unix://x", "When launching the proxy, unix sockets must be specified as an absolute path."),
            ("-H fd://3", "Invalid protocol format: \"fd://3\""),
            ("--hostname-match=(", "Could not start proxy: Incorrect hostname match '(': "),
            ("--tlsverify --tlscert c --tlskey k", "--tlscacert is missing"),
        ] {
            assert!(shown(line).is_err_and(|e| e.starts_with(error)), "{line}: {:?}", shown(line));
        }
    }
}
