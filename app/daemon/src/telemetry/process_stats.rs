//! The usual `process_*` metrics, from `/proc/self`.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

/// Values that `/proc` does not contain are absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProcessStats {
    /// User and system time.
    pub(crate) cpu_seconds: Option<f64>,
    pub(crate) max_fds: Option<i64>,
    pub(crate) open_fds: Option<i64>,
    pub(crate) resident_bytes: Option<i64>,
    /// Seconds since 1970.
    pub(crate) start_time: Option<f64>,
    pub(crate) virtual_bytes: Option<i64>,
    /// -1 without a limit, as in 2.8.1.
    pub(crate) max_virtual_bytes: Option<i64>,
}

impl ProcessStats {
    pub(crate) fn now() -> ProcessStats {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let unit = |var| sysconf(var).ok().flatten().filter(|n| *n > 0);
        let mut process = ProcessStats {
            max_fds: limit(&limits, "Max open files"),
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count() as i64),
            max_virtual_bytes: limit(&limits, "Max address space"),
            ..ProcessStats::default()
        };
        process.read_stat(&stat, &boot, unit(SysconfVar::CLK_TCK), unit(SysconfVar::PAGE_SIZE));
        process
    }

    /// The name of the program may contain spaces and parentheses, so fields are counted from the last parenthesis.
    fn read_stat(&mut self, stat: &str, boot: &str, ticks: Option<i64>, page: Option<i64>) {
        let Some((_, rest)) = stat.rsplit_once(") ") else { return };
        let fields: Vec<&str> = rest.split(' ').collect();
        // proc_pid_stat(5) counts from 1; the state is the third field.
        let field = |n: usize| fields.get(n - 3)?.trim().parse::<i64>().ok();
        let seconds = |n: i64| ticks.map(|t| n as f64 / t as f64);
        self.cpu_seconds = field(14).zip(field(15)).and_then(|(user, system)| seconds(user + system));
        self.virtual_bytes = field(23);
        self.resident_bytes = field(24).zip(page).map(|(pages, size)| pages * size);
        let booted = boot.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        self.start_time = booted.zip(field(22).and_then(seconds)).map(|(boot, after)| boot + after);
    }
}

/// The soft limit with this name.
fn limit(limits: &str, name: &str) -> Option<i64> {
    let soft = limits.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?;
    if soft == "unlimited" { Some(-1) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_of_proc_files() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 1000 8192 3 18446744073709551615 1\n";
        let mut process = ProcessStats::default();
        process.read_stat(stat, "cpu 1\nbtime 1700000000\n", Some(100), Some(4096));
        let expected = ProcessStats {
            cpu_seconds: Some(2.0),
            resident_bytes: Some(12288),
            start_time: Some(1_700_000_010.0),
            virtual_bytes: Some(8192),
            ..ProcessStats::default()
        };
        assert_eq!(process, expected);
        process.read_stat("garbage", "", None, None);
        let limits = "Max open files            1024                 4096                 files\n\
                      Max address space         unlimited            unlimited            bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024));
        assert_eq!(limit(limits, "Max address space"), Some(-1));
        assert_eq!(limit(limits, "Max nothing"), None);
    }

    #[test]
    fn all_values_of_this_process_are_known() {
        let p = ProcessStats::now();
        assert!(p.cpu_seconds.is_some() && p.max_fds.is_some() && p.max_virtual_bytes.is_some(), "{p:?}");
        assert!(p.open_fds.is_some_and(|n| n >= 3) && p.resident_bytes.is_some_and(|n| n > 1 << 20), "{p:?}");
        assert!(p.start_time.is_some_and(|at| at > 1.6e9) && p.virtual_bytes > p.resident_bytes, "{p:?}");
    }
}
