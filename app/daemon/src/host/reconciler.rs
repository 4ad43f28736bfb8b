//! Keeps the host as the peer needs it: bridge and uplink, exposed addresses, firewall rules.
//!
//! It runs in its own thread, because it waits for programs and locks. The thread executes [`Command`]s one after the other,
//! and checks every two seconds whether other programs have changed what it set up: a flushed firewall, a deleted bridge, a
//! missing address.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use weave_host::firewall::{Backend, DockerBridge, ExposedAddress, FirewallConfig, FirewallManager};
use weave_host::{BridgeConfig, DeviceNames, Error, FirewallError, Mtu, Netlink, fault_injection};
use weave_types::{Cidr, PeerName};

use crate::config::{Config, ListenAddr};
use crate::host::devices;
use crate::storage::HostState;
use crate::storage::StoreError;

/// Interval between checks of firewall and devices; a flushed rule is back within it.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for a command in progress when the daemon ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) enum Command {
    /// Adds all of the addresses to the bridge, or none.
    Expose(Vec<ExposedAddress>, oneshot::Sender<Result<(), String>>),
    /// Removes all of the addresses from the bridge, or none.
    Hide(Vec<Cidr>, oneshot::Sender<Result<(), String>>),
    /// The networks that the allocator owns have changed (`--no-masq-local`).
    SetLocalNetworks(Vec<Cidr>),
}

#[derive(Debug)]
pub(crate) struct ReconcilerHandle {
    commands: Option<Sender<Command>>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl ReconcilerHandle {
    /// Once the thread has ended, the answer channel of the command is dropped.
    pub(crate) fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }

    /// Waits for the command in progress.
    pub(crate) fn stop(mut self) {
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
    /// Problems that last, with the text that was logged for each.
    already_logged: Vec<(Problem, String)>,
    /// How often rules were installed.
    rule_changes: u64,
}

/// A condition that is logged once until it is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    BridgeDown,
    Devices,
    ExposedAddress(Cidr),
    HairpinMode,
    Rules,
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
            already_logged: Vec::new(),
            rule_changes: 0,
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
        let mtu = devices::ensure(&self.names, &self.bridge).inspect_err(|_| {
            if !files.is_empty() {
                weave_host::unmanaged::remove(root, &self.names);
            }
        })?;
        self.bridge.mtu = Mtu::Exactly(mtu);
        self.firewall_config.docker = self.find_docker_bridge();
        self.adopt_addresses();
        self.state.firewall = Some(self.firewall_config.clone());
        self.save();
        self.firewall.warning(&self.firewall_config).iter().for_each(|n| tracing::warn!("{n}"));
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
        match result {
            Ok(()) => self.resolved(Problem::State),
            Err(e) => {
                let text =
                    format!("exposed addresses are not saved and may be lost at a restart, retrying: {e}");
                self.log_once(Problem::State, text);
            }
        }
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
        if !self.state.exposed.is_empty()
            && let Err(e) = self.enable_forwarding()
        {
            tracing::warn!("other hosts cannot reach the exposed networks through this host: {e}");
        }
    }

    /// Adds exposed addresses that are missing, and announces all of them.
    fn add_missing_addresses(&mut self) {
        for ExposedAddress { address, .. } in self.state.exposed.clone() {
            match weave_host::add_bridge_address(&self.names.bridge, address) {
                Ok(added) => {
                    self.resolved(Problem::ExposedAddress(address));
                    if added {
                        tracing::info!("restored exposed address {address} on {}", self.names.bridge);
                    }
                }
                Err(e) => self.log_once(
                    Problem::ExposedAddress(address),
                    format!("cannot restore exposed address {address}, it stays hidden: {e}"),
                ),
            }
        }
    }

    fn enable_forwarding(&self) -> Result<(), Error> {
        if weave_host::enable_forwarding()? {
            tracing::info!(
                "enabled IP forwarding on this host (net.ipv4.ip_forward) for its exposed networks"
            );
        }
        Ok(())
    }

    fn find_docker_bridge(&self) -> Option<DockerBridge> {
        let name = self.docker_bridge.as_ref().filter(|name| **name != self.names.bridge)?;
        let address = weave_host::first_address(name).ok().flatten()?;
        Some(DockerBridge { name: name.clone(), address })
    }

    fn log_once(&mut self, problem: Problem, text: String) {
        // Bounds the memory for a text that is different each time.
        const CAPACITY: usize = 32;
        if self.already_logged.len() >= CAPACITY {
            self.already_logged.clear();
        }
        if !self.already_logged.iter().any(|(p, t)| *p == problem && *t == text) {
            tracing::warn!("{text}");
            self.already_logged.push((problem, text));
        }
    }

    fn resolved(&mut self, problem: Problem) {
        self.already_logged.retain(|(p, _)| *p != problem);
    }

    /// The addresses that the host has on the container network.
    pub(crate) fn exposed(&self) -> Vec<Cidr> {
        self.state.exposed.iter().map(|e| e.address).collect()
    }

    pub(crate) fn spawn(mut self) -> std::io::Result<ReconcilerHandle> {
        let (commands, todo) = channel();
        let (end, ended) = channel();
        let thread = std::thread::Builder::new().name("weave-host".to_owned()).spawn(move || {
            loop {
                match todo.recv_timeout(RECONCILE_INTERVAL) {
                    Ok(command) => self.execute(command),
                    Err(RecvTimeoutError::Timeout) => self.reconcile(),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            drop(end);
        })?;
        Ok(ReconcilerHandle { commands: Some(commands), ended, thread: Some(thread) })
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
                let _operation = fault_injection::operation("expose");
                let all = join(exposed.iter().map(|e| e.address));
                let result = self.expose(&exposed).map_err(|e| e.to_string());
                match &result {
                    Ok(()) => tracing::info!(
                        "exposed {all}{}",
                        if exposed.iter().all(|e| e.masquerade) { "" } else { " without masquerade" }
                    ),
                    Err(e) => tracing::warn!("unable to expose {all}: {e}"),
                }
                let _ = answer.send(result);
            }
            Command::Hide(addresses, answer) => {
                let _operation = fault_injection::operation("hide");
                let all = join(addresses.iter().copied());
                let result = self.hide(&addresses).map_err(|e| e.to_string());
                match &result {
                    Ok(()) => tracing::info!("hidden {all}"),
                    Err(e) => tracing::warn!("unable to hide {all}: {e}"),
                }
                let _ = answer.send(result);
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
            Ok(self.enable_forwarding()?)
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
        match self.reconcile_devices() {
            Ok(()) => self.resolved(Problem::Devices),
            Err(e) => {
                let text = format!("cannot check or restore the bridge and its uplink: {e}");
                self.log_once(Problem::Devices, text);
            }
        }
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
        } else if self.firewall.may_have_changed() {
            self.reconcile_rules();
        }
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
        }
    }

    /// Whether rules had to be changed and could be changed.
    fn ensure_rules(&mut self) -> bool {
        match self.firewall.ensure(&self.firewall_config, &self.state.exposed) {
            Ok(changed) => {
                self.resolved(Problem::Rules);
                changed
            }
            Err(e) => {
                self.log_once(Problem::Rules, format!("firewall rules are missing, retrying: {e}"));
                false
            }
        }
    }

    fn reconcile_devices(&mut self) -> Result<(), Error> {
        let mut netlink = Netlink::open()?;
        let mut links = Vec::new();
        for name in [&self.names.bridge, &self.names.port, &self.names.device] {
            links.push(netlink.link(name)?);
        }
        let [Some(bridge), Some(port), Some(_)] = &links[..] else {
            tracing::warn!("bridge {} or its uplink was removed, creating it again", self.names.bridge);
            devices::ensure(&self.names, &self.bridge)?;
            let adopted = weave_host::adopt_orphans(&self.names)?;
            if !adopted.is_empty() {
                tracing::info!("reconnected containers to {}: {}", self.names.bridge, adopted.join(" "));
            }
            self.add_missing_addresses();
            return Ok(());
        };
        // Texts of 2.8.1, which scripts look for.
        let down = format!(
            "Interface \"{}\" which needs to be in UP state for Weave functioning is found to be in DOWN state",
            bridge.name
        );
        let hairpin = format!("Hairpin mode enabled on \"{}\"", port.name);
        for (problem, exists, text) in [
            (Problem::BridgeDown, !bridge.up, down),
            (Problem::HairpinMode, port.hairpin == Some(true), hairpin),
        ] {
            if exists {
                self.log_once(problem, text);
            } else {
                self.resolved(problem);
            }
        }
        let present = netlink.addresses_of(bridge)?;
        if self.state.exposed.iter().any(|e| !present.contains(&e.address)) {
            tracing::warn!(
                "an exposed address was removed from {}, restoring it; use 'weave hide' to hide it",
                bridge.name
            );
            self.add_missing_addresses();
        }
        Ok(())
    }
}

fn join(addresses: impl Iterator<Item = Cidr>) -> String {
    addresses.map(|a| a.to_string()).collect::<Vec<_>>().join(" ")
}
