//! The packet filter rules of a host (docs/spec/cli.md 4.3, 6): described as values, compared with what is there, changed at once.
//!
//! ```text
//! filter  INPUT ------- closed peer ports for Docker's containers, guarded control port
//!         FORWARD ----- a block at the top: Docker's bridge -> weave: no; within weave: yes; to weave: WEAVE-EXPOSE; answers
//!         WEAVE-EXPOSE  one ACCEPT per exposed subnet
//! nat     POSTROUTING - WEAVE: per exposed subnet, multicast stays as it is, the rest is masqueraded
//! all     WEAVE-CANARY  empty
//! ```
//!
//! The rules lie where Docker's are: in the kernel's old packet filter (`iptables-legacy`), in the new one (`iptables-nft`), or, on
//! a host without `iptables`, in a table of our own (`nft`). Other people's rules are never touched, and their order only
//! changes relative to ours. [`FirewallManager`] brings the rules about, and sees when somebody took them away.

mod edits;
mod generation;
mod listing;
mod native;
mod programs;
mod rules;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use generation::Generation;
use listing::Listing;
pub use programs::Backend;
use programs::{EditError, Programs};
pub use rules::{DockerBridge, ExposedAddress, FirewallConfig};

use weave_types::Cidr;

use crate::{FirewallError, ipset};

/// A look that costs nothing much is taken at least so often where the kernel tells that nothing has changed.
const FULL_LOOK: Duration = Duration::from_secs(60);
/// And so often where it does not.
const BLIND_LOOK: Duration = Duration::from_secs(4);

/// Keeps the rules of one peer.
#[derive(Debug)]
pub struct FirewallManager {
    programs: Programs,
    backend: Option<Backend>,
    generation: Option<Generation>,
    /// What the rules of earlier runs depended on.
    former: Vec<FirewallConfig>,
    /// Addresses behind this host (`--no-masq-local`).
    local: Vec<Cidr>,
    looked: Option<Looked>,
    /// The programs do not give back what they were given, so that nothing can be compared.
    unreadable: bool,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    generation: Option<u32>,
    /// Our part as `nft` showed it after we had made it.
    native: String,
    /// The set that our rules name, which has no generation.
    set: Option<String>,
}

impl FirewallManager {
    /// Looks for the programs, and for the place of Docker's rules. `former`: what rules left by earlier runs depend on.
    pub fn new(former: Vec<FirewallConfig>) -> FirewallManager {
        let programs = Programs::find();
        let backend = programs.choose();
        FirewallManager::with(programs, backend, former)
    }

    /// With this backend, whatever else there is. `None` if its programs are not installed.
    pub fn with_backend(backend: Backend, former: Vec<FirewallConfig>) -> Option<FirewallManager> {
        let programs = Programs::find();
        programs.has(backend).then(|| FirewallManager::with(programs, Some(backend), former))
    }

    fn with(programs: Programs, backend: Option<Backend>, former: Vec<FirewallConfig>) -> FirewallManager {
        let generation = Generation::open().ok();
        FirewallManager {
            programs,
            backend,
            generation,
            former,
            local: Vec::new(),
            looked: None,
            unreadable: false,
        }
    }

    /// Where the rules are; none if no program can make any.
    pub fn backend(&self) -> Option<Backend> {
        self.backend
    }

    /// What a person should know about the rules on this host, beyond that they are there.
    pub fn warning(&self, setup: &FirewallConfig) -> Option<String> {
        match self.backend {
            None => Some(
                "neither iptables nor nft is installed: there is no address translation for exposed networks, and the control \
                 port is not guarded; install one of them and launch again"
                    .into(),
            ),
            Some(Backend::Nft) if setup.expect_npc => {
                Some("network policies need iptables on this host; there is only nft, so nothing is filtered".into())
            }
            _ => None,
        }
    }

    /// Addresses that belong to containers of this host, for `--no-masq-local`. They count with the next [`FirewallManager::ensure`].
    pub fn set_local_networks(&mut self, networks: Vec<Cidr>) {
        self.local = networks;
        self.looked = None;
    }

    /// What these rules depend on is over; they go with the next [`FirewallManager::ensure`].
    pub fn add_previous(&mut self, setup: FirewallConfig) {
        // A bridge of Docker's that comes and goes is one and the same.
        if !self.former.contains(&setup) {
            self.former.push(setup);
        }
    }

    /// Whether somebody may have changed rules since [`FirewallManager::ensure`] last found all in order. Cheap.
    pub fn may_have_changed(&mut self) -> bool {
        let Some(backend) = self.backend.filter(|_| !self.unreadable) else { return false };
        let now = self.generation();
        match &self.looked {
            None => true,
            Some(l) if l.set.as_ref().is_some_and(|set| !ipset::holds(set, &self.local)) => true,
            Some(l) if backend == Backend::IptablesLegacy || now.is_none() => l.at.elapsed() >= BLIND_LOOK,
            Some(l) => l.generation != now || l.at.elapsed() >= FULL_LOOK,
        }
    }

    /// Sees to it that exactly these rules of ours are there. `true` if something had to be done.
    ///
    /// # Errors
    /// The program failed, more than once. What was there before is there still, or a part of the tables is done; asking again
    /// is right.
    pub fn ensure(
        &mut self,
        setup: &FirewallConfig,
        exposed: &[ExposedAddress],
    ) -> Result<bool, FirewallError> {
        let Some(backend) = self.backend else { return Ok(false) };
        // Read before looking, so that what changes afterwards is noticed.
        let generation = self.generation();
        let set = (setup.no_masq_local && backend != Backend::Nft).then(|| setup.local_set());
        let (changed, native) = if backend == Backend::Nft {
            self.ensure_native(setup, exposed)?
        } else {
            let filled = set.as_ref().map_or(Ok(false), |set| self.fill_set(set))?;
            let edits = |now: &Listing| edits::towards(now, setup, exposed, &self.former);
            let changed = self.programs.edit(backend, edits).inspect_err(|e| {
                self.unreadable |= matches!(e, EditError::Unreadable(_));
            })?;
            (changed || filled, String::new())
        };
        self.looked = Some(Looked { at: Instant::now(), generation, native, set });
        Ok(changed)
    }

    /// The set that a rule names has to be there before the rule. `true` if it was missing or another one.
    fn fill_set(&self, name: &str) -> Result<bool, FirewallError> {
        let wrong = !ipset::holds(name, &self.local);
        if wrong {
            ipset::replace(name, &self.local).map_err(|e| FirewallError(e.to_string()))?;
        }
        Ok(wrong)
    }

    fn ensure_native(
        &self,
        setup: &FirewallConfig,
        exposed: &[ExposedAddress],
    ) -> Result<(bool, String), FirewallError> {
        let wanted = native::script(setup, exposed, &self.local, None);
        let instance = setup.instance.as_deref();
        let before = self.native_part(instance);
        if let Some(l) = &self.looked
            && l.native == format!("{wanted}{before}")
        {
            return Ok((false, l.native.clone()));
        }
        let script = native::script(setup, exposed, &self.local, self.guest_chain().as_deref());
        self.programs.nft_script(&script)?;
        Ok((true, format!("{wanted}{}", self.native_part(instance))))
    }

    /// Our table, and the chain in which we are guests.
    fn native_part(&self, instance: Option<&str>) -> String {
        let (table, mark) = (native::table(instance), native::mark(instance));
        let table = self.programs.nft(&["-s", "list", "table", "ip", &table]).unwrap_or_default();
        let guests = self.guest_chain().unwrap_or_default();
        let ours = |l: &&str| l.contains(&mark) || l.contains("chain FORWARD");
        table
            + &guests.lines().filter(ours).map(|l| l.split("counter").next().unwrap_or(l)).collect::<String>()
    }

    fn guest_chain(&self) -> Option<String> {
        self.programs.nft(&["-s", "-a", "list", "chain", "ip", "filter", "FORWARD"]).ok()
    }

    fn generation(&mut self) -> Option<u32> {
        self.generation.as_mut().and_then(|g| g.read().ok())
    }

    /// Takes away our rules and chains where they are not now: in the backends that are not in use.
    pub fn remove_stale_backends(&mut self, setup: &FirewallConfig) -> Vec<FirewallError> {
        let setups = self.setups(setup);
        let others = [Backend::IptablesLegacy, Backend::IptablesNft, Backend::Nft]
            .into_iter()
            .filter(|b| Some(*b) != self.backend);
        others.filter_map(|backend| self.remove_from(backend, &setups).err()).collect()
    }

    /// Takes away everything of ours and of 2.8.1's, wherever it is. `true` if there was something.
    ///
    /// # Errors
    /// All failures; the rest is gone.
    pub fn remove(&mut self, setup: &FirewallConfig) -> Result<bool, Vec<FirewallError>> {
        let setups = self.setups(setup);
        self.looked = None;
        let (mut removed, mut errors) = (false, Vec::new());
        for backend in [Backend::IptablesLegacy, Backend::IptablesNft, Backend::Nft] {
            match self.remove_from(backend, &setups) {
                Ok(some) => removed |= some,
                Err(e) => errors.push(e),
            }
        }
        for setup in &setups {
            match ipset::destroy(&setup.local_set()) {
                Ok(some) => removed |= some,
                Err(e) => errors.push(FirewallError(e.to_string())),
            }
        }
        // Of the host's one policy controller.
        if setup.instance.is_none() {
            match ipset::destroy_policy_sets() {
                Ok(some) => removed |= some > 0,
                Err(e) => errors.push(FirewallError(e.to_string())),
            }
        }
        if errors.is_empty() { Ok(removed) } else { Err(errors) }
    }

    /// Whether sets of 2.8.1's policy controller are there, which [`FirewallManager::remove`] takes away.
    pub fn has_policy_sets(setup: &FirewallConfig) -> bool {
        setup.instance.is_none() && ipset::has_policy_sets()
    }

    fn setups(&self, setup: &FirewallConfig) -> Vec<FirewallConfig> {
        self.former.iter().chain([setup]).cloned().collect()
    }

    /// Whether there is something of this setup in the form for `nft`.
    fn is_native(&self, setup: &FirewallConfig) -> bool {
        let instance = setup.instance.as_deref();
        let part = self.native_part(instance);
        part.contains(&format!("table ip {} {{", native::table(instance)))
            || part.contains(&native::mark(instance))
    }

    /// Where [`FirewallManager::remove`] would find something, and where it cannot look.
    pub fn backends_with_rules(&self, setup: &FirewallConfig) -> (Vec<Backend>, Vec<FirewallError>) {
        let setups = self.setups(setup);
        let (mut places, mut errors) = (Vec::new(), Vec::new());
        for backend in
            [Backend::IptablesLegacy, Backend::IptablesNft].into_iter().filter(|b| self.programs.has(*b))
        {
            match self.programs.list(backend) {
                Ok(now) if edits::removal(&now, &setups).is_some() => places.push(backend),
                Ok(_) => {}
                Err(e) => errors.push(e),
            }
        }
        if self.programs.has(Backend::Nft) && setups.iter().any(|s| self.is_native(s)) {
            places.push(Backend::Nft);
        }
        (places, errors)
    }

    fn remove_from(&self, backend: Backend, setups: &[FirewallConfig]) -> Result<bool, FirewallError> {
        if !self.programs.has(backend) {
            return Ok(false);
        }
        if backend == Backend::Nft {
            let mut removed = false;
            for setup in setups {
                if self.is_native(setup) {
                    let guest = self.guest_chain();
                    let script = native::removal(setup.instance.as_deref(), guest.as_deref());
                    self.programs.nft_script(&script)?;
                    removed = true;
                }
            }
            return Ok(removed);
        }
        Ok(self.programs.edit(backend, |now| edits::removal(now, setups))?)
    }
}
