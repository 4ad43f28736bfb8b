//! The programs that read and change the packet filter, and the choice among them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::listing::Listing;
use super::rules::Table;
use crate::fault_injection;
use crate::multicast_rules::FirewallError;

/// Seconds that a program waits for another one that changes rules.
const LOCK_SECONDS: &str = "10";
/// Exit status for trouble that may pass: the lock, memory.
const RESOURCE_PROBLEM: i32 = 4;
/// Also for changes that somebody made between our look and our change.
const ATTEMPTS: usize = 4;

/// Where rules can be: the kernel's two packet filters, and the two ways to talk to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// `iptables-legacy`.
    IptablesLegacy,
    /// `iptables-nft`.
    IptablesNft,
    /// `nft` alone: a table of our own.
    Nft,
}

impl Backend {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::IptablesLegacy => "iptables-legacy",
            Backend::IptablesNft => "iptables-nft",
            Backend::Nft => "nft",
        }
    }
}

/// What is installed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programs {
    /// Program that saves, program that restores.
    legacy: Option<(PathBuf, PathBuf)>,
    nft: Option<(PathBuf, PathBuf)>,
    /// What `iptables` alone means on this host.
    usual: Option<Backend>,
    native: Option<PathBuf>,
}

/// Why rules were not changed.
#[derive(Debug)]
pub(crate) enum EditError {
    /// The program, or the kernel, did not do it.
    Failed(FirewallError),
    /// It did it, but what it shows cannot be compared: every further try would do it once more.
    Unreadable(FirewallError),
}

impl From<EditError> for FirewallError {
    fn from(e: EditError) -> FirewallError {
        match e {
            EditError::Failed(e) | EditError::Unreadable(e) => e,
        }
    }
}

impl Programs {
    /// Looks in the usual folders.
    pub(crate) fn find() -> Programs {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from);
        Programs::among(&std::env::split_paths(&path).chain(usual).collect::<Vec<_>>())
    }

    pub(crate) fn among(folders: &[PathBuf]) -> Programs {
        let find = |name: &str| folders.iter().map(|f| f.join(name)).find(|p| is_executable(p));
        let pair = |name: &str| Some((find(&format!("{name}-save"))?, find(&format!("{name}-restore"))?));
        let mut programs = Programs {
            legacy: pair("iptables-legacy"),
            nft: pair("iptables-nft"),
            usual: None,
            native: find("nft"),
        };
        if let Some(usual) = pair("iptables") {
            // One that does not say what it is may be either.
            if let Ok(version) = output(Command::new(&usual.0).arg("-V")) {
                // Before 1.8 there was one kind only.
                let (kind, slot) = if version.contains("nf_tables") {
                    (Backend::IptablesNft, &mut programs.nft)
                } else {
                    (Backend::IptablesLegacy, &mut programs.legacy)
                };
                programs.usual = Some(kind);
                slot.get_or_insert(usual);
            }
        }
        programs
    }

    fn pair(&self, backend: Backend) -> Option<&(PathBuf, PathBuf)> {
        match backend {
            Backend::IptablesLegacy => self.legacy.as_ref(),
            Backend::IptablesNft => self.nft.as_ref(),
            Backend::Nft => None,
        }
    }

    pub(crate) fn has(&self, backend: Backend) -> bool {
        if backend == Backend::Nft { self.native.is_some() } else { self.pair(backend).is_some() }
    }

    /// The one where Docker's rules are, or Kubernetes'; else the one that `iptables` means here; else `nft`.
    pub(crate) fn choose(&self) -> Option<Backend> {
        let here: Vec<Backend> =
            [Backend::IptablesNft, Backend::IptablesLegacy].into_iter().filter(|b| self.has(*b)).collect();
        if here.len() > 1 {
            let weight = |backend: &Backend| self.list(*backend).map_or(0, |listing| neighbours(&listing));
            let weights: Vec<usize> = here.iter().map(weight).collect();
            if let [nft, legacy] = weights[..]
                && nft != legacy
            {
                return Some(if nft > legacy { Backend::IptablesNft } else { Backend::IptablesLegacy });
            }
        }
        let iptables = self.usual.or(here.first().copied());
        iptables.or(self.native.is_some().then_some(Backend::Nft))
    }

    /// Whether asking is harmless: looking at the legacy filter makes its tables.
    pub(crate) fn may_have_rules(&self, backend: Backend) -> bool {
        backend != Backend::IptablesLegacy
            || std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")
                .is_ok_and(|names| names.lines().any(|n| Table::ALL.iter().any(|t| t.name() == n)))
    }

    /// What is there now.
    pub(crate) fn list(&self, backend: Backend) -> Result<Listing, FirewallError> {
        let Some((save, _)) = self.pair(backend).filter(|_| self.may_have_rules(backend)) else {
            return Ok(Listing::default());
        };
        output(&mut Command::new(save)).map(|text| Listing::parse(&text))
    }

    /// Looks, and does what `edits` make of what there is; again if somebody else was faster. `true` if there was something to do.
    pub(crate) fn edit(
        &self,
        backend: Backend,
        edits: impl Fn(&Listing) -> Option<String>,
    ) -> Result<bool, EditError> {
        let Some((_, restore)) = self.pair(backend) else { return Ok(false) };
        let failed = |text: &str| EditError::Failed(FirewallError(format!("{}: {text}", restore.display())));
        let mut done = None;
        for _ in 0..ATTEMPTS {
            let listing = self.list(backend).map_err(EditError::Failed)?;
            let Some(script) = edits(&listing) else { return Ok(done.is_some()) };
            if done.as_ref() == Some(&script) {
                let text = format!("{} does not give back the rules that it was given", restore.display());
                return Err(EditError::Unreadable(FirewallError(text)));
            }
            let mut attempt = 1;
            loop {
                match feed(Command::new(restore).args(["--noflush", "-w", LOCK_SECONDS]), &script) {
                    Ok(_) => break done = Some(script),
                    Err((Some(RESOURCE_PROBLEM), _)) if attempt < ATTEMPTS => attempt += 1,
                    // Perhaps there is something else by now.
                    Err((_, text)) => match edits(&self.list(backend).map_err(EditError::Failed)?) {
                        None => return Ok(true),
                        Some(now) if now == script => return Err(failed(&text)),
                        Some(_) => break,
                    },
                }
            }
        }
        Err(failed("other programs keep changing the rules"))
    }

    /// Runs `nft` on a script that takes effect as a whole.
    pub(crate) fn nft_script(&self, script: &str) -> Result<(), FirewallError> {
        let Some(nft) = &self.native else { return Err(FirewallError("nft is not installed".into())) };
        let done = feed(Command::new(nft).args(["-f", "-"]), script);
        done.map(|_| ()).map_err(|(_, text)| FirewallError(format!("nft: {text}")))
    }

    /// Runs `nft` and gives what it prints.
    pub(crate) fn nft(&self, arguments: &[&str]) -> Result<String, FirewallError> {
        let Some(nft) = &self.native else { return Err(FirewallError("nft is not installed".into())) };
        output(Command::new(nft).args(arguments))
    }
}

/// How many chains programs have there with which our rules have to come in order.
fn neighbours(listing: &Listing) -> usize {
    let theirs = |name: &str| name.starts_with("DOCKER") || name.starts_with("KUBE-");
    Table::ALL.iter().flat_map(|t| listing.chains(*t)).filter(|(name, _)| theirs(name)).count()
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

fn output(command: &mut Command) -> Result<String, FirewallError> {
    feed(command, "")
        .map_err(|(_, text)| FirewallError(format!("{}: {text}", command.get_program().to_string_lossy())))
}

/// Runs a program with `input`; what it printed, or its exit status and its first complaint.
fn feed(command: &mut Command, input: &str) -> Result<String, (Option<i32>, String)> {
    let cannot = |what: &str, e: &std::io::Error| (None, format!("cannot be {what}: {e}"));
    fault_injection::io_fail_point(&format_args!("running {command:?}")).map_err(|e| cannot("run", &e))?;
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| cannot("run", &e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| cannot("waited for", &e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let line = complaint.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#'));
    Err((output.status.code(), line.map_or_else(|| output.status.to_string(), str::to_owned)))
}
