//! `weave doctor`: what is wrong on this host and with its connections, what it leads to, and what mends it.

use std::fmt::Write;

use serde::Serialize;
use weave_daemon::pid_file;
use weave_doctor::{Finding, Settings, Severity, best_overlay, check, collect};
use weave_runtime::Docker;

use crate::args::Parsed;
use crate::env::Env;
use crate::{Failure, cni, netavark, options, print, proxy_options, query};

/// `weave doctor --json`. Keys are only added, and every key is always there.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    errors: usize,
    warnings: usize,
    /// The best overlay that this host can use; `null` if that is not known.
    overlay: Option<&'static str>,
    findings: &'a [Finding],
}

pub(crate) fn run(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let facts = collect(settings(parsed, env)?);
    let (findings, overlay) = (check(&facts), best_overlay(&facts));
    let (errors, warnings) = (count(&findings, Severity::Error), count(&findings, Severity::Warning));
    if parsed.flag("json") {
        let document = Document { errors, warnings, overlay, findings: &findings };
        print(&(serde_json::to_string_pretty(&document)? + "\n"))?;
    } else {
        print(&text(&findings, overlay))?;
    }
    match (errors, warnings) {
        (0, 0) => Ok(()),
        (0, _) => Err(Failure::new(1, "")),
        _ => Err(Failure::new(2, "")),
    }
}

/// What `weave doctor` prints.
pub(crate) fn examine(settings: Settings) -> String {
    let facts = collect(settings);
    text(&check(&facts), best_overlay(&facts))
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

pub(crate) fn settings(parsed: &Parsed, env: &dyn Env) -> Result<Settings, Failure> {
    let mut planned = parsed.clone();
    if parsed.text("ipalloc-range").is_none() {
        planned.set("ipalloc-range", options::DEFAULT_RANGE);
    }
    let config = options::config(&planned, env, "")?;
    let plugins = cni::install::plugins(env).map(|path| (path, "weave setup-cni"));
    Ok(Settings {
        client: query::client(parsed, env),
        daemon_runs: pid_file::holder(&config.pid_file()).is_some(),
        port: config.port,
        bridge: config.bridge,
        range: config.allocation.map(|allocation| allocation.range.cidr()),
        peers: config.peers,
        directories: vec![config.state_dir, config.run_dir],
        docker: (
            config.legacy.docker.unwrap_or_else(|| Docker::at(None)),
            proxy_options::docker_host(env).is_some(),
        ),
        links: plugins.into_iter().chain([(netavark::PLUGIN.into(), "weave setup-podman")]).collect(),
    })
}

fn text(findings: &[Finding], overlay: Option<&str>) -> String {
    let mut text = String::new();
    for finding in findings {
        let severity = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        };
        let Finding { check, problem, effect, remedy, .. } = finding;
        let _ = writeln!(text, "{severity:<8} {check}: {problem}");
        let _ = writeln!(text, "         leads to: {effect}");
        let _ = writeln!(text, "         remedy:   {remedy}\n");
    }
    let number = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    text.push_str(&match (count(findings, Severity::Error), count(findings, Severity::Warning)) {
        (0, 0) => "no problems found".to_owned(),
        (errors, warnings) => format!("{}, {}", number(errors, "error"), number(warnings, "warning")),
    });
    if let Some(overlay) = overlay {
        let _ = write!(text, "; best overlay of this host: {overlay}");
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_as_text_and_json() {
        let finding = |severity| Finding {
            severity,
            check: "udp-blocked",
            problem: "UDP does not pass".to_owned(),
            effect: "no connection".to_owned(),
            remedy: "open the port".to_owned(),
        };
        let findings = [finding(Severity::Error), finding(Severity::Notice)];
        assert_eq!(
            text(&findings, Some("warp")),
            "ERROR    udp-blocked: UDP does not pass\n         leads to: no connection\n         remedy:   open the port\n\n\
             NOTICE   udp-blocked: UDP does not pass\n         leads to: no connection\n         remedy:   open the port\n\n\
             1 error, 0 warnings; best overlay of this host: warp\n"
        );
        assert_eq!(text(&[], None), "no problems found\n");
        let document = Document { errors: 1, warnings: 0, overlay: None, findings: &findings[..1] };
        assert_eq!(
            serde_json::to_value(&document).expect("JSON"),
            serde_json::json!({ "Errors": 1, "Warnings": 0, "Overlay": null, "Findings": [{
                "Severity": "error", "Check": "udp-blocked", "Problem": "UDP does not pass", "Effect": "no connection",
                "Remedy": "open the port",
            }] })
        );
    }
}
