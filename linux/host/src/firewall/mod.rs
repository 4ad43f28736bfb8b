//! The packet filter rules of a host (docs/spec/cli.md 4.3, 6) and of containers: described as values, compared with the present
//! rules, and changed atomically.
//!
//! ```text
//! filter  INPUT ------- ports of the peer closed to Docker's containers, control port closed to other hosts,
//!                       names served to containers
//!         FORWARD ----- a block at the top: Docker's bridge -> weave: drop; within weave: accept; to weave: WEAVE-EXPOSE; replies
//!         WEAVE-EXPOSE  one ACCEPT per exposed subnet
//! nat     POSTROUTING - WEAVE: per exposed subnet, multicast is not translated, other traffic is masqueraded
//! all     WEAVE-CANARY  empty
//! raw     PREROUTING, OUTPUT: questions of containers for names are not tracked
//! ```
//!
//! The rules are in the backend that Docker uses: the kernel's older packet filter (`iptables-legacy`), nftables (`iptables-nft`), or,
//! on a host without `iptables`, a table of our own (`nft`). Rules of other programs are never changed, and their order changes only
//! in relation to ours. [`FirewallManager`] adds the rules, and notices when another program removes them.

mod driver;
mod foreign;
mod generation;
mod listing;
pub(crate) mod multicast;
mod nft;
mod plan;
mod rules;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use driver::{Backend, FirewallError};
use driver::{Driver, Drivers};
pub use foreign::{PacketClass, dropping_chains};
use generation::Generation;
use nft::NftRule;
pub use rules::{DockerBridge, ExposedAddress, FirewallConfig};

use weave_types::Cidr;

use crate::ipset;

/// Interval of complete checks while the generation of nftables shows no change.
const FULL_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Interval of checks of a backend that has no generation.
const POLL_INTERVAL: Duration = Duration::from_secs(4);

/// Adds the rules of one peer, and restores and removes them.
#[derive(Debug)]
pub struct FirewallManager {
    drivers: Drivers,
    backend: Option<Backend>,
    generation: Option<Generation>,
    /// The configurations of earlier runs, whose rules are removed.
    previous: Vec<FirewallConfig>,
    /// Networks of this host's containers (`--no-masq-local`).
    local: Vec<Cidr>,
    last_check: Option<Check>,
    /// The program lists other rules than it was given, so that checks are not possible.
    unreadable: bool,
    /// Why packets cannot be excepted from tracking on this host.
    no_exceptions: Option<String>,
}

#[derive(Debug)]
struct Check {
    at: Instant,
    generation: Option<u32>,
    /// The rules as given to `nft` and as listed by it.
    nft: String,
    /// The set that a rule refers to, whose changes do not change the generation.
    set: Option<String>,
}

impl FirewallManager {
    /// Finds the programs, and the backend that Docker uses. `previous`: the configurations on which rules of earlier runs depend.
    pub fn new(previous: Vec<FirewallConfig>) -> FirewallManager {
        let drivers = Drivers::find();
        let backend = drivers.choose();
        FirewallManager::with(drivers, backend, previous)
    }

    /// Uses this backend in any case. `None` if its programs are not installed.
    pub fn with_backend(backend: Backend, previous: Vec<FirewallConfig>) -> Option<FirewallManager> {
        let drivers = Drivers::find();
        drivers.get(backend)?;
        Some(FirewallManager::with(drivers, Some(backend), previous))
    }

    fn with(drivers: Drivers, backend: Option<Backend>, previous: Vec<FirewallConfig>) -> FirewallManager {
        FirewallManager {
            drivers,
            backend,
            generation: Generation::open().ok(),
            previous,
            local: Vec::new(),
            last_check: None,
            unreadable: false,
            no_exceptions: None,
        }
    }

    /// Where the rules are; `None` if no program is installed.
    pub fn backend(&self) -> Option<Backend> {
        self.backend
    }

    /// What is missing on this host because of its programs, for the log.
    pub fn warning(&self, config: &FirewallConfig) -> Option<String> {
        match self.backend {
            None => Some(
                "neither iptables nor nft is installed: there is no address translation for exposed networks, and the control \
                 port is not guarded; install one of them and launch again"
                    .into(),
            ),
            Some(Backend::Nft) if config.expect_npc => {
                Some("network policies need iptables on this host; there is only nft, so nothing is filtered".into())
            }
            _ => None,
        }
    }

    /// Why the questions of containers for names are tracked as connections, if it is so.
    pub fn tracks_questions(&self) -> Option<&str> {
        self.no_exceptions.as_deref()
    }

    /// Sets the networks of this host's containers, for `--no-masq-local`. The next [`FirewallManager::ensure`] uses them.
    pub fn set_local_networks(&mut self, networks: Vec<Cidr>) {
        self.local = networks;
        self.last_check = None;
    }

    /// The next [`FirewallManager::ensure`] removes the rules that only this configuration needs.
    pub fn add_previous(&mut self, config: FirewallConfig) {
        if !self.previous.contains(&config) {
            self.previous.push(config);
        }
    }

    /// Whether another program may have changed rules since the last [`FirewallManager::ensure`]. Cheap.
    pub fn may_have_changed(&mut self) -> bool {
        let Some(backend) = self.backend.filter(|_| !self.unreadable) else { return false };
        let now = self.generation();
        match &self.last_check {
            None => true,
            Some(c) if c.set.as_ref().is_some_and(|set| !ipset::holds(set, &self.local)) => true,
            Some(c) if backend == Backend::IptablesLegacy || now.is_none() => c.at.elapsed() >= POLL_INTERVAL,
            Some(c) => c.generation != now || c.at.elapsed() >= FULL_CHECK_INTERVAL,
        }
    }

    /// Adds what is missing of the rules of this configuration, and removes what only previous ones need. `true` if something
    /// was changed.
    ///
    /// # Errors
    /// The program failed repeatedly. Each table has either its old rules or its new ones; a repetition is safe.
    pub fn ensure(
        &mut self,
        config: &FirewallConfig,
        exposed: &[ExposedAddress],
    ) -> Result<bool, FirewallError> {
        // Read first, so that a change during the check is noticed by the next one.
        let generation = self.generation();
        let Some(driver) = self.backend.and_then(|backend| self.drivers.get(backend)) else {
            return Ok(false);
        };
        let set = (config.no_masq_local && driver.backend() != Backend::Nft).then(|| config.local_set());
        let (changed, nft) = if driver.backend() == Backend::Nft {
            self.ensure_nft(driver, config, exposed)?
        } else {
            let filled = set.as_ref().map_or(Ok(false), |set| self.fill_set(set))?;
            match driver.edit(|now| plan::diff(now, config, exposed, &self.previous), true) {
                Ok(changed) => {
                    let excepted = self.no_exceptions.is_none().then(|| {
                        driver.edit(|now| plan::untracked(now, config, exposed, &self.previous), true)
                    });
                    match excepted.transpose() {
                        Ok(excepted) => (changed || filled || excepted == Some(true), String::new()),
                        // Everything works without these rules.
                        Err(e) if e.is_missing_feature() => {
                            self.no_exceptions = Some(e.to_string());
                            (true, String::new())
                        }
                        Err(e) => return Err(e),
                    }
                }
                Err(e) => {
                    self.unreadable |= matches!(e, FirewallError::Unreadable { .. });
                    return Err(e);
                }
            }
        };
        self.last_check = Some(Check { at: Instant::now(), generation, nft, set });
        Ok(changed)
    }

    /// Fills the set, which must exist before a rule that refers to it. `true` if it was changed.
    fn fill_set(&self, name: &str) -> Result<bool, FirewallError> {
        if ipset::holds(name, &self.local) {
            return Ok(false);
        }
        ipset::replace(name, &self.local)?;
        Ok(true)
    }

    fn ensure_nft(
        &self,
        nft: &Driver,
        config: &FirewallConfig,
        exposed: &[ExposedAddress],
    ) -> Result<(bool, String), FirewallError> {
        let desired = nft::script(config, exposed, &self.local, None);
        let instance = config.instance.as_deref();
        let before = nft_rules(nft, instance);
        if let Some(check) = &self.last_check
            && check.nft == format!("{desired}{before}")
        {
            return Ok((false, check.nft.clone()));
        }
        let script = nft::script(config, exposed, &self.local, forward_chain(nft).as_deref());
        nft.nft_script(&script)?;
        Ok((true, format!("{desired}{}", nft_rules(nft, instance))))
    }

    fn generation(&mut self) -> Option<u32> {
        self.generation.as_mut().and_then(|g| g.read().ok())
    }

    /// Removes our rules and chains from the backends that are not in use. Returns what failed.
    pub fn remove_stale_backends(&mut self, config: &FirewallConfig) -> Vec<FirewallError> {
        let configs = self.configs(config);
        let others = Backend::ALL.into_iter().filter(|backend| Some(*backend) != self.backend);
        others.filter_map(|backend| self.remove_from(backend, &configs).err()).collect()
    }

    /// Removes all rules, chains and sets of ours and of 2.8.1 from every backend. `true` if there were any.
    ///
    /// # Errors
    /// All failures; everything else is removed.
    pub fn remove(&mut self, config: &FirewallConfig) -> Result<bool, Vec<FirewallError>> {
        let configs = self.configs(config);
        self.last_check = None;
        let rules = Backend::ALL.into_iter().map(|backend| self.remove_from(backend, &configs));
        let sets = configs.iter().map(|c| ipset::destroy(&c.local_set()).map_err(FirewallError::from));
        // A host has only one policy controller, whatever instances it has.
        let policy_sets = config.instance.is_none().then(ipset::destroy_policy_sets).map(|n| Ok(n? > 0));
        let (mut removed, mut errors) = (false, Vec::new());
        for result in rules.chain(sets).chain(policy_sets) {
            match result {
                Ok(some) => removed |= some,
                Err(e) => errors.push(e),
            }
        }
        if errors.is_empty() { Ok(removed) } else { Err(errors) }
    }

    /// Whether there are sets of 2.8.1's policy controller, which [`FirewallManager::remove`] removes.
    pub fn has_policy_sets(config: &FirewallConfig) -> bool {
        config.instance.is_none() && ipset::has_policy_sets()
    }

    fn configs(&self, config: &FirewallConfig) -> Vec<FirewallConfig> {
        self.previous.iter().chain([config]).cloned().collect()
    }

    /// The backends with rules that [`FirewallManager::remove`] would remove, and the errors of those that cannot be listed.
    pub fn backends_with_rules(&self, config: &FirewallConfig) -> (Vec<Backend>, Vec<FirewallError>) {
        let configs = self.configs(config);
        let (mut found, mut errors) = (Vec::new(), Vec::new());
        for driver in self.drivers.iptables() {
            match driver.list() {
                Ok(now) if plan::removal(&now, &configs).is_some() => found.push(driver.backend()),
                Ok(_) => {}
                Err(e) => errors.push(e),
            }
        }
        if self.drivers.get(Backend::Nft).is_some_and(|nft| configs.iter().any(|c| has_nft_rules(nft, c))) {
            found.push(Backend::Nft);
        }
        (found, errors)
    }

    fn remove_from(&self, backend: Backend, configs: &[FirewallConfig]) -> Result<bool, FirewallError> {
        let Some(driver) = self.drivers.get(backend) else { return Ok(false) };
        if backend != Backend::Nft {
            return driver.edit(|now| plan::removal(now, configs), true);
        }
        let mut removed = false;
        for config in configs.iter().filter(|c| has_nft_rules(driver, c)) {
            driver.nft_script(&nft::removal(config.instance.as_deref(), forward_chain(driver).as_deref()))?;
            removed = true;
        }
        Ok(removed)
    }
}

/// The rules that one variant of `iptables` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRules {
    /// Where they are.
    pub backend: Backend,
    /// Their number, or why they cannot be listed.
    pub rules: Result<usize, FirewallError>,
    /// Whether Docker's or Kubernetes' are among them.
    pub has_foreign_chains: bool,
    /// Whether `iptables` without a suffix is this variant.
    pub is_default: bool,
}

/// The rules of each installed variant of `iptables`, and whether `nft` is installed.
pub fn rules_by_backend() -> (Vec<BackendRules>, bool) {
    let drivers = Drivers::find();
    let rules = drivers.iptables().map(|driver| {
        let listing = driver.list();
        BackendRules {
            backend: driver.backend(),
            has_foreign_chains: listing.as_ref().is_ok_and(|now| driver::foreign_chains(now) > 0),
            rules: listing.map(|now| now.rule_count()),
            is_default: drivers.is_default(driver.backend()),
        }
    });
    (rules.collect(), drivers.get(Backend::Nft).is_some())
}

/// Our table, and our rules in the chain of other programs, as `nft` lists them.
fn nft_rules(nft: &Driver, instance: Option<&str>) -> String {
    let (table, mark) = (nft::table(instance), nft::mark(instance));
    let mut text = nft.nft(&["-s", "list", "table", "ip", &table]).unwrap_or_default();
    if let Some(forward) = forward_chain(nft) {
        text.push_str("chain FORWARD\n");
        text.extend(forward.into_iter().map(|rule| rule.text).filter(|text| text.contains(&mark)));
    }
    text
}

fn forward_chain(nft: &Driver) -> Option<Vec<NftRule>> {
    nft.nft_chain("filter", "FORWARD").ok().flatten()
}

/// Whether there are rules of this configuration that were made by `nft`.
fn has_nft_rules(nft: &Driver, config: &FirewallConfig) -> bool {
    let instance = config.instance.as_deref();
    let rules = nft_rules(nft, instance);
    rules.contains(&format!("table ip {} {{", nft::table(instance))) || rules.contains(&nft::mark(instance))
}

/// Excepts packets that are routed to a bridge from address translation (`weave attach-bridge`). Nothing is done on a host where
/// no program can translate addresses.
pub(crate) fn keep_source_addresses(bridge: &str) -> Result<(), FirewallError> {
    let drivers = Drivers::find();
    let added = drivers.preferred().map(|driver| driver.ensure(&rules::attached_bridge(bridge)));
    added.transpose().map(drop)
}
