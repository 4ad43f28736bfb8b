//! Keeps the host as the peer needs it. It runs in its own thread, because it waits for programs and locks. The thread executes
//! [`Command`]s one after the other, and every two seconds compares all that was set up with what it has to be:
//!
//! | [`Check`] | what | if it is otherwise |
//! | --- | --- | --- |
//! | `Devices` | bridge and uplink: Ethernet address, MTU, state, master, flags of the port, settings, ingress filter | restored |
//! | `Ports` | ports of containers: master, state, MTU | restored; one on another bridge is reported |
//! | `Shortcuts` | at which ports frames bypass the bridge | changed; logged why none has it |
//! | `Exposed` | exposed addresses | restored |
//! | `Forwarding` | IP forwarding of the host and of the bridge, while addresses are exposed | restored |
//! | `Rules` | firewall rules | restored |
//! | `Names` | the addresses at which names are served | followed; one that cannot be used is reported |
//! | `Obstacles` | routes, firewalls and settings of other programs that keep packets from passing | reported |
//! | `Containers` | what containers got from an earlier launch, once after the start | changed; what cannot be is reported |
//! | `State` | the file with the exposed addresses | written again |
//!
//! What is restored is logged. What is wrong and stays so is logged once and shown by `weave status` until it is right.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use weave_fastdp::Shortcuts;
use weave_host::firewall::{Backend, DockerBridge, ExposedAddress, FirewallConfig, FirewallManager};
use weave_host::{BridgeConfig, DeviceNames, Error, FirewallError, Mtu, fault_injection};
use weave_types::{Cidr, PeerName};

use crate::config::{Config, ListenAddr};
use crate::host::devices::{self, Ensured};
use crate::host::dns_listener::DnsListener;
use crate::storage::HostState;
use crate::storage::StoreError;

/// Interval between checks of firewall and devices; a flushed rule is back within it.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(2);
/// Interval between checks at which ports frames may bypass the bridge, while there are the same ports.
const SHORTCUTS_INTERVAL: Duration = Duration::from_secs(10);
/// Interval between searches for obstacles while rules change, which run a program that may print much.
const OBSTACLES_INTERVAL: Duration = Duration::from_secs(4);
/// Interval between searches for obstacles while no rules change; routes change without notice.
const IDLE_OBSTACLES_INTERVAL: Duration = Duration::from_secs(60);
const MEMORY_INTERVAL: Duration = Duration::from_secs(60);
/// Longest wait for a command in progress when the daemon ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) enum Command {
    /// Adds all of the addresses to the bridge, or none. The answer is what keeps packets from passing nevertheless.
    Expose(Vec<ExposedAddress>, oneshot::Sender<Result<Vec<String>, String>>),
    /// Removes all of the addresses from the bridge, or none.
    Hide(Vec<Cidr>, oneshot::Sender<Result<(), String>>),
    /// The networks that the allocator owns have changed (`--no-masq-local`).
    SetLocalNetworks(Vec<Cidr>),
    /// Searches what keeps packets from passing, which is the answer, and gives the containers of earlier launches what new ones get.
    CheckHost(oneshot::Sender<Vec<String>>),
}

/// What is wrong on the host and stays so, for `weave status`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Problems(Arc<Mutex<BTreeMap<Check, Vec<String>>>>);

impl Problems {
    /// One line for each problem.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }

    /// Replaces what a check has found, and logs what it had not found before.
    fn set(&self, check: Check, texts: Vec<String>) {
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = problems.get(&check).map_or(&[][..], Vec::as_slice);
        texts.iter().filter(|text| !known.contains(text)).for_each(|text| tracing::warn!("{text}"));
        if texts.is_empty() {
            problems.remove(&check);
        } else {
            problems.insert(check, texts);
        }
    }
}

#[derive(Debug)]
pub(crate) struct ReconcilerHandle {
    commands: Option<Sender<Command>>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    problems: Problems,
}

impl ReconcilerHandle {
    /// Once the thread has ended, the answer channel of the command is dropped.
    pub(crate) fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.problems.lines()
    }

    /// Waits for the command in progress.
    pub(crate) fn stop(&mut self) {
        self.commands = None;
        if self.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a change of the firewall did not finish in time; the next start completes it");
        } else if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why an address was not exposed or hidden. The host is as it was before, unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Host(#[from] Error),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug)]
pub(crate) struct HostReconciler {
    names: DeviceNames,
    bridge: BridgeConfig,
    firewall_config: FirewallConfig,
    /// Configured name of Docker's bridge, which may be created later.
    docker_bridge: Option<String>,
    firewall: FirewallManager,
    state: HostState,
    /// The last write of `state` failed.
    unsaved: bool,
    problems: Problems,
    /// Indexes of ports that were seen on the bridge.
    known_ports: BTreeSet<u32>,
    containers_updated: bool,
    /// How often rules were installed.
    rule_changes: u64,
    /// How often something else was restored.
    restored: BTreeMap<String, u64>,
    /// When obstacles were last searched; `None` if they have to be searched.
    obstacles_searched: Option<Instant>,
    /// The rules of this host have changed since then.
    foreign_changes: bool,
    /// `None` if no names are served.
    dns: Option<DnsListener>,
    /// `None` without the kernel path, or if the kernel has no shortcuts.
    shortcuts: Option<Shortcuts>,
    /// For which ports shortcuts were last checked, and when.
    shortcuts_checked: Option<(BTreeSet<u32>, Instant)>,
    /// Why no port has one.
    no_shortcuts: Option<String>,
}

/// What is compared with what it has to be (see the module's documentation).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Check {
    Devices,
    Ports,
    Shortcuts,
    Exposed,
    Forwarding,
    Rules,
    Names,
    Obstacles,
    Containers,
    State,
}

impl HostReconciler {
    /// Reads the stored state. Changes nothing.
    pub(crate) fn new(config: &Config, name: PeerName) -> Result<HostReconciler, StoreError> {
        let state = HostState::open(&config.state_dir)?;
        let control_port = match &config.http_addr {
            Some(ListenAddr::Tcp { port, .. }) => Some(*port),
            _ => None,
        };
        let firewall_config = FirewallConfig {
            instance: config.instance.clone(),
            bridge: config.bridge.clone(),
            port: config.port,
            control_port,
            docker: None,
            expect_npc: config.expect_npc,
            no_masq_local: config.no_masq_local,
            dns_port: config.dns.as_ref().map(|dns| dns.port()),
        };
        let previous = state.firewall.iter().filter(|f| **f != firewall_config).cloned().collect();
        Ok(HostReconciler {
            names: devices::device_names(config),
            bridge: devices::bridge(config, name),
            firewall_config,
            docker_bridge: config.docker_bridge.clone(),
            firewall: FirewallManager::new(previous),
            state,
            unsaved: false,
            problems: Problems::default(),
            known_ports: BTreeSet::new(),
            containers_updated: false,
            rule_changes: 0,
            restored: BTreeMap::new(),
            obstacles_searched: None,
            foreign_changes: false,
            dns: None,
            shortcuts: None,
            shortcuts_checked: None,
            no_shortcuts: None,
        })
    }

    /// Creates devices, addresses and rules, and returns the MTU of bridge and uplink. Only a device that cannot be created is
    /// a failure, and is undone: a peer without firewall rules is better than no peer. `local_networks` are those that the
    /// allocator owns.
    pub(crate) fn start(&mut self, local_networks: Vec<Cidr>) -> Result<u32, Error> {
        let root = std::path::Path::new("/");
        let files = weave_host::unmanaged::install(root, &self.names).unwrap_or_else(|e| {
            tracing::warn!("NetworkManager, systemd-networkd or udev may change weave's devices: {e}");
            Vec::new()
        });
        let Ensured { mtu, problems, .. } = devices::ensure(&self.names, &self.bridge).inspect_err(|_| {
            if !files.is_empty() {
                weave_host::unmanaged::remove(root, &self.names);
            }
        })?;
        tracing::info!("bridge {} with MTU {mtu}, uplink {}", self.names.bridge, self.names.device);
        self.problems.set(Check::Devices, problems);
        self.bridge.mtu = Mtu::Exactly(mtu);
        self.firewall_config.docker = self.find_docker_bridge();
        self.adopt_addresses();
        self.state.firewall = Some(self.firewall_config.clone());
        self.save();
        self.firewall
            .remove_stale_backends(&self.firewall_config)
            .iter()
            .for_each(|e| tracing::debug!("cannot remove rules of another firewall backend: {e}"));
        self.firewall.set_local_networks(local_networks);
        self.reconcile_rules();
        Ok(mtu)
    }

    /// Writes the state. After a failure the next check tries again.
    fn save(&mut self) {
        let result = self.state.write();
        self.unsaved = result.is_err();
        let text = |e| format!("exposed addresses are not saved and may be lost at a restart, retrying: {e}");
        self.problems.set(Check::State, result.err().map(text).into_iter().collect());
    }

    /// Addresses that are on the bridge but not in the state were exposed by an operator, and are added to the state with
    /// masquerading (docs/spec/cli.md 4.2). Then all addresses of the state are put on the bridge.
    fn adopt_addresses(&mut self) {
        let present = weave_host::bridge_addresses(&self.names.bridge).unwrap_or_else(|e| {
            tracing::warn!("addresses of the bridge are not known: {e}");
            Vec::new()
        });
        for address in present {
            if !self.state.exposed.iter().any(|e| e.address == address) {
                self.state.exposed.push(ExposedAddress { address, masquerade: true });
            }
        }
        // A daemon that was killed during `hide` has removed some of the addresses. Their order matters: the first one is the
        // source address of the host's own packets.
        let wanted: Vec<Cidr> = self.state.exposed.iter().map(|e| e.address).collect();
        if let Err(e) = weave_host::restore_bridge_addresses(&self.names.bridge, &wanted) {
            tracing::debug!("cannot restore the order of exposed addresses: {e}");
        }
        self.add_missing_addresses();
        self.reconcile_forwarding();
    }

    /// Adds exposed addresses that are missing, and announces all of them.
    fn add_missing_addresses(&mut self) {
        let mut problems = Vec::new();
        for ExposedAddress { address, .. } in &self.state.exposed {
            match weave_host::add_bridge_address(&self.names.bridge, *address) {
                Ok(true) => tracing::info!("restored exposed address {address} on {}", self.names.bridge),
                Ok(false) => {}
                Err(e) => {
                    problems.push(format!("cannot restore exposed address {address}, it stays hidden: {e}"))
                }
            }
        }
        self.problems.set(Check::Exposed, problems);
    }

    fn reconcile_forwarding(&mut self) {
        let mut problems = Vec::new();
        if !self.state.exposed.is_empty() {
            match weave_host::ensure_forwarding(&self.names.bridge) {
                Ok(changes) => changes.iter().for_each(|change| self.log_restored(change)),
                Err(e) => problems
                    .push(format!("other hosts cannot reach the exposed networks through this host: {e}")),
            }
        }
        self.problems.set(Check::Forwarding, problems);
    }

    /// Another program may change something again and again, so only the first time and powers of two are logged.
    fn log_restored(&mut self, change: &str) {
        const CAPACITY: usize = 64;
        if self.restored.len() >= CAPACITY {
            self.restored.clear();
        }
        let count = self.restored.entry(change.to_owned()).or_default();
        *count += 1;
        if count.is_power_of_two() {
            tracing::warn!("{change}: restored ({count} times)");
        }
    }

    fn find_docker_bridge(&self) -> Option<DockerBridge> {
        let name = self.docker_bridge.as_ref().filter(|name| **name != self.names.bridge)?;
        let address = weave_host::first_address(name).ok().flatten()?;
        Some(DockerBridge { name: name.clone(), address })
    }

    /// The addresses that the host has on the container network.
    pub(crate) fn exposed(&self) -> Vec<Cidr> {
        self.state.exposed.iter().map(|e| e.address).collect()
    }

    /// Names are served at the addresses of this host from now on.
    pub(crate) fn serve_names(&mut self, dns: DnsListener) {
        self.dns = Some(dns);
        self.update_dns();
    }

    /// The kernel path is there.
    pub(crate) fn use_shortcuts(&mut self, shortcuts: Shortcuts) {
        self.shortcuts = Some(shortcuts);
    }

    fn update_dns(&mut self) {
        let exposed = self.exposed();
        let docker = self.firewall_config.docker.as_ref();
        if let Some(dns) = &mut self.dns {
            self.problems.set(Check::Names, dns.update(docker, &exposed));
        }
    }

    pub(crate) fn spawn(mut self) -> std::io::Result<ReconcilerHandle> {
        let problems = self.problems.clone();
        let (commands, todo) = channel();
        let (end, ended) = channel();
        let thread = std::thread::Builder::new().name("weave-host".to_owned()).spawn(move || {
            let mut released_at = Instant::now();
            loop {
                if released_at.elapsed() >= MEMORY_INTERVAL {
                    released_at = Instant::now();
                    weave_host::release_free_memory();
                }
                match todo.recv_timeout(RECONCILE_INTERVAL) {
                    Ok(command) => self.execute(command),
                    // Containers are updated first, for which the MTU of their ports has to be as it was.
                    Err(RecvTimeoutError::Timeout) if !self.containers_updated => {}
                    Err(RecvTimeoutError::Timeout) => self.reconcile(),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            drop(end);
        })?;
        Ok(ReconcilerHandle { commands: Some(commands), ended, thread: Some(thread), problems })
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::SetLocalNetworks(networks) => {
                let all = join(networks.iter().copied());
                self.firewall.set_local_networks(networks);
                if self.ensure_rules() {
                    tracing::debug!("local networks without masquerading: {all}");
                }
            }
            Command::Expose(exposed, answer) => {
                let all = join(exposed.iter().map(|e| e.address));
                let result = {
                    let _operation = fault_injection::operation("expose");
                    self.expose(&exposed).map_err(|e| e.to_string())
                };
                match &result {
                    Ok(()) => tracing::info!(
                        "exposed {all}{}",
                        if exposed.iter().all(|e| e.masquerade) { "" } else { " without masquerade" }
                    ),
                    Err(e) => tracing::warn!("unable to expose {all}: {e}"),
                }
                self.update_dns();
                let _ = answer.send(result.map(|()| {
                    self.search_obstacles();
                    self.problems.lines()
                }));
            }
            Command::Hide(addresses, answer) => {
                let _operation = fault_injection::operation("hide");
                let all = join(addresses.iter().copied());
                let result = self.hide(&addresses).map_err(|e| e.to_string());
                match &result {
                    Ok(()) => tracing::info!("hidden {all}"),
                    Err(e) => tracing::warn!("unable to hide {all}: {e}"),
                }
                self.update_dns();
                let _ = answer.send(result);
            }
            Command::CheckHost(answer) => {
                self.search_obstacles();
                let _ = answer.send(self.problems.lines());
                self.update_containers();
            }
        }
    }

    /// The state is written first, so that the next start completes what a killed daemon has begun. Forwarding is enabled
    /// last, because it is not undone: other programs may rely on it.
    fn expose(&mut self, new: &[ExposedAddress]) -> Result<(), CommandError> {
        let before = self.state.exposed.clone();
        for new in new {
            match self.state.exposed.iter_mut().find(|e| e.address == new.address) {
                Some(e) => e.masquerade = new.masquerade,
                None => self.state.exposed.push(*new),
            }
        }
        let mut added = Vec::new();
        let done = self.state.write().map_err(CommandError::from).and_then(|()| {
            for new in new {
                if weave_host::add_bridge_address(&self.names.bridge, new.address)? {
                    added.push(new.address);
                }
            }
            self.firewall.ensure(&self.firewall_config, &self.state.exposed)?;
            for change in weave_host::ensure_forwarding(&self.names.bridge)? {
                tracing::info!("{change}: switched on for exposed networks");
            }
            Ok(())
        });
        done.inspect_err(|_| {
            self.state.exposed = before;
            for address in added.into_iter().rev() {
                let removed = weave_host::remove_bridge_address(&self.names.bridge, address);
                removed.map_or_else(
                    |e| tracing::error!("cannot take back exposed address {address}: {e}"),
                    drop,
                );
            }
            self.restore_rules_and_state();
        })
    }

    /// The state is written last, so that the next start exposes again what a killed daemon has begun to hide.
    fn hide(&mut self, addresses: &[Cidr]) -> Result<(), CommandError> {
        let before = self.state.exposed.clone();
        let present = weave_host::bridge_addresses(&self.names.bridge)?;
        self.state.exposed.retain(|e| !addresses.contains(&e.address));
        if self.state.exposed == before && !addresses.iter().any(|a| present.contains(a)) {
            return Ok(());
        }
        let removed = addresses.iter().try_for_each(|address| {
            weave_host::remove_bridge_address(&self.names.bridge, *address)
                .map(drop)
                .map_err(CommandError::from)
        });
        let rules = removed
            .and_then(|()| Ok(self.firewall.ensure(&self.firewall_config, &self.state.exposed).map(drop)?));
        rules.and_then(|()| Ok(self.state.write()?)).inspect_err(|_| {
            self.state.exposed = before;
            let restored = weave_host::restore_bridge_addresses(&self.names.bridge, &present);
            restored.unwrap_or_else(|e| tracing::error!("cannot restore hidden addresses: {e}"));
            self.restore_rules_and_state();
        })
    }

    /// Makes rules and file match the list of exposed addresses again.
    fn restore_rules_and_state(&mut self) {
        self.save();
        if let Err(e) = self.firewall.ensure(&self.firewall_config, &self.state.exposed) {
            tracing::error!("cannot restore firewall rules, retrying: {e}");
        }
    }

    /// Puts back what other programs have changed.
    fn reconcile(&mut self) {
        if self.unsaved {
            self.save();
        }
        self.reconcile_devices();
        self.reconcile_forwarding();
        let docker = self.find_docker_bridge();
        if docker != self.firewall_config.docker {
            match &docker {
                Some(DockerBridge { name, address }) => {
                    tracing::info!(
                        "updating firewall rules: Docker's bridge is {name} with address {address}"
                    );
                }
                None => tracing::info!("updating firewall rules: Docker's bridge is gone"),
            }
            self.firewall.add_previous(self.firewall_config.clone());
            self.firewall_config.docker = docker;
            self.state.firewall = Some(self.firewall_config.clone());
            self.save();
            self.reconcile_rules();
            self.foreign_changes = true;
        } else if self.firewall.may_have_changed() {
            self.reconcile_rules();
            self.foreign_changes = true;
        }
        self.update_dns();
        let searched = self.obstacles_searched.map(|at| at.elapsed());
        if searched.is_none_or(|age| {
            age >= if self.foreign_changes { OBSTACLES_INTERVAL } else { IDLE_OBSTACLES_INTERVAL }
        }) {
            self.search_obstacles();
        }
    }

    fn search_obstacles(&mut self) {
        self.obstacles_searched = Some(Instant::now());
        self.foreign_changes = false;
        let exposed = self.exposed();
        let found = weave_host::obstacles(&self.names.bridge, self.firewall_config.port, &exposed);
        self.problems.set(Check::Obstacles, found.unwrap_or_else(|e| vec![e.to_string()]));
    }

    fn update_containers(&mut self) {
        let problems = match weave_host::update_containers(&self.names.bridge) {
            Ok(updated) => {
                updated
                    .changes
                    .iter()
                    .for_each(|change| tracing::info!("containers of earlier launches: {change}"));
                updated.problems
            }
            Err(e) => vec![format!("cannot compare the containers of earlier launches with new ones: {e}")],
        };
        self.problems.set(Check::Containers, problems);
        self.containers_updated = true;
        self.reconcile_ports();
    }

    fn reconcile_rules(&mut self) {
        if self.ensure_rules() {
            // Another program may remove them again and again, so only the first change and powers of two are logged.
            let backend = self.firewall.backend().map_or("none", Backend::name);
            if self.rule_changes.is_power_of_two() || self.rule_changes == 0 {
                let count = self.rule_changes + 1;
                tracing::info!("firewall rules are in place ({backend}, made {count} times)");
            }
            self.rule_changes += 1;
            if let Some(why) = self.firewall.tracks_questions().filter(|_| self.rule_changes == 1) {
                tracing::info!("questions of containers for names are tracked as connections: {why}");
            }
        }
    }

    /// Whether rules had to be changed and could be changed.
    fn ensure_rules(&mut self) -> bool {
        let result = self.firewall.ensure(&self.firewall_config, &self.state.exposed);
        let missing = self.firewall.warning(&self.firewall_config);
        let failed = result.as_ref().err().map(|e| format!("firewall rules are missing, retrying: {e}"));
        self.problems.set(Check::Rules, missing.into_iter().chain(failed).collect());
        result.unwrap_or(false)
    }

    fn reconcile_devices(&mut self) {
        match devices::ensure(&self.names, &self.bridge) {
            Ok(Ensured { created, changes, problems, .. }) => {
                if created {
                    tracing::warn!(
                        "bridge {} or its uplink was removed, created it again",
                        self.names.bridge
                    );
                }
                changes.iter().for_each(|change| self.log_restored(change));
                self.problems.set(Check::Devices, problems);
                self.reconcile_ports();
                self.reconcile_shortcuts();
                self.reconcile_addresses();
            }
            Err(e) => {
                let text = format!("cannot check or restore the bridge and its uplink: {e}");
                self.problems.set(Check::Devices, vec![text]);
            }
        }
    }

    fn reconcile_ports(&mut self) {
        let problems = match weave_host::restore_ports(&self.names, &mut self.known_ports) {
            Ok(restored) => {
                restored.changes.iter().for_each(|change| self.log_restored(change));
                restored.problems
            }
            Err(e) => vec![format!("cannot check or restore the ports of containers: {e}")],
        };
        self.problems.set(Check::Ports, problems);
    }

    /// Lets frames of containers bypass the bridge at the ports where nothing else wants to see them.
    fn reconcile_shortcuts(&mut self) {
        let Some(shortcuts) = &mut self.shortcuts else { return };
        if let Some((ports, at)) = &self.shortcuts_checked
            && *ports == self.known_ports
            && at.elapsed() < SHORTCUTS_INTERVAL
        {
            return;
        }
        let result = weave_host::shortcut_ports(&self.names.bridge)
            .map_err(weave_fastdp::Error::from)
            .and_then(|ports| shortcuts.set(&ports.with, &ports.without).map(|()| ports.why_none));
        self.shortcuts_checked = Some((self.known_ports.clone(), Instant::now()));
        let problem = match result {
            Ok(why) => {
                if let Some(why) = why.as_ref().filter(|why| self.no_shortcuts.as_ref() != Some(why)) {
                    tracing::info!("frames of containers do not bypass the bridge: {why}");
                }
                self.no_shortcuts = why;
                None
            }
            Err(error @ weave_fastdp::Error::Unsupported { .. }) => {
                tracing::info!("frames of containers do not bypass the bridge: {error}");
                self.shortcuts = None;
                None
            }
            Err(error) => Some(format!("cannot change at which ports frames bypass the bridge: {error}")),
        };
        self.problems.set(Check::Shortcuts, problem.into_iter().collect());
    }

    fn reconcile_addresses(&mut self) {
        let present = match weave_host::bridge_addresses(&self.names.bridge) {
            Ok(present) => present,
            Err(e) => return self.problems.set(Check::Exposed, vec![e.to_string()]),
        };
        if self.state.exposed.iter().any(|e| !present.contains(&e.address)) {
            tracing::warn!(
                "an exposed address was removed from {}, restoring it; use 'weave hide' to hide it",
                self.names.bridge
            );
            self.add_missing_addresses();
        }
    }
}

fn join(addresses: impl Iterator<Item = Cidr>) -> String {
    addresses.map(|a| a.to_string()).collect::<Vec<_>>().join(" ")
}
