//! Features, tables and settings of the kernel.

use crate::facts::Facts;
use crate::finding::Finding;
use crate::finding::Severity::{Error, Warning};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(facts.missing_features.iter().map(|feature| {
        let problem = format!("this kernel lacks {feature}");
        let remedy = remedy_for(feature).unwrap_or_else(|| "use a kernel that has it".to_owned());
        Finding::new(Error, "kernel", problem, "the daemon does not start", remedy)
    }));
    findings.extend(fastdp(facts));
    findings.extend(neighbours(facts));
    findings.extend(tracked_connections(facts));
    findings.extend(forwarding(facts));
    findings.extend(reverse_path_filter(facts));
    findings
}

/// The command that loads the module that a text names.
fn remedy_for(feature: &str) -> Option<String> {
    let (_, module) = feature.split_once("module ")?;
    Some(format!("modprobe {}", module.trim_end_matches([')', ' '])))
}

fn fastdp(facts: &Facts) -> Option<Finding> {
    let why = facts.fastdp.as_ref()?.as_ref().err()?;
    let effect = "connections without a password use warp, which takes more processor time";
    let remedy = match remedy_for(why) {
        Some(command) => format!("{command}; then 'weave stop' and 'weave launch'"),
        None => "use Linux 5.8 or later with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF, CONFIG_VXLAN and CONFIG_TUN, or 'weave launch \
                 --no-fastdp'"
            .to_owned(),
    };
    Some(Finding::new(
        Warning,
        "fastdp",
        format!("fastdp is not possible on this host: {why}"),
        effect,
        remedy,
    ))
}

fn neighbours(facts: &Facts) -> Option<Finding> {
    let (entries, max) = (facts.sysctls.neighbours, facts.sysctls.max_neighbours?);
    if facts.sysctls.neighbour_overflows == 0 && !is_nearly(entries, max) {
        return None;
    }
    let problem = match facts.sysctls.neighbour_overflows {
        0 => format!(
            "the neighbour table has {entries} entries, and holds at most {max} (net.ipv4.neigh.default.gc_thresh3)"
        ),
        _ => format!("the neighbour table overflows (net.ipv4.neigh.default.gc_thresh3 is {max})"),
    };
    let remedy = format!(
        "sysctl -w net.ipv4.neigh.default.gc_thresh3={} net.ipv4.neigh.default.gc_thresh2={}; put both into /etc/sysctl.d",
        (max * 4).max(4096),
        (max * 2).max(2048)
    );
    Some(Finding::new(
        Error,
        "neighbour-table",
        problem,
        "this host cannot send to some of its neighbours and containers",
        remedy,
    ))
}

fn tracked_connections(facts: &Facts) -> Option<Finding> {
    let (entries, max) = (facts.sysctls.connections?, facts.sysctls.max_connections?);
    // 0 is no limit.
    if max == 0 || !is_nearly(entries, max) {
        return None;
    }
    let problem =
        format!("{entries} connections are tracked, of at most {max} (net.netfilter.nf_conntrack_max)");
    let remedy = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}; put it into /etc/sysctl.d; 'conntrack -L' shows what fills the table",
        max.saturating_mul(4).max(65_536)
    );
    Some(Finding::new(Error, "conntrack-full", problem, "packets of new connections are dropped", remedy))
}

/// Whether more than nine of ten places are taken.
fn is_nearly(entries: u64, max: u64) -> bool {
    entries.saturating_mul(10) > max.saturating_mul(9)
}

/// The daemon switches it on as long as it runs.
fn forwarding(facts: &Facts) -> Option<Finding> {
    (facts.is_exposed && facts.sysctls.ip_forward == Some(0)).then(|| {
        Finding::new(
            Error,
            "ip-forward",
            "this host does not forward packets (net.ipv4.ip_forward is 0), though it has addresses of 'weave expose'",
            "containers do not reach other networks, and other networks do not reach them",
            "sysctl -w net.ipv4.ip_forward=1; look for what sets it to 0 in /etc/sysctl.conf and /etc/sysctl.d",
        )
    })
}

fn reverse_path_filter(facts: &Facts) -> Option<Finding> {
    let is_strict = |name: &&String| facts.devices.iter().any(|d| d.name == **name && d.strict_rp_filter);
    let strict: Vec<_> = facts.default_devices.iter().filter(is_strict).map(String::as_str).collect();
    if facts.default_devices.len() < 2 || strict.is_empty() {
        return None;
    }
    let names = strict.join(" ");
    let problem = format!("this host has several default routes, and a strict rp_filter on {names}");
    let effect = "packets of peers that arrive by another interface than the answers leave by are dropped";
    // The larger of the two settings counts, and 2 is loose.
    let remedy = "sysctl -w net.ipv4.conf.all.rp_filter=2; put it into /etc/sysctl.d";
    Some(Finding::new(Warning, "rp-filter", problem, effect, remedy))
}
