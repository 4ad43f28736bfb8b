//! `contrib/prometheus-rules.yml` and `contrib/grafana-dashboard.json` against the metrics of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use regex_lite::Regex;
use weave_api::Report;
use weave_api::report::{Connection, Dns, Ipam};

use crate::dns::DnsCounts;
use crate::telemetry::metrics::{self, ConnectionSeries, Snapshot};

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contrib").join(name)
}

/// A snapshot with series of every metric.
fn snapshot() -> Snapshot {
    let mut report = Report { ipam: Some(Ipam::default()), dns: Some(Dns::default()), ..Report::default() };
    report.router.connections = vec![Connection {
        state: "established".into(),
        name: "8a:3e:3e:3e:3e:02".into(),
        attrs: Some(BTreeMap::from([("mtu".to_owned(), 1410.into())])),
        ..Connection::default()
    }];
    let mut connection_series = ConnectionSeries::default();
    connection_series.add(&report);
    let drops = BTreeMap::from([("no route".to_owned(), 3)]);
    Snapshot { report, drops, dns: Some(DnsCounts::default()), connection_series, ..Snapshot::default() }
}

/// The metrics of the daemon, each with its labels.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let label = Regex::new(r#"([a-z_]+)=""#).expect("a pattern");
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in metrics::page(&snapshot(), false).lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = label.captures_iter(labels).map(|c| c[1].to_owned());
        found.entry(name.to_owned()).or_default().extend(labels);
    }
    found
}

/// The metrics in a text, each with the labels by which it is selected.
fn named(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let metric = Regex::new(r"\b((?:weave|process)_[a-z_]+)\b(?:\{([^}]*)\})?").expect("a pattern");
    let label = Regex::new(r#"([a-z_]+)(?:=~|!~|!=|=)\\?""#).expect("a pattern");
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for selector in metric.captures_iter(text) {
        let matchers = selector.get(2).map_or("", |m| m.as_str());
        let labels = label.captures_iter(matchers).map(|c| c[1].to_owned());
        // Prometheus adds these.
        let labels = labels.filter(|label| label != "job" && label != "instance");
        found.entry(selector[1].to_owned()).or_default().extend(labels);
    }
    found
}

#[test]
fn rules_and_dashboard_name_existing_metrics() {
    let dashboard = std::fs::read(contrib("grafana-dashboard.json")).expect("the dashboard");
    serde_json::from_slice::<serde_json::Value>(&dashboard).expect("JSON");
    let exported = exported();
    for file in ["prometheus-rules.yml", "grafana-dashboard.json"] {
        let text = std::fs::read_to_string(contrib(file)).expect(file);
        let named = named(&text);
        assert!(named.len() >= 10, "{file}: {named:?}");
        for (metric, labels) in named {
            let Some(has) = exported.get(&metric) else {
                panic!("{file}: no metric {metric} in {exported:?}");
            };
            assert!(labels.is_subset(has), "{file}: {metric} has labels {has:?}, not all of {labels:?}");
        }
    }
}

/// Only where Prometheus is installed.
#[test]
fn prometheus_accepts_the_rules_and_raises_the_alerts() {
    for (check, file) in [("check", "prometheus-rules.yml"), ("test", "prometheus-rules.test.yml")] {
        let Ok(output) = Command::new("promtool").args([check, "rules"]).arg(contrib(file)).output() else {
            eprintln!(
                "NOTICE: promtool is not installed (package prometheus); the alert rules are not tested"
            );
            return;
        };
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    }
}
