//! The programs that list and change packet filter rules, and the choice among them. Their work concerns the network namespace of
//! the calling thread.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::listing::Listing;
use super::nft::{self, NftRule};
use super::plan;
use super::rules::{DesiredChain, Table};
use crate::{Error, fault_injection};

/// Seconds for which `iptables-restore` waits for the lock of the packet filter.
const LOCK_TIMEOUT: &str = "10";
/// Exit status of `iptables` for a failure that may be temporary: the lock, memory.
const RESOURCE_PROBLEM: i32 = 4;
const ATTEMPTS: usize = 4;

/// Begins the reason if a program could not even be run.
const NOT_RUN: &str = "cannot be";

/// Where rules can be: the kernel's two packet filters, and the two interfaces to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// The older packet filter (`iptables-legacy`).
    IptablesLegacy,
    /// nftables, by `iptables-nft`.
    IptablesNft,
    /// nftables, by `nft`.
    Nft,
}

impl Backend {
    pub(crate) const ALL: [Backend; 3] = [Backend::IptablesLegacy, Backend::IptablesNft, Backend::Nft];

    /// The name of its program.
    pub fn name(self) -> &'static str {
        match self {
            Backend::IptablesLegacy => "iptables-legacy",
            Backend::IptablesNft => "iptables-nft",
            Backend::Nft => "nft",
        }
    }
}

/// Why rules could not be listed or changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// There is no program to do it with.
    #[error("neither iptables nor nft is installed")]
    NotInstalled,
    /// The program, or the kernel, refused.
    #[error("{program}: {reason}")]
    Failed {
        /// Path of the program.
        program: String,
        /// The first line of its complaint.
        reason: String,
    },
    /// The rules were changed, but the program lists others than it was given: every further check would change them again.
    #[error("{program} does not list the rules that it was given")]
    Unreadable {
        /// Path of the program.
        program: String,
    },
    /// A set of networks that a rule refers to could not be changed.
    #[error(transparent)]
    Set(#[from] Error),
}

impl FirewallError {
    /// Whether the kernel lacks a table, or what a rule needs.
    pub(crate) fn is_missing_feature(&self) -> bool {
        let texts = [
            "does not exist",
            "not supported",
            "missing kernel module",
            "No such file",
            "No chain/target/match",
        ];
        match self {
            FirewallError::Failed { reason, .. } => {
                !reason.starts_with(NOT_RUN) && texts.iter().any(|text| reason.contains(text))
            }
            _ => false,
        }
    }
}

/// The programs of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    backend: Backend,
    /// `iptables-save` of this backend, or `nft`.
    list_program: PathBuf,
    /// `iptables-restore` of this backend, or `nft`.
    change_program: PathBuf,
}

/// The backends whose programs are installed.
#[derive(Clone, Debug)]
pub(crate) struct Drivers {
    /// At most one for each backend.
    installed: Vec<Driver>,
    /// Which backend `iptables` without a suffix uses on this host.
    default: Option<Backend>,
}

impl Drivers {
    pub(crate) fn find() -> Drivers {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from);
        let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(usual).collect();
        let find = |name: &str| folders.iter().map(|f| f.join(name)).find(|p| is_executable(p));
        let iptables = |name: &str, backend| {
            let (list, change) = (find(&format!("{name}-save"))?, find(&format!("{name}-restore"))?);
            Some(Driver { backend, list_program: list, change_program: change })
        };
        let variants = [Backend::IptablesLegacy, Backend::IptablesNft];
        let mut installed: Vec<Driver> =
            variants.into_iter().filter_map(|backend| iptables(backend.name(), backend)).collect();
        let mut default = None;
        if let Some(driver) = iptables("iptables", Backend::IptablesLegacy)
            && let Some(backend) = variant(&driver.list_program, &installed)
        {
            default = Some(backend);
            if installed.iter().all(|d| d.backend != backend) {
                installed.push(Driver { backend, ..driver });
            }
        }
        let nft = find(Backend::Nft.name());
        installed.extend(nft.map(|nft| Driver {
            backend: Backend::Nft,
            list_program: nft.clone(),
            change_program: nft,
        }));
        Drivers { installed, default }
    }

    pub(crate) fn get(&self, backend: Backend) -> Option<&Driver> {
        self.installed.iter().find(|d| d.backend == backend)
    }

    /// Whether `iptables` without a suffix uses this backend.
    pub(crate) fn is_default(&self, backend: Backend) -> bool {
        self.default == Some(backend)
    }

    /// The installed variants of `iptables`.
    pub(crate) fn iptables(&self) -> impl Iterator<Item = &Driver> {
        self.installed.iter().filter(|d| d.backend != Backend::Nft)
    }

    /// The driver of the program `iptables`; without it, that of `nft`.
    pub(crate) fn preferred(&self) -> Option<&Driver> {
        let default = self.default.and_then(|backend| self.get(backend));
        default.or(self.iptables().last()).or(self.get(Backend::Nft))
    }

    /// The backend for the rules of a host: the one in which Docker's or Kubernetes' rules are, else the preferred one.
    pub(crate) fn choose(&self) -> Option<Backend> {
        let count =
            |backend| self.get(backend).and_then(|d| d.list().ok()).map_or(0, |now| foreign_chains(&now));
        let (legacy, nft) = (count(Backend::IptablesLegacy), count(Backend::IptablesNft));
        match legacy.cmp(&nft) {
            std::cmp::Ordering::Greater => Some(Backend::IptablesLegacy),
            std::cmp::Ordering::Less => Some(Backend::IptablesNft),
            std::cmp::Ordering::Equal => self.preferred().map(|d| d.backend),
        }
    }
}

impl Driver {
    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// The rules of all tables as `iptables-save` shows them.
    pub(crate) fn list(&self) -> Result<Listing, FirewallError> {
        // Listing the rules of the older packet filter creates its tables.
        if self.backend == Backend::IptablesLegacy
            && !std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")
                .is_ok_and(|names| names.lines().any(|n| Table::ALL.iter().any(|t| t.name() == n)))
        {
            return Ok(Listing::default());
        }
        run(&self.list_program, &[], "").map(|text| Listing::parse(&text))
    }

    /// Makes the changes that `plan` derives from the existing rules, all changes of a table in one transaction. `true` if there was something to
    /// do. With `verify` the rules are listed again, until nothing is left to do.
    pub(crate) fn edit(
        &self,
        plan: impl Fn(&Listing) -> Option<String>,
        verify: bool,
    ) -> Result<bool, FirewallError> {
        let program = || self.change_program.display().to_string();
        let mut done = None;
        for _ in 0..ATTEMPTS {
            let Some(script) = plan(&self.list()?) else { return Ok(done.is_some()) };
            if done.as_ref() == Some(&script) {
                return Err(FirewallError::Unreadable { program: program() });
            }
            match run(&self.change_program, &["--noflush", "-w", LOCK_TIMEOUT], &script) {
                Ok(_) if verify => done = Some(script),
                Ok(_) => return Ok(true),
                Err(e) if plan(&self.list()?).as_ref() == Some(&script) => return Err(e),
                // Other programs have changed the rules since they were listed.
                Err(_) => {}
            }
        }
        let reason = "other programs keep changing the rules".to_owned();
        Err(FirewallError::Failed { program: program(), reason })
    }

    /// Adds those rules of a chain that are missing. `true` if there were some.
    pub(crate) fn ensure(&self, desired: &DesiredChain) -> Result<bool, FirewallError> {
        if self.backend != Backend::Nft {
            return self.edit(|now| plan::additions(now, desired), false);
        }
        let present = self.nft_chain(desired.table.name(), &desired.chain)?;
        self.apply(nft::additions(present.as_deref(), desired))
    }

    /// Whether a chain has all of these rules.
    pub(crate) fn has(&self, desired: &DesiredChain) -> Result<bool, FirewallError> {
        if self.backend != Backend::Nft {
            return Ok(plan::additions(&self.list()?, desired).is_none());
        }
        let present = self.nft_chain(desired.table.name(), &desired.chain)?;
        Ok(present.is_some() && nft::additions(present.as_deref(), desired).is_none())
    }

    /// Removes these rules from a chain, every copy of them. `true` if there were some.
    pub(crate) fn remove(&self, unwanted: &DesiredChain) -> Result<bool, FirewallError> {
        if self.backend != Backend::Nft {
            return self.edit(|now| plan::removals(now, unwanted), false);
        }
        let present = self.nft_chain(unwanted.table.name(), &unwanted.chain)?;
        self.apply(nft::removals(&present.unwrap_or_default(), unwanted))
    }

    fn apply(&self, script: Option<String>) -> Result<bool, FirewallError> {
        script.map_or(Ok(false), |script| self.nft_script(&script).map(|()| true))
    }

    /// Runs `nft` on a script that takes effect as a whole.
    pub(crate) fn nft_script(&self, script: &str) -> Result<(), FirewallError> {
        run(&self.change_program, &["-f", "-"], script).map(drop)
    }

    /// Runs `nft` and returns its output.
    pub(crate) fn nft(&self, arguments: &[&str]) -> Result<String, FirewallError> {
        run(&self.list_program, arguments, "")
    }

    /// The rules of an IPv4 chain of nftables; none if there is no such chain.
    pub(crate) fn nft_chain(&self, table: &str, chain: &str) -> Result<Option<Vec<NftRule>>, FirewallError> {
        match self.nft(&["-s", "-a", "list", "chain", "ip", table, chain]) {
            Ok(text) => Ok(Some(nft::parse_chain(&text))),
            Err(FirewallError::Failed { reason, .. }) if reason.contains("No such file or directory") => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// Which backend an `iptables-save` without a suffix uses: usually it is another name of one that has a suffix.
fn variant(save: &Path, installed: &[Driver]) -> Option<Backend> {
    let file = |path: &Path| path.canonicalize().ok();
    if let Some(same) = installed.iter().find(|d| file(&d.list_program) == file(save)) {
        return Some(same.backend);
    }
    // Before version 1.8 there was only one variant.
    let version = run(save, &["-V"], "").ok()?;
    Some(if version.contains("nf_tables") { Backend::IptablesNft } else { Backend::IptablesLegacy })
}

/// How many chains there are of programs among whose rules ours have to be.
pub(super) fn foreign_chains(listing: &Listing) -> usize {
    let foreign = |name: &str| name.starts_with("DOCKER") || name.starts_with("KUBE-");
    Table::ALL.iter().flat_map(|t| listing.chains(*t)).filter(|(name, _)| foreign(name)).count()
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs a program, again after a failure that may be temporary. Returns its output.
fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, FirewallError> {
    let mut attempt = 1;
    loop {
        match run_once(program, arguments, input) {
            Ok(output) => return Ok(output),
            Err((Some(RESOURCE_PROBLEM), _)) if attempt < ATTEMPTS => attempt += 1,
            Err((_, reason)) => {
                return Err(FirewallError::Failed { program: program.display().to_string(), reason });
            }
        }
    }
}

/// The output of a program, or its exit status and its first complaint.
fn run_once(program: &Path, arguments: &[&str], input: &str) -> Result<String, (Option<i32>, String)> {
    let cannot = |what: &str, e: &std::io::Error| (None, format!("{NOT_RUN} {what}: {e}"));
    let step = format_args!("running {} {}", program.display(), arguments.join(" "));
    fault_injection::io_fail_point(&step).map_err(|e| cannot("run", &e))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| cannot("run", &e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything reports the reason itself.
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
