//! `GET /metrics` (docs/spec/cli.md 10): metrics of 2.8.1 with their names, labels and help texts, and some of our own: the reason
//! for the overlay of a connection, drops by reason, and what the DNS server did.
//!
//! A page is computed from a [`Snapshot`] for each request. A service that is off has no series; 2.8.1 crashed in that case.
//! The number of connections has a series for each state and overlay that connections have or had at an earlier request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use weave_api::Report;
use weave_api::report::{Connection, Dns, Ipam, Router};

use crate::dns::DnsCounts;
use crate::telemetry::process_stats::ProcessStats;

/// Format that every version of Prometheus understands.
pub(crate) const TEXT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Format that Prometheus prefers, and requests in `Accept`.
pub(crate) const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const ENCRYPTED: [&str; 2] = ["", "yes"];

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub report: Report,
    /// Dropped frames and datagrams by reason, including reasons that did not occur.
    pub drops: BTreeMap<String, u64>,
    pub traffic: Traffic,
    /// `None` if names are not served.
    pub dns: Option<DnsCounts>,
    pub connection_series: ConnectionSeries,
}

/// The combinations of state and overlay with which connections were reported since the start.
#[derive(Clone, Debug, Default)]
pub struct ConnectionSeries(BTreeSet<(String, String)>);

impl ConnectionSeries {
    /// Adds those of the connections of a report. 2.8.1 has no series for a target that is not dialled yet.
    pub(crate) fn add(&mut self, report: &Report) {
        let counted = report.router.connections.iter().filter(|c| c.state != "waiting");
        self.0.extend(counted.map(|c| (c.state.clone(), overlay(c).to_owned())));
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames from the bridge; one that segmentation offload made large counts once.
    pub frames_in: u64,
    /// Frames to the bridge.
    pub frames_out: u64,
    /// Datagrams from other hosts.
    pub datagrams_in: u64,
    pub bytes_in: u64,
    /// Datagrams to other hosts.
    pub datagrams_out: u64,
    pub bytes_out: u64,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Int(i64),
    Float(f64),
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    series: Vec<(Labels, Value)>,
}

#[derive(Debug, Default)]
struct Families(Vec<Family>);

impl Families {
    fn gauges(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, Value)>) {
        self.0.push(Family { name, help, kind: MetricType::Gauge, series });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, value: impl TryInto<i64>) {
        self.gauges(name, help, vec![(Vec::new(), int(value))]);
    }

    /// `name` without `_total`.
    fn counters(&mut self, name: &'static str, help: &'static str, series: Vec<(Labels, Value)>) {
        self.0.push(Family { name, help, kind: MetricType::Counter, series });
    }

    fn connections(&mut self, report: &Report, known: &ConnectionSeries) {
        let connections = &report.router.connections;
        let mut counts: BTreeMap<(&str, &str, &str), i64> = BTreeMap::new();
        for (state, kind) in &known.0 {
            counts.extend(ENCRYPTED.map(|e| ((e, state.as_str(), kind.as_str()), 0)));
        }
        for c in connections {
            if let Some(n) = counts.get_mut(&(encryption(c), &c.state, overlay(c))) {
                *n += 1;
            }
        }
        let series = counts
            .into_iter()
            .map(|((e, state, kind), n)| {
                (labels([("encryption", e), ("state", state), ("type", kind)]), Value::Int(n))
            })
            .collect();
        self.gauges("weave_connections", "Number of peer-to-peer connections.", series);
        let live = || connections.iter().filter(|c| !c.name.is_empty());
        let of_peer = |c: &Connection| [("address", c.address.clone()), ("peer", c.name.clone())];
        let overlays = live()
            .map(|c| {
                let mut labels = of_peer(c).to_vec();
                labels.insert(1, ("encryption", encryption(c).to_owned()));
                labels.insert(2, ("nickname", c.nick_name.clone()));
                labels.push(("reason", c.overlay_reason.clone().unwrap_or_default()));
                labels.push(("state", c.state.clone()));
                labels.push(("type", overlay(c).to_owned()));
                (labels, Value::Int(1))
            })
            .collect();
        let help = "Overlay of each connection, and why it is not a better one.";
        self.gauges("weave_connection_overlay", help, overlays);
        let mtus = live()
            .filter_map(|c| {
                let mtu = c.attrs.as_ref()?.get("mtu")?.as_i64()?;
                Some((of_peer(c).to_vec(), Value::Int(mtu)))
            })
            .collect();
        self.gauges("weave_connection_mtu_bytes", "Largest packet that a connection carries whole.", mtus);
        self.counters(
            "weave_connection_terminations",
            "Number of peer-to-peer connections terminated.",
            vec![(Vec::new(), int(report.router.termination_count))],
        );
    }

    fn ipam(&mut self, ipam: &Ipam) {
        let used = vec![(labels([("state", "local-used")]), int(ipam.active_ips))];
        self.gauges("weave_ips", "Number of IP addresses.", used);
        self.gauge("weave_max_ips", "Size of IP address space used by allocator.", ipam.range_num_ips);
        let lost = || ipam.entries.iter().filter(|e| !e.is_known_peer);
        let owners: BTreeSet<_> = lost().map(|e| &e.peer).collect();
        self.gauge("weave_ipam_unreachable_count", "Number of unreachable peers.", owners.len());
        let size: u64 = lost().map(|e| e.size).sum();
        let percent = size as f64 * 100.0 / ipam.range_num_ips.max(1) as f64;
        self.gauges(
            "weave_ipam_unreachable_percentage",
            "Percentage of IP addresses owned  by unreachable peers.",
            vec![(Vec::new(), float(percent))],
        );
        self.gauge(
            "weave_ipam_pending_allocates",
            "Number of pending allocates.",
            ipam.pending_allocates.len(),
        );
        self.gauge("weave_ipam_pending_claims", "Number of pending claims.", ipam.pending_claims.len());
    }

    fn dns(&mut self, dns: &Dns, own: &str) {
        let active = dns.entries.iter().filter(|e| e.tombstone == 0 && e.origin == own).count();
        self.gauge("weave_dns_entries", "Number of DNS entries.", active);
        let live = dns.entries.iter().filter(|e| e.tombstone == 0).count();
        let states = [("live", live), ("tombstone", dns.entries.len() - live)];
        let series = states.map(|(state, n)| (labels([("state", state)]), int(n))).to_vec();
        self.gauges("weave_dns_registry_entries", "Number of DNS entries of all peers.", series);
    }

    fn dns_server(&mut self, counts: &DnsCounts) {
        let by = |label, counts: &[(&str, u64)]| {
            counts.iter().map(|(value, n)| (labels([(label, *value)]), int(*n))).collect()
        };
        let forwarder = &counts.forwarder;
        let outcomes = [
            ("address", counts.addresses),
            ("pointer", counts.pointers),
            ("no data", counts.no_data),
            ("no such name", counts.no_such_name),
            ("malformed", counts.malformed),
            ("not allowed", counts.not_allowed),
            ("queue full", counts.queue_full),
            ("dropped", counts.dropped),
            ("forwarded", forwarder.queries),
        ];
        self.counters("weave_dns_queries", "DNS queries by what became of them.", by("outcome", &outcomes));
        let failures = [("no answer", forwarder.failures), ("over limit", forwarder.over_limit)];
        let help = "Forwarded DNS queries that were answered with an error of this server.";
        self.counters("weave_dns_forwarding_failures", help, by("reason", &failures));
        for (name, help, n) in [
            (
                "weave_dns_cache_hits",
                "Forwarded DNS queries that were answered from the cache.",
                forwarder.cache_hits,
            ),
            ("weave_dns_upstream_queries", "DNS queries to the servers of the host.", forwarder.exchanges),
            (
                "weave_dns_upstream_failures",
                "DNS queries to the servers of the host without an answer.",
                forwarder.failed_exchanges,
            ),
            (
                "weave_dns_refused_connections",
                "TCP connections that the DNS server refused because of a limit.",
                counts.refused_connections,
            ),
        ] {
            self.counters(name, help, vec![(Vec::new(), int(n))]);
        }
    }

    fn traffic(&mut self, traffic: Traffic, drops: &BTreeMap<String, u64>) {
        let both = |inward, outward| {
            vec![
                (labels([("direction", "in")]), int::<u64>(inward)),
                (labels([("direction", "out")]), int::<u64>(outward)),
            ]
        };
        let t = traffic;
        let help =
            "Frames from and to the local bridge; one that segmentation offload made large counts once.";
        self.counters("weave_frames", help, both(t.frames_in, t.frames_out));
        let help = "Datagrams from and to other hosts.";
        self.counters("weave_datagrams", help, both(t.datagrams_in, t.datagrams_out));
        let help = "Bytes in datagrams from and to other hosts.";
        self.counters("weave_datagram_bytes", help, both(t.bytes_in, t.bytes_out));
        let dropped = drops.iter().map(|(reason, n)| (labels([("reason", reason)]), int(*n))).collect();
        self.counters("weave_drops", "Frames and datagrams that were not delivered.", dropped);
    }

    fn macs(&mut self, router: &Router) {
        self.gauge("weave_macs", "Number of Ethernet addresses in the table.", router.macs.len());
        let displaced = router.mac_table.as_ref().map_or(0, |table| table.displaced);
        let help = "Ethernet addresses displaced because the table was full.";
        self.counters("weave_macs_displaced", help, vec![(Vec::new(), int(displaced))]);
    }

    fn process(&mut self, p: &ProcessStats) {
        let one = |value: Option<Value>| value.map(|v| (Vec::new(), v)).into_iter().collect::<Vec<_>>();
        self.counters(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds.",
            one(p.cpu_seconds.map(float)),
        );
        for (name, help, value) in [
            ("process_max_fds", "Maximum number of open file descriptors.", p.max_fds.map(Value::Int)),
            ("process_open_fds", "Number of open file descriptors.", p.open_fds.map(Value::Int)),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                p.resident_bytes.map(Value::Int),
            ),
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                p.start_time.map(float),
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
                p.virtual_bytes.map(Value::Int),
            ),
            (
                "process_virtual_memory_max_bytes",
                "Maximum amount of virtual memory available in bytes.",
                p.max_virtual_bytes.map(Value::Int),
            ),
        ] {
            self.gauges(name, help, one(value));
        }
    }
}

fn overlay(c: &Connection) -> &str {
    c.attrs.as_ref().and_then(|a| a.get("name")?.as_str()).unwrap_or("unknown")
}

fn encryption(c: &Connection) -> &'static str {
    let encrypted = c.attrs.as_ref().and_then(|a| a.get("encrypted")?.as_bool()).unwrap_or(false);
    ENCRYPTED[usize::from(encrypted)]
}

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.into_iter().map(|(k, v)| (k, v.to_owned())).collect()
}

fn int<N: TryInto<i64>>(n: N) -> Value {
    Value::Int(n.try_into().unwrap_or(i64::MAX))
}

/// Whole numbers are printed without a fraction.
fn float(n: f64) -> Value {
    if n.fract() == 0.0 && n.abs() < 9e15 { Value::Int(n as i64) } else { Value::Float(n) }
}

fn encode(kind: MetricType, value: Value, to: MetricEncoder<'_>) -> fmt::Result {
    match (kind, value) {
        (MetricType::Counter, Value::Int(n)) => ConstCounter::new(u64::try_from(n).unwrap_or(0)).encode(to),
        (MetricType::Counter, Value::Float(n)) => ConstCounter::new(n).encode(to),
        (_, Value::Int(n)) => ConstGauge::new(n).encode(to),
        (_, Value::Float(n)) => ConstGauge::new(n).encode(to),
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in self.0.iter().filter(|f| !f.series.is_empty()) {
            let mut encoder = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            if let [(labels, value)] = family.series.as_slice()
                && labels.is_empty()
            {
                encode(family.kind, *value, encoder)?;
                continue;
            }
            for (labels, value) in &family.series {
                encode(family.kind, *value, encoder.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

/// The page in the OpenMetrics format, or in the format 0.0.4 of 2.8.1. In the latter, the description of a counter has the suffix
/// `_total`, and there is no end mark.
pub(crate) fn page(snapshot: &Snapshot, open_metrics: bool) -> String {
    let mut families = Families::default();
    let report = &snapshot.report;
    families.process(&ProcessStats::now());
    families.connections(report, &snapshot.connection_series);
    if let Some(ipam) = &report.ipam {
        families.ipam(ipam);
    }
    if let Some(dns) = &report.dns {
        families.dns(dns, &report.router.name);
    }
    if let Some(counts) = &snapshot.dns {
        families.dns_server(counts);
    }
    if let Some(flows) = report.router.overlay_diagnostics.get("fastdp").and_then(|f| f.get("Flows")) {
        let count = flows.as_array().map_or(0, Vec::len);
        families.gauge("weave_flows", "Number of FastDP flows.", count);
    }
    families.traffic(snapshot.traffic, &snapshot.drops);
    families.macs(&report.router);
    families.0.sort_by_key(|f| f.name);
    let counters: Vec<_> =
        families.0.iter().filter(|f| matches!(f.kind, MetricType::Counter)).map(|f| f.name).collect();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(families));
    let mut page = String::new();
    // Writing to a `String` does not fail.
    let _ = text::encode(&mut page, &registry);
    if open_metrics { page } else { to_text_format(&page, &counters) }
}

fn to_text_format(page: &str, counters: &[&str]) -> String {
    let mut out = String::with_capacity(page.len() + 8 * counters.len());
    for line in page.lines().filter(|l| *l != "# EOF") {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|head| {
            let (name, rest) = line.strip_prefix(head)?.split_once(' ')?;
            counters.contains(&name).then(|| format!("{head}{name}_total {rest}"))
        });
        out.push_str(described.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use weave_api::report::DnsEntry;
    use weave_dns::ForwarderStats;

    use super::*;

    fn vector(path: &str) -> String {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli");
        std::fs::read_to_string(format!("{root}/{path}")).expect(path)
    }

    /// Parses values, so that `1.048576e+06` equals `1048576`.
    fn samples(page: &str) -> BTreeMap<&str, f64> {
        page.lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty())
            .filter_map(|l| l.rsplit_once(' '))
            .map(|(series, value)| (series, value.parse().expect(series)))
            .collect()
    }

    fn snapshot(report: Report) -> Snapshot {
        let mut connection_series = ConnectionSeries::default();
        connection_series.add(&report);
        Snapshot { report, connection_series, ..Snapshot::default() }
    }

    fn family(series: &str) -> &str {
        series.split('{').next().unwrap_or(series)
    }

    /// Compares each recorded page with the page for the report that was recorded with it. Series of the Go runtime are left out;
    /// the metrics of the original have its series and no others.
    #[test]
    fn pages_have_the_series_of_the_original() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli");
        let mut pages = 0;
        for case in std::fs::read_dir(root).expect("vectors") {
            let case = case.expect("readable").file_name().into_string().expect("a name");
            if !std::path::Path::new(root).join(&case).join("metrics.txt").exists() {
                continue;
            }
            let theirs = vector(&format!("{case}/metrics.txt"));
            let report = Report::from_json(&vector(&format!("{case}/report.json"))).expect("a report");
            let ours = page(&snapshot(report), false);
            let (have, expected) = (samples(&ours), samples(&theirs));
            let families: BTreeSet<&str> = expected.keys().map(|series| family(series)).collect();
            for series in have.keys().filter(|series| families.contains(family(series))) {
                assert!(expected.contains_key(series), "{case}: {series} is not in\n{theirs}");
            }
            for (series, value) in expected {
                if series.starts_with("go_") {
                    continue;
                }
                let ours = have.get(series).unwrap_or_else(|| panic!("{case}: no {series} in\n{ours}"));
                // Page and report were recorded at slightly different times.
                let counts = series.starts_with("process_") || series.ends_with("_total");
                assert!(counts || *ours == value, "{case}: {series} {ours} {value}");
            }
            for line in theirs.lines().filter(|l| l.starts_with('#') && !l.contains(" go_")) {
                assert!(ours.lines().any(|l| l == line), "{case}: {line}");
            }
            pages += 1;
        }
        assert!(pages >= 10, "{pages}");
    }

    #[test]
    fn services_that_are_off_have_no_series() {
        let report = Report::from_json(&vector("no-ipam-no-dns/report.json")).expect("a report");
        let page = page(&snapshot(report), false);
        for absent in ["weave_ip", "weave_max_ips", "weave_dns", "weave_flows", "# EOF"] {
            assert!(!page.contains(absent), "{absent} in\n{page}");
        }
    }

    #[test]
    fn series_of_connections_stay_once_they_were_other_than_zero() {
        let mut known = ConnectionSeries::default();
        let mut report = Report::default();
        let connection = |state: &str| Connection { state: state.to_owned(), ..Connection::default() };
        let series = |known: &ConnectionSeries, report: &Report| {
            let snapshot =
                Snapshot { report: report.clone(), connection_series: known.clone(), ..Snapshot::default() };
            let page = page(&snapshot, false);
            let lines = page.lines().filter(|l| l.starts_with("weave_connections{encryption=\"\""));
            lines.map(|l| l.replace("weave_connections{encryption=\"\",", "")).collect::<Vec<_>>()
        };
        known.add(&report);
        assert!(series(&known, &report).is_empty());
        report.router.connections = vec![connection("connecting"), connection("waiting")];
        known.add(&report);
        assert_eq!(series(&known, &report), ["state=\"connecting\",type=\"unknown\"} 1"]);
        report.router.connections = vec![connection("failed")];
        known.add(&report);
        let expected = ["state=\"connecting\",type=\"unknown\"} 0", "state=\"failed\",type=\"unknown\"} 1"];
        assert_eq!(series(&known, &report), expected);
    }

    #[test]
    fn series_that_the_original_lacked() {
        let mut snapshot = Snapshot::default();
        let attrs = BTreeMap::from([
            ("name".to_owned(), "sleeve".into()),
            ("mtu".to_owned(), 1410.into()),
            ("encrypted".to_owned(), true.into()),
        ]);
        snapshot.report.router.connections = vec![Connection {
            address: "10.0.0.2:6783".into(),
            state: "established".into(),
            attrs: Some(attrs),
            overlay_reason: Some("sleeve: peer has \"no\" better".into()),
            name: "8a:3e:3e:3e:3e:02".into(),
            nick_name: "host2".into(),
            ..Connection::default()
        }];
        snapshot.drops = BTreeMap::from([("no route".to_owned(), 3), ("too big".to_owned(), 0)]);
        snapshot.traffic = Traffic { bytes_out: 77, ..Traffic::default() };
        let forwarder = ForwarderStats { queries: 5, over_limit: 2, ..ForwarderStats::default() };
        snapshot.dns = Some(DnsCounts { no_such_name: 4, forwarder, ..DnsCounts::default() });
        let entry = |tombstone| DnsEntry { tombstone, ..DnsEntry::default() };
        snapshot.report.dns = Some(Dns { entries: [0, 0, 9].map(entry).to_vec(), ..Dns::default() });
        snapshot.connection_series.add(&snapshot.report);
        let text = page(&snapshot, false);
        for line in [
            "weave_connections{encryption=\"yes\",state=\"established\",type=\"sleeve\"} 1",
            "weave_connection_overlay{address=\"10.0.0.2:6783\",encryption=\"yes\",nickname=\"host2\",\
             peer=\"8a:3e:3e:3e:3e:02\",reason=\"sleeve: peer has \\\"no\\\" better\",state=\"established\",\
             type=\"sleeve\"} 1",
            "weave_connection_mtu_bytes{address=\"10.0.0.2:6783\",peer=\"8a:3e:3e:3e:3e:02\"} 1410",
            "# TYPE weave_drops_total counter",
            "weave_drops_total{reason=\"no route\"} 3",
            "weave_drops_total{reason=\"too big\"} 0",
            "weave_datagram_bytes_total{direction=\"out\"} 77",
            "weave_dns_registry_entries{state=\"live\"} 2",
            "weave_dns_registry_entries{state=\"tombstone\"} 1",
            "weave_dns_queries_total{outcome=\"no such name\"} 4",
            "weave_dns_queries_total{outcome=\"forwarded\"} 5",
            "weave_dns_forwarding_failures_total{reason=\"over limit\"} 2",
            "weave_dns_cache_hits_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let open = page(&snapshot, true);
        assert!(open.ends_with("# EOF\n") && open.contains("# TYPE weave_drops counter\n"), "{open}");
        assert!(open.contains("weave_drops_total{reason=\"no route\"} 3\n"), "{open}");
    }
}
