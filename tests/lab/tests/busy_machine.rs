//! Two daemons beside many programs that use the processor all the time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use weave_lab::{Host, Lab, Topology, eventually, throughout};

use crate::common::addresses::long_tests_enabled;
use crate::common::*;

const LOOPS: u32 = 120;
/// Of one processor, for daemons and loops together: the other tests need the rest.
const SHARE: f64 = 0.5;

/// A group of processes with a limit on their processor time.
struct LimitedGroup(PathBuf);

impl LimitedGroup {
    /// `None` after a notice if the kernel has no such groups.
    fn new(lab: &Lab, share: f64) -> Option<LimitedGroup> {
        const PERIOD: u32 = 100_000;
        let quota = (f64::from(PERIOD) * share) as u32;
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let parent = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpu" };
        let group = LimitedGroup(Path::new(parent).join(format!("weave-lab-{}", lab.id())));
        let made = std::fs::create_dir(&group.0).and_then(|()| {
            if unified {
                std::fs::write(group.0.join("cpu.max"), format!("{quota} {PERIOD}"))
            } else {
                std::fs::write(group.0.join("cpu.cfs_period_us"), PERIOD.to_string())?;
                std::fs::write(group.0.join("cpu.cfs_quota_us"), quota.to_string())
            }
        });
        match made {
            Ok(()) => Some(group),
            Err(e) => {
                eprintln!("NOTICE: no busy machine is simulated: {}: {e}", group.0.display());
                None
            }
        }
    }

    fn processes(&self) -> String {
        format!("{}/cgroup.procs", self.0.display())
    }
}

impl Drop for LimitedGroup {
    fn drop(&mut self) {
        let parent = self.0.with_file_name("cgroup.procs");
        for pid in std::fs::read_to_string(self.processes()).unwrap_or_default().lines() {
            // It may have ended.
            let _ = std::fs::write(&parent, pid);
        }
        // The kernel may still be removing processes.
        eventually("the group to be empty", SHORT_TIMEOUT, || match std::fs::remove_dir(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.to_string()),
            _ => Ok(()),
        });
    }
}

/// What must not change: the connections with their ports and states, their path MTU, and how many have ended.
fn connections(host: &Host) -> Result<Vec<String>, String> {
    let report = host.report()?;
    let router = &report["Router"];
    let list = router["Connections"].as_array().ok_or("no connections")?;
    let of = |connection: &serde_json::Value| {
        let mtu = &connection["Attrs"]["mtu"];
        format!("{} {} mtu {mtu}", connection["Address"], connection["State"])
    };
    let mut list: Vec<String> = list.iter().map(of).collect();
    list.sort();
    list.push(format!("{} have ended", router["TerminationCount"]));
    Ok(list)
}

#[test]
fn busy_loops_change_neither_mtu_nor_connections() {
    let Some(lab) = Lab::start("busy", &Topology::hosts(2)) else { return };
    let Some(group) = LimitedGroup::new(&lab, SHARE) else { return };
    launch_mesh(&lab, &["--overlays=sleeve"]);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let members = attach_each(&[h1, h2]);
    let [a, b] = &members[..] else { unreachable!() };
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    for host in [h1, h2] {
        host.wait("the MTU", SHORT_TIMEOUT, || {
            let status = host.weave_ok(&["status", "connections"]);
            if status.contains("mtu=1438") { Ok(()) } else { Err(status) }
        });
    }
    let before = [h1, h2].map(|host| connections(host).unwrap());
    let pinger = a.container.pinging(&b.ip, 100);
    let enter = |host: &Host| {
        host.sh(&format!("echo {} > {}", host.daemon_pid().unwrap(), group.processes()));
    };
    [h1, h2].into_iter().for_each(enter);
    let script = format!(
        "echo $$ > {}; for i in $(seq {LOOPS}); do (while :; do :; done) & done; echo ready; wait",
        group.processes()
    );
    let loops = h1.background(&["sh", "-c", &script], true).unwrap();
    let time = Duration::from_secs(if long_tests_enabled() { 300 } else { 20 });
    throughout("the same connections", time, || {
        for (host, before) in [h1, h2].into_iter().zip(&before) {
            let now = connections(host)?;
            if now != *before {
                return Err(format!("{}: {now:#?} instead of {before:#?}", host.name()));
            }
        }
        Ok(())
    });
    drop(loops);
    let pings = pinger.finish();
    println!("{LOOPS} loops for {time:?}: {pings:?}");
    drop(group);
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    for (host, before) in [h1, h2].into_iter().zip(before) {
        assert_eq!(connections(host).unwrap(), before, "{}", host.name());
    }
}
