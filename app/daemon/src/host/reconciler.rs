//! Keeps the host as the peer needs it: bridge and uplink, exposed addresses, firewall rules.
//!
//! A thread of its own, because programs and locks are waited for. It does what `expose` and `hide` ask for, one after the
//! other, and looks every two seconds whether somebody has changed what it made: a flushed firewall, a deleted
//! bridge, a lost address.

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

/// How often the host is looked at. What was flushed is to be back within ten seconds.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a piece of work that has begun is waited for when the daemon ends.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What to do. The text that comes back is for a person.
#[derive(Debug)]
pub(crate) enum Command {
    /// All or none.
    Expose(Vec<ExposedAddress>, oneshot::Sender<Result<(), String>>),
    /// All or none.
    Hide(Vec<Cidr>, oneshot::Sender<Result<(), String>>),
    /// What the allocator owns from now on, for `--no-masq-local`.
    Local(Vec<Cidr>),
}

/// The way to the thread.
#[derive(Debug)]
pub(crate) struct ReconcilerHandle {
    commands: Option<Sender<Command>>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl ReconcilerHandle {
    /// Whoever asked gets no answer once the thread has ended.
    pub(crate) fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
    }

    /// Waits until what has begun is done.
    pub(crate) fn stop(mut self) {
        self.commands = None;
        if self.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "the host's firewall does not answer, it may be left half-way until the next start"
            );
        } else if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why an address was not exposed or hidden. Everything is as it was, unless the text says otherwise.
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
    setup: FirewallConfig,
    /// Docker's bridge as configured; it may come later.
    docker: Option<String>,
    guard: FirewallManager,
    state: HostState,
    /// The file does not say what is in `state`.
    unsaved: bool,
    /// What was told already.
    told: Vec<String>,
    /// How often rules were put back.
    repairs: u64,
}

impl HostReconciler {
    /// Reads what is remembered. Changes nothing.
    pub(crate) fn new(config: &Config, name: PeerName) -> Result<HostReconciler, StoreError> {
        let state = HostState::open(&config.state_dir)?;
        let control_port = match &config.http_addr {
            Some(ListenAddr::Tcp { port, .. }) => Some(*port),
            _ => None,
        };
        let setup = FirewallConfig {
            instance: config.instance.clone(),
            bridge: config.bridge.clone(),
            port: config.port,
            control_port,
            docker: None,
            expect_npc: config.expect_npc,
            no_masq_local: config.no_masq_local,
        };
        let former: Vec<FirewallConfig> = state.firewall.iter().filter(|f| **f != setup).cloned().collect();
        Ok(HostReconciler {
            names: devices::device_names(config),
            bridge: devices::bridge(config, name),
            setup,
            docker: config.docker_bridge.clone(),
            guard: FirewallManager::new(former),
            state,
            unsaved: false,
            told: Vec::new(),
            repairs: 0,
        })
    }

    /// Makes everything; gives the MTU of bridge and uplink. Only a device that cannot be made is a failure, and is undone:
    /// without firewall rules a peer is better than none. `local`: what the allocator owns, for `--no-masq-local`.
    pub(crate) fn start(&mut self, local: Vec<Cidr>) -> Result<u32, Error> {
        let root = std::path::Path::new("/");
        let files = weave_host::unmanaged::install(root, &self.names).unwrap_or_else(|e| {
            tracing::warn!("other programs may change our devices: {e}");
            Vec::new()
        });
        let mtu = devices::ensure(&self.names, &self.bridge).inspect_err(|_| {
            if !files.is_empty() {
                weave_host::unmanaged::remove(root, &self.names);
            }
        })?;
        self.bridge.mtu = Mtu::Exactly(mtu);
        self.setup.docker = self.find_docker();
        self.adopt_addresses();
        self.state.firewall = Some(self.setup.clone());
        self.save();
        self.guard.warning(&self.setup).iter().for_each(|n| tracing::warn!("{n}"));
        self.guard
            .remove_stale_backends(&self.setup)
            .iter()
            .for_each(|e| tracing::debug!("tidying other rules: {e}"));
        self.guard.set_local_networks(local);
        self.reconcile_rules();
        Ok(mtu)
    }

    /// Writes down what was done; if that fails it is tried again at the next look.
    fn save(&mut self) {
        let done = self.state.write();
        self.unsaved = done.is_err();
        if let Err(e) = done {
            self.tell(format!("what was done to this host is not written down, it is tried again: {e}"));
        }
    }

    /// What is remembered goes to the bridge; what is on the bridge was exposed by somebody and is remembered, with address
    /// translation (docs/spec/cli.md 4.2).
    fn adopt_addresses(&mut self) {
        let present = weave_host::bridge_addresses(&self.names.bridge).unwrap_or_else(|e| {
            tracing::warn!("{e}");
            Vec::new()
        });
        for address in present {
            if !self.state.exposed.iter().any(|e| e.address == address) {
                self.state.exposed.push(ExposedAddress { address, masquerade: true });
            }
        }
        // A daemon that was killed while it hid some had not taken away all of them; they come back in their order.
        let wanted: Vec<Cidr> = self.state.exposed.iter().map(|e| e.address).collect();
        if let Err(e) = weave_host::restore_bridge_addresses(&self.names.bridge, &wanted) {
            tracing::debug!("{e}");
        }
        self.put_addresses();
        if !self.state.exposed.is_empty() {
            let _ = self.forward();
        }
    }

    /// Addresses that are missing, and all of them announced.
    fn put_addresses(&mut self) {
        let exposed = self.state.exposed.clone();
        for ExposedAddress { address, .. } in exposed {
            match weave_host::add_bridge_address(&self.names.bridge, address) {
                Ok(added) => {
                    if added {
                        tracing::info!("{address} is on {} again", self.names.bridge);
                    }
                }
                Err(e) => self.tell(format!("{address} stays hidden: {e}")),
            }
        }
    }

    fn forward(&self) -> Result<bool, Error> {
        let changed = weave_host::enable_forwarding()?;
        if changed {
            tracing::info!(
                "this host forwards packets from now on (net.ipv4.ip_forward), for its exposed networks"
            );
        }
        Ok(changed)
    }

    fn find_docker(&self) -> Option<DockerBridge> {
        let name = self.docker.as_ref().filter(|name| **name != self.names.bridge)?;
        let address = weave_host::first_address(name).ok().flatten()?;
        Some(DockerBridge { name: name.clone(), address })
    }

    /// Says a thing once until it is over.
    fn tell(&mut self, text: String) {
        const MOST: usize = 32;
        if self.told.len() >= MOST {
            self.told.clear();
        }
        if !self.told.contains(&text) {
            tracing::warn!("{text}");
            self.told.push(text);
        }
    }

    /// Starts the thread.
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
            Command::Local(networks) => {
                let all = list(networks.iter().copied());
                self.guard.set_local_networks(networks);
                if self.ensure_rules() {
                    tracing::debug!("reached without translation: {all}");
                }
            }
            Command::Expose(exposed, answer) => {
                let _operation = fault_injection::operation("expose");
                let all = list(exposed.iter().map(|e| e.address));
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
                let all = list(addresses.iter().copied());
                let result = self.hide(&addresses).map_err(|e| e.to_string());
                match &result {
                    Ok(()) => tracing::info!("hidden {all}"),
                    Err(e) => tracing::warn!("unable to hide {all}: {e}"),
                }
                let _ = answer.send(result);
            }
        }
    }

    /// Written down first: who is killed on the way finds the rest done at the next start. That the host forwards is last,
    /// because nobody knows what it would be good to go back to.
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
            self.guard.ensure(&self.setup, &self.state.exposed)?;
            Ok(self.forward().map(drop)?)
        });
        done.inspect_err(|_| {
            self.state.exposed = before;
            for address in added.into_iter().rev() {
                let removed = weave_host::remove_bridge_address(&self.names.bridge, address);
                removed.map_or_else(|e| tracing::error!("could not be undone: {e}"), drop);
            }
            self.restore_rules_and_state();
        })
    }

    /// Forgotten last: who is killed on the way is exposed again at the next start.
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
        let rules =
            removed.and_then(|()| Ok(self.guard.ensure(&self.setup, &self.state.exposed).map(drop)?));
        rules.and_then(|()| Ok(self.state.write()?)).inspect_err(|_| {
            self.state.exposed = before;
            let restored = weave_host::restore_bridge_addresses(&self.names.bridge, &present);
            restored.unwrap_or_else(|e| tracing::error!("could not be undone: {e}"));
            self.restore_rules_and_state();
        })
    }

    /// Rules and file as the list says.
    fn restore_rules_and_state(&mut self) {
        self.save();
        if let Err(e) = self.guard.ensure(&self.setup, &self.state.exposed) {
            tracing::error!("could not be undone, it is tried again: {e}");
        }
    }

    /// Everything that others may have changed.
    fn reconcile(&mut self) {
        if self.unsaved {
            self.save();
        }
        if let Err(e) = self.reconcile_devices() {
            self.tell(format!("the bridge or its uplink cannot be looked after: {e}"));
        }
        let docker = self.find_docker();
        if docker != self.setup.docker {
            tracing::info!("Docker's bridge is another one now: {docker:?}");
            self.guard.add_previous(self.setup.clone());
            self.setup.docker = docker;
            self.state.firewall = Some(self.setup.clone());
            self.save();
            self.reconcile_rules();
        } else if self.guard.may_have_changed() {
            self.reconcile_rules();
        }
    }

    fn reconcile_rules(&mut self) {
        // Somebody may take them away all the time: told less and less often.
        if self.ensure_rules() {
            let place = self.guard.backend().map_or("none", Backend::name);
            if self.repairs.is_power_of_two() || self.repairs == 0 {
                tracing::info!("firewall rules are in place ({place}, made {} times)", self.repairs + 1);
            }
            self.repairs += 1;
        }
    }

    /// Whether something had to be done for them, and could be.
    fn ensure_rules(&mut self) -> bool {
        const MISSING: &str = "firewall rules are missing";
        match self.guard.ensure(&self.setup, &self.state.exposed) {
            Ok(changed) => {
                self.told.retain(|text| !text.starts_with(MISSING));
                changed
            }
            Err(e) => {
                self.tell(format!("{MISSING}, it is tried again: {e}"));
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
            tracing::warn!("{} or its uplink was removed: making it again", self.names.bridge);
            devices::ensure(&self.names, &self.bridge)?;
            let adopted = weave_host::adopt_orphans(&self.names)?;
            if !adopted.is_empty() {
                tracing::info!("containers joined to it again: {}", adopted.join(" "));
            }
            self.put_addresses();
            return Ok(());
        };
        // Words of 2.8.1, which scripts look for.
        let down = format!(
            "Interface \"{}\" which needs to be in UP state for Weave functioning is found to be in DOWN state",
            bridge.name
        );
        let hairpin = format!("Hairpin mode enabled on \"{}\"", port.name);
        for (is_so, text) in [(!bridge.up, down), (port.hairpin == Some(true), hairpin)] {
            if is_so {
                self.tell(text);
            } else {
                self.told.retain(|t| *t != text);
            }
        }
        let present = netlink.addresses_of(bridge)?;
        if self.state.exposed.iter().any(|e| !present.contains(&e.address)) {
            tracing::warn!("an exposed address was taken from {}; use 'weave hide' for that", bridge.name);
            self.put_addresses();
        }
        Ok(())
    }
}

/// Addresses as one text.
fn list(addresses: impl Iterator<Item = Cidr>) -> String {
    addresses.map(|a| a.to_string()).collect::<Vec<_>>().join(" ")
}
