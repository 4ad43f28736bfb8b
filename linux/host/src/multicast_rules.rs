//! The firewall rules inside a container: multicast is accepted from the container's own subnets only
//! (docs/spec/containers.md D.2 steps 6 and 8), in the form that 2.8.1 writes and recognises:
//!
//! ```text
//! -A INPUT -s 10.32.0.0/12 -d 224.0.0.0/4 -i ethwe -j ACCEPT      one per subnet, inserted at the top
//! -A INPUT -d 224.0.0.0/4 -i ethwe -j DROP                        one, appended
//! ```
//!
//! The host's `iptables` does it, run inside the namespace. Where there is none, `nft` writes the same rules into the
//! table and chain that `iptables` (nft variant) would use.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use weave_types::Cidr;

use crate::fault_injection;

const MULTICAST: &str = "224.0.0.0/4";
/// Seconds that `iptables` waits for another one.
const LOCK_SECONDS: &str = "5";
/// Exit status of `iptables` for trouble that may pass: the lock, memory.
const RESOURCE_PROBLEM: i32 = 4;
const ATTEMPTS: usize = 3;

/// What happens to multicast from the weave network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// From that subnet (host bits zero): accepted.
    Accept(Cidr),
    /// From anywhere else: dropped.
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Iptables,
    Nft,
}

/// A program that changes packet filters. All its work concerns the network namespace of the calling thread.
#[derive(Clone, Debug)]
pub struct Firewall {
    program: PathBuf,
    dialect: Dialect,
}

/// Why rules could not be read or changed. Never the reason for a failed attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallError(pub(crate) String);

impl fmt::Display for FirewallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FirewallError {}

impl Firewall {
    /// The program to make rules with: `iptables`, else `nft`.
    pub fn find() -> Result<Firewall, FirewallError> {
        let found = Firewall::among(&[("iptables", Dialect::Iptables), ("nft", Dialect::Nft)]);
        found.into_iter().next().ok_or_else(|| FirewallError("neither iptables nor nft is installed".into()))
    }

    /// `nft`, if it is installed.
    pub fn nft() -> Option<Firewall> {
        Firewall::among(&[("nft", Dialect::Nft)]).pop()
    }

    /// Every program that may know of rules in this namespace: the same rules may have been made by the other variant of
    /// `iptables` (2.8.1 brought its own).
    pub fn all() -> Vec<Firewall> {
        let mut all = Firewall::among(&[("iptables", Dialect::Iptables)]);
        // Asking the legacy variant creates its tables, so only where they exist.
        let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
        if legacy.is_ok_and(|names| names.lines().any(|n| n == "filter")) {
            all.extend(Firewall::among(&[("iptables-legacy", Dialect::Iptables)]));
        }
        if all.is_empty() {
            all = Firewall::among(&[("nft", Dialect::Nft)]);
        } else {
            all.extend(Firewall::among(&[("iptables-nft", Dialect::Iptables)]));
        }
        // `iptables` is usually one of the other two under another name.
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|f| seen.insert(f.version()));
        all
    }

    /// Whether this is `nft`, with a syntax of its own.
    pub(crate) fn speaks_nft(&self) -> bool {
        self.dialect == Dialect::Nft
    }

    fn among(candidates: &[(&str, Dialect)]) -> Vec<Firewall> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&path)
            .chain(["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from))
            .collect();
        candidates
            .iter()
            .filter_map(|(name, dialect)| {
                let program = folders.iter().map(|f| f.join(name)).find(|p| is_executable(p))?;
                Some(Firewall { program, dialect: *dialect })
            })
            .collect()
    }

    /// Adds the rule unless it is there: ACCEPT at the top, DROP at the end. `true` if it was added.
    pub fn ensure(&self, interface: &str, rule: Rule) -> Result<bool, FirewallError> {
        if self.rules(interface)?.contains(&rule) {
            return Ok(false);
        }
        match self.dialect {
            Dialect::Iptables => {
                let place: &[&str] = match rule {
                    Rule::Accept(_) => &["-I", "INPUT", "1"],
                    Rule::Drop => &["-A", "INPUT"],
                };
                let spec = iptables_spec(interface, rule);
                self.run(&[place, &strs(&spec)].concat())?;
            }
            Dialect::Nft => {
                self.run(&["add", "table", "ip", "filter"])?;
                self.run(&[
                    "add chain ip filter INPUT { type filter hook input priority filter; policy accept; }",
                ])?;
                let verb = if rule == Rule::Drop { "add" } else { "insert" };
                self.run(&[&format!("{verb} rule ip filter INPUT {}", nft_spec(interface, rule))])?;
            }
        }
        Ok(true)
    }

    /// Removes the rule, however often it is there. `true` if it was.
    pub fn remove(&self, interface: &str, rule: Rule) -> Result<bool, FirewallError> {
        let mut removed = false;
        for (present, handle) in self.rules_with_handles(interface)? {
            if present != rule {
                continue;
            }
            match self.dialect {
                Dialect::Iptables => {
                    let spec = iptables_spec(interface, rule);
                    self.run(&[&["-D", "INPUT"], &strs(&spec)[..]].concat())?;
                }
                Dialect::Nft => {
                    self.run(&["delete", "rule", "ip", "filter", "INPUT", "handle", &handle])?;
                }
            }
            removed = true;
        }
        Ok(removed)
    }

    /// The rules of this kind that `interface` has, in order.
    pub fn rules(&self, interface: &str) -> Result<Vec<Rule>, FirewallError> {
        Ok(self.rules_with_handles(interface)?.into_iter().map(|(rule, _)| rule).collect())
    }

    fn rules_with_handles(&self, interface: &str) -> Result<Vec<(Rule, String)>, FirewallError> {
        match self.dialect {
            Dialect::Iptables => {
                let listing = self.run(&["-S", "INPUT"])?;
                Ok(listing
                    .lines()
                    .filter_map(|l| Some((parse_iptables(l, interface)?, String::new())))
                    .collect())
            }
            Dialect::Nft => {
                // No table yet, or no chain: no rules.
                let tables = self.run(&["-a", "list", "ruleset"])?;
                Ok(nft_input(&tables).filter_map(|l| parse_nft(l, interface)).collect())
            }
        }
    }

    fn version(&self) -> String {
        self.run_once(&["--version"]).map_or_else(|_| self.program.display().to_string(), |(_, text)| text)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, FirewallError> {
        let wait: &[&str] = if self.dialect == Dialect::Iptables { &["-w", LOCK_SECONDS] } else { &[] };
        let arguments = [wait, arguments].concat();
        for attempt in 1.. {
            match self.run_once(&arguments) {
                Err((Some(RESOURCE_PROBLEM), _)) if attempt < ATTEMPTS => {}
                Ok((_, output)) => return Ok(output),
                Err((_, text)) => {
                    let name = self.program.file_name().unwrap_or_default().to_string_lossy();
                    return Err(FirewallError(format!("{name} {}: {text}", arguments.join(" "))));
                }
            }
        }
        unreachable!("the loop returns")
    }

    fn run_once(&self, arguments: &[&str]) -> Result<(Option<i32>, String), (Option<i32>, String)> {
        fault_injection::fail_point(&arguments.join(" ")).map_err(|e| (None, e.desc().to_owned()))?;
        let output = Command::new(&self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| (None, format!("cannot be run: {e}")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok((output.status.code(), text(&output.stdout)));
        }
        let complaint =
            text(&output.stderr).lines().next().map_or_else(|| output.status.to_string(), str::to_owned);
        Err((output.status.code(), complaint))
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn iptables_spec(interface: &str, rule: Rule) -> Vec<String> {
    let mut spec = vec!["-i".to_owned(), interface.to_owned()];
    if let Rule::Accept(subnet) = rule {
        spec.extend(["-s".to_owned(), subnet.to_string()]);
    }
    let verdict = if rule == Rule::Drop { "DROP" } else { "ACCEPT" };
    spec.extend(["-d", MULTICAST, "-j", verdict].map(str::to_owned));
    spec
}

/// Reads a line of `iptables -S`, if it is one of our rules for `interface` and nothing else.
fn parse_iptables(line: &str, interface: &str) -> Option<Rule> {
    let mut words = line.split_ascii_whitespace();
    let (mut source, mut destination, mut input, mut verdict) = (None, None, None, None);
    if (words.next()?, words.next()?) != ("-A", "INPUT") {
        return None;
    }
    while let Some(option) = words.next() {
        let slot = match option {
            "-s" => &mut source,
            "-d" => &mut destination,
            "-i" => &mut input,
            "-j" => &mut verdict,
            _ => return None,
        };
        *slot = Some(words.next()?);
    }
    if destination != Some(MULTICAST) || input != Some(interface) {
        return None;
    }
    match (source, verdict) {
        (None, Some("DROP")) => Some(Rule::Drop),
        (Some(subnet), Some("ACCEPT")) => subnet_of(subnet).map(Rule::Accept),
        _ => None,
    }
}

/// A bare address stands for itself alone.
fn subnet_of(text: &str) -> Option<Cidr> {
    match text.parse::<Cidr>() {
        Ok(cidr) => Some(cidr.network()),
        Err(_) => Cidr::new(text.parse().ok()?, 32),
    }
}

fn nft_spec(interface: &str, rule: Rule) -> String {
    match rule {
        Rule::Accept(subnet) => {
            format!("iifname \"{interface}\" ip saddr {subnet} ip daddr {MULTICAST} counter accept")
        }
        Rule::Drop => format!("iifname \"{interface}\" ip daddr {MULTICAST} counter drop"),
    }
}

/// The rule lines of chain INPUT in table `ip filter`.
fn nft_input(ruleset: &str) -> impl Iterator<Item = &str> {
    let (mut in_table, mut in_chain) = (false, false);
    ruleset.lines().map(str::trim).filter(move |line| {
        if line.starts_with("table ") {
            in_table = line.starts_with("table ip filter {");
        } else if line.starts_with("chain ") {
            in_chain = line.starts_with("chain INPUT {");
        } else if line.starts_with('}') {
            in_chain = false;
        } else {
            return in_table && in_chain;
        }
        false
    })
}

/// Reads `iifname "ethwe" [ip saddr S] ip daddr 224.0.0.0/4 [counter packets N bytes N] accept # handle H`.
fn parse_nft(line: &str, interface: &str) -> Option<(Rule, String)> {
    let (rule, handle) = line.rsplit_once(" # handle ")?;
    let rest = rule.strip_prefix("iifname \"")?.strip_prefix(interface)?.strip_prefix("\" ")?;
    let (source, rest) = match rest.strip_prefix("ip saddr ") {
        Some(rest) => rest.split_once(' ').map(|(s, rest)| (Some(s), rest))?,
        None => (None, rest),
    };
    let rest = rest.strip_prefix("ip daddr ")?.strip_prefix(MULTICAST)?.strip_prefix(' ')?;
    let verdict = match rest.strip_prefix("counter ") {
        Some(counter) => counter.rsplit(' ').next()?,
        None => rest,
    };
    let rule = match (source, verdict) {
        (None, "drop") => Rule::Drop,
        (Some(subnet), "accept") => Rule::Accept(subnet_of(subnet)?),
        _ => return None,
    };
    Some((rule, handle.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(subnet: &str) -> Option<Rule> {
        Some(Rule::Accept(subnet.parse().unwrap()))
    }

    #[test]
    fn iptables_lines() {
        let read = |line| parse_iptables(line, "ethwe");
        assert_eq!(read("-A INPUT -d 224.0.0.0/4 -i ethwe -j DROP"), Some(Rule::Drop));
        assert_eq!(
            read("-A INPUT -s 10.32.0.0/12 -d 224.0.0.0/4 -i ethwe -j ACCEPT"),
            accept("10.32.0.0/12")
        );
        assert_eq!(read("-A INPUT -i ethwe -s 10.2.1.1 -d 224.0.0.0/4 -j ACCEPT"), accept("10.2.1.1/32"));
        for other in [
            "-P INPUT ACCEPT",
            "-A INPUT -d 224.0.0.0/4 -i ethwe1 -j DROP",
            "-A INPUT -d 224.0.0.0/4 -i ethwe -j ACCEPT",
            "-A INPUT -s 10.32.0.0/12 -d 224.0.0.0/4 -i ethwe -j DROP",
            "-A INPUT -d 224.0.0.0/8 -i ethwe -j DROP",
            "-A INPUT -d 224.0.0.0/4 -i ethwe -p udp -j DROP",
            "-A FORWARD -d 224.0.0.0/4 -i ethwe -j DROP",
            "-A INPUT ! -s 10.0.0.0/8 -d 224.0.0.0/4 -i ethwe -j ACCEPT",
            "-A INPUT -i",
            "",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_written_is_recognised() {
        for rule in [Rule::Drop, accept("10.2.1.0/24").unwrap()] {
            let line = format!("-A INPUT {}", iptables_spec("ethwe", rule).join(" "));
            assert_eq!(parse_iptables(&line, "ethwe"), Some(rule));
            let line = format!("{} # handle 7", nft_spec("ethwe", rule));
            assert_eq!(parse_nft(&line, "ethwe"), Some((rule, "7".into())));
        }
    }

    #[test]
    fn nft_listing() {
        let listing = "table ip nat { # handle 1\n\tchain INPUT { # handle 1\n\t\tiifname \"ethwe\" ip daddr \
                       224.0.0.0/4 drop # handle 2\n\t}\n}\ntable ip filter { # handle 2\n\tchain INPUT { # handle \
                       1\n\t\ttype filter hook input priority filter; policy accept;\n\t\tiifname \"ethwe\" ip saddr \
                       10.32.0.0/12 ip daddr 224.0.0.0/4 counter packets 0 bytes 0 accept # handle 4\n\t\tiifname \
                       \"ethwe2\" ip daddr 224.0.0.0/4 counter packets 0 bytes 0 drop # handle 5\n\t\tiifname \
                       \"ethwe\" ip daddr 224.0.0.0/4 counter packets 1 bytes 2 drop # handle 6\n\t}\n\tchain OUTPUT \
                       { # handle 9\n\t\tiifname \"ethwe\" ip daddr 224.0.0.0/4 drop # handle 2\n\t}\n}\n";
        let rules: Vec<_> = nft_input(listing).filter_map(|l| parse_nft(l, "ethwe")).collect();
        assert_eq!(rules, [(accept("10.32.0.0/12").unwrap(), "4".into()), (Rule::Drop, "6".into())]);
    }
}
