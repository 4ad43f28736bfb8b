//! Starts a peer from a [`Config`]. Steps that may fail because of configuration or other programs come before those that change
//! the host.
//!
//! ```text
//! 1 run directory, pid file     is another daemon running?
//! 2 name, stored state          readable, writable?
//! 3 sockets: TCP, HTTP, UDP     are the ports free?
//! 4 bridge, uplink              undone if a later step fails
//! 5 peer, HTTP, ready
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use weave_api::host_requests::AttachmentId;
use weave_datapath::{Datapath, DatapathConfig, EventReceiver, Taps};
use weave_dns::RegistryConfig;
use weave_host::Netlink;
use weave_host::fault_injection::{io_fail_point, startup_complete};
use weave_mesh::{Departure, Secret};
use weave_node::{IpamConfig, Node, WarpConfig};
use weave_runtime::{Change, ContainerNetwork, Recovered};
use weave_types::{Cidr, PeerName, PeerUid};

use crate::allocation::{Allocation, own_networks};
use crate::config::{Config, ListenAddr, Overlays, PluginConfig};
use crate::containers::{Containers, long_owner, release_ended};
use crate::control::{AllocationInfo, Control, DnsInfo};
use crate::core::{Clock, Core, EVENT_QUEUE, Signals};
use crate::dns_service::DnsService;
use crate::docker_monitor::DockerHealth;
use crate::host::legacy_database::{self, LegacyDatabase, LegacyDatabaseError};
use crate::host::{HostReconciler, InUse, Inventory, LegacyTakeover, is_docker_id, peer_name};
use crate::http::{Access, Listener};
use crate::kernel_path::{self, KernelPath};
use crate::names::{LocalNames, NameChange};
use crate::net::{self, Net, errno_text};
use crate::notify::Notifier;
use crate::plugin::{PluginError, PluginListeners};
use crate::proxy::{Attacher, ProxyError, ProxyListeners};
use crate::reattacher::Reattacher;
use crate::storage::pid_file::{PidFile, PidFileError};
use crate::storage::{AllocationStore, AttachmentStore, InterfaceStore, NetworkStore, PeerState, StoreError};
use crate::telemetry::failed_handshakes::FailedHandshakes;
use crate::telemetry::log::{self, LogLimiter};
use crate::telemetry::metrics::ConnectionSeries;
use crate::telemetry::recent_events::RecentEvents;
use crate::trace::Tracer;
use crate::{docker_monitor, host, plugin, proxy, resource_limits, trace};

/// Capacity of the queue of HTTP requests.
const REQUEST_QUEUE: usize = 64;
/// Longest wait for another process that changes the host at the start, and for our own threads at the end.
const HOST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a daemon did not start. The text is shown by `weave launch`.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("weave is already running; you can stop it with 'weave stop'.")]
    Running,
    #[error(transparent)]
    PidFile(PidFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Containers(#[from] weave_runtime::Error),
    #[error(transparent)]
    LegacyDatabase(#[from] LegacyDatabaseError),
    #[error(transparent)]
    PeerName(#[from] peer_name::PeerNameError),
    #[error(transparent)]
    Host(#[from] weave_host::Error),
    /// Text of 2.8.1.
    #[error("configuring iptables: Failed to get netdev for {0:?} bridge: Link not found")]
    NoDockerBridge(String),
    #[error("{0}{hint}", hint = udp_hint(.0))]
    Datapath(#[from] weave_datapath::StartError),
    /// `option` chooses another address.
    #[error("cannot listen on {protocol} {addr}: {}{}", errno_text(source), hint(source, option))]
    Listen { protocol: &'static str, addr: String, option: &'static str, source: io::Error },
    #[error("cannot create {path:?}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("cannot write the wait program of containers into {path:?}: {source}")]
    WaitProgram { path: PathBuf, source: io::Error },
    #[error("received SIGINT or SIGTERM before the start was complete")]
    Interrupted,
    #[error("cannot {step}: {source}")]
    System { step: &'static str, source: io::Error },
}

fn hint(e: &io::Error, option: &str) -> String {
    match e.kind() {
        io::ErrorKind::AddrInUse => format!("; another program uses it, choose another with {option}"),
        _ => String::new(),
    }
}

fn udp_hint(e: &weave_datapath::StartError) -> &'static str {
    match e {
        weave_datapath::StartError::Udp(_) => "; choose another with --port or WEAVE_PORT if it is taken",
        _ => "",
    }
}

fn system(step: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { step, source }
}

/// Runs a peer until SIGTERM or SIGINT. An error has already been logged, and sent to `weave launch` and the service manager.
pub fn run(config: Config) -> Result<(), StartError> {
    let notifier = Notifier::new(&config.launch_socket());
    resource_limits::raise();
    weave_host::keep_long_pieces_off_the_heap();
    // The supervisor blocks signals, and a mask is inherited.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(system("start the runtime"))
        .and_then(|runtime| {
            let result = runtime.block_on(serve(config, &notifier));
            // Does not wait for name resolution, which may hang for a long time.
            runtime.shutdown_background();
            result
        });
    if let Err(e) = &result {
        log::line("FATA", &e.to_string());
        notifier.failed(&e.to_string());
    }
    result
}

async fn serve(config: Config, notifier: &Notifier) -> Result<(), StartError> {
    let clock = Clock::start();
    notifier.status("the daemon to read its files");
    let run_dir = config.run_dir.clone();
    let created = !run_dir.exists();
    io_fail_point(&"creating the run directory")
        .and_then(|()| std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&run_dir))
        .map_err(|source| StartError::Directory { path: run_dir.clone(), source })?;
    let result = serve_in_run_dir(config, clock, notifier).await;
    if created && result.is_err() {
        // Removes the directory only if it is empty.
        let _ = std::fs::remove_dir(&run_dir);
    }
    result
}

async fn serve_in_run_dir(config: Config, clock: Clock, notifier: &Notifier) -> Result<(), StartError> {
    let _pid_file = PidFile::take(&config.pid_file()).map_err(|e| match e {
        PidFileError::Held { .. } => StartError::Running,
        other => StartError::PidFile(other),
    })?;
    let network = Arc::new(ContainerNetwork::open(&config.run_dir, HOST_TIMEOUT)?);
    // From here on a signal must not end the process, because the pid file has to be removed.
    let mut signals = Signals::new().map_err(system("wait for signals"))?;
    let legacy = legacy_database::find(&config)?;
    let name = peer_name::peer_name(&config, legacy.as_ref().and_then(|l| l.database.peer_name))?;
    tracing::info!("weave {}", crate::VERSION);
    tracing::info!("Our name is {name}({})", config.nickname);
    let store = PeerState::open(&config.state_dir, name, &peer_name::machine_ids())?;
    let has_wait_programs = config.wait_dir().exists();
    let prepared = tokio::select! {
        prepared = prepare(&config, name, &store, legacy, &network, clock, notifier) => prepared,
        () = signals.recv() => Err(StartError::Interrupted),
    };
    let (prepared, takeover) = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            if !has_wait_programs {
                let _ = std::fs::remove_dir_all(config.wait_dir());
            }
            store.abandon();
            return Err(e);
        }
    };
    let (peers, resumed) = initial_peers(&config, &store, takeover.database());
    let Prepared {
        listener,
        listeners,
        mut proxy,
        mut plugin,
        node,
        allocation,
        dns,
        datapath,
        datapath_events,
        kernel,
        device,
        reconciler,
        local_networks,
        recovered,
        attachments,
        interfaces,
        ended,
    } = prepared;
    let _proxy_files = proxy.as_mut().map(ProxyListeners::take_files);
    let _plugin_files = plugin.as_mut().map(|(listeners, _)| listeners.take_files());
    let reconciler = reconciler.spawn().map_err(system("start a thread"))?;
    let docker = config.legacy.docker.clone();
    let (events_tx, events) = mpsc::channel(EVENT_QUEUE);
    let (mut control, requests) = Control::new(REQUEST_QUEUE);
    if let Some(allocation) = &config.allocation {
        let mut info = AllocationInfo::new(allocation.default_subnet);
        info.no_masq_local = config.no_masq_local;
        control = control.with_allocation(info);
    }
    if let Some((service, config)) = dns.as_ref().zip(config.dns.as_ref()) {
        control = control.with_dns(DnsInfo {
            domain: config.domain.clone(),
            listen: service.listen_addresses(),
            docker: docker.clone(),
        });
    }
    let proxy_addresses = proxy.is_some().then(|| proxy::addresses(&config));
    if let Some(addresses) = &proxy_addresses {
        control = control.with_proxy(addresses.clone());
    }
    let (traces, messages) = trace::inbox();
    let names = host::device_names(&config);
    let tracer = Tracer::start(name, names, control.clone(), (traces.clone(), messages));
    let tracer = Arc::new(tracer.map_err(system("start a thread"))?);
    let containers = Containers::new(network.clone(), &config.bridge, attachments, interfaces);
    let net = Net::new(events_tx.clone(), config.host);
    let docker_health = DockerHealth::default();
    let mut core = Core {
        reconciler,
        device,
        datapath,
        kernel,
        failed_handshakes: FailedHandshakes::default(),
        connection_log_limit: LogLimiter::default(),
        log_limit: LogLimiter::default(),
        connection_series: ConnectionSeries::default(),
        recent_events: RecentEvents::default(),
        clock,
        node,
        net,
        store,
        allocation,
        dns,
        proxy: proxy_addresses,
        plugin: config.plugin.as_ref().map(|plugin| plugin::report(plugin, &config)),
        docker_health: docker_health.clone(),
        traces,
        local_networks: config.no_masq_local.then_some(local_networks),
        events,
        requests,
        departure: Departure::Restart,
        tables_changed: false,
        next_publication: weave_types::Instant::ORIGIN,
    };
    if !config.resume
        && let Err(e) = core.store.set_launched_with(&config.peers)
    {
        tracing::warn!("a restart will not connect to the peers that were added by 'weave connect': {e}");
    }
    let peer_list = if resumed {
        "Restart/resume detected - using persisted peer list"
    } else {
        "Launch detected - using supplied peer list"
    };
    tracing::info!("{peer_list}: [{}]", peers.join(" "));
    // Peers that are down or do not resolve are tried again later, and do not stop a launch.
    for error in core.node.connect(&peers, true, clock.now()) {
        tracing::warn!("{error}");
    }
    if let Some(allocation) = &mut core.allocation {
        allocation.begin(clock.now());
    }
    core.drain();
    // The release of their addresses has been stored.
    recovered.into_iter().for_each(Recovered::finish);
    containers.forget(&ended);
    takeover.finish(&mut core.store);
    let plugin = plugin.zip(config.plugin.clone()).map(|((listeners, networks), plugin)| {
        let (control, containers) = (control.clone(), containers.clone());
        let service = |runtime| plugin::Service::new(&config, plugin, networks, control, containers, runtime);
        plugin::start(listeners, service)
    });
    let plugin = plugin.transpose().map_err(system("start a thread"))?;
    for listener in listeners {
        let listener = listener.with_containers(containers.clone()).with_tracer(tracer.clone());
        tokio::spawn(listener.serve(control.clone()));
    }
    if let Some(docker) = docker {
        let attacher = if proxy.is_some() || config.instance.is_none() {
            let (docker, containers, control) = (docker.clone(), containers.clone(), control.clone());
            let attacher = |runtime| Attacher::new(docker, containers, control, &config, runtime);
            let started = proxy::start(proxy, config.proxy.rewrite_inspect, attacher);
            Some(started.map_err(system("start a thread"))?)
        } else {
            None
        };
        let runtime = tokio::runtime::Handle::current();
        let control = control.clone();
        let reattacher = Reattacher { docker, containers, control, runtime, attacher, plugin };
        docker_monitor::monitor_docker(reattacher, docker_health, config.bridge.clone())
            .map_err(system("start a thread"))?;
    }
    let fresh = config.fresh_file();
    if let Err(e) =
        io_fail_point(&"removing the mark of a new launch").and_then(|()| std::fs::remove_file(&fresh))
        && e.kind() != io::ErrorKind::NotFound
    {
        let fresh = fresh.display();
        tracing::warn!(
            "a restart will not connect to the peers that were added by 'weave connect': cannot remove {fresh}: {e}"
        );
    }
    startup_complete();
    net::watch_network(events_tx).map_err(system("start a thread"))?;
    let (answer, problems) = oneshot::channel();
    core.reconciler.send(host::Command::CheckHost(answer));
    notifier.warnings(&problems.await.unwrap_or_default());
    notifier.ready(&name.to_string());
    let result = core.run(listener, datapath_events, signals).await.map_err(system("continue"));
    if !network.wait_until_idle(HOST_TIMEOUT) {
        tracing::warn!("a container is still being attached or detached; the next start completes that");
    }
    notifier.stopping();
    result
}

/// The networks of Docker that are known.
type Networks = (NetworkStore, BTreeMap<String, bool>);

/// Everything that a peer needs before it is announced as ready.
struct Prepared {
    listener: TcpListener,
    listeners: Vec<Listener>,
    /// `None` while the Docker API proxy is off.
    proxy: Option<ProxyListeners>,
    /// `None` while the Docker network plugin is off.
    plugin: Option<(PluginListeners, Networks)>,
    node: Node,
    allocation: Option<Allocation>,
    dns: Option<DnsService>,
    datapath: Datapath,
    datapath_events: EventReceiver,
    /// `None` if the kernel does not forward frames.
    kernel: Option<KernelPath>,
    device: String,
    reconciler: HostReconciler,
    /// Networks that this peer owns.
    local_networks: Vec<Cidr>,
    /// Operations that the last daemon did not complete.
    recovered: Vec<Recovered>,
    attachments: AttachmentStore,
    interfaces: InterfaceStore,
    /// Attachments that have ended while no daemon ran.
    ended: Vec<AttachmentId>,
}

async fn prepare(
    config: &Config,
    name: PeerName,
    store: &PeerState,
    legacy: Option<LegacyDatabase>,
    network: &ContainerNetwork,
    clock: Clock,
    notifier: &Notifier,
) -> Result<(Prepared, LegacyTakeover), StartError> {
    let names = host::device_names(config);
    let takeover = LegacyTakeover::new(legacy, &names, store)?;
    takeover.database().map_or(Ok(()), |database| legacy_database::check_range(database, config))?;
    check_docker_bridge(config)?;
    let mut reconciler = HostReconciler::new(config, name)?;
    let listener = listen_for_peers(config)?;
    let listeners = listen_for_requests(config).await?;
    let proxy = listen_for_docker_clients(config)?;
    let plugin = listen_for_docker(config)?;
    let mut rng = ChaCha12Rng::from_seed(random_seed()?);
    let uid = PeerUid(rng.random_range(1..=u64::MAX));
    let mesh = mesh_config(config, name, uid, store);
    let attachments = AttachmentStore::open(&config.state_dir)?;
    let interfaces = InterfaceStore::open(&config.state_dir)?;
    let (ipam, allocation) = load_allocation(config, name, uid, takeover.database())?.unzip();
    let registry = config.dns.as_ref().map(|dns| RegistryConfig { own: name, domain: dns.domain.clone() });
    let mut dns = match &config.dns {
        Some(dns) => {
            let local = LocalNames::open(&config.state_dir, &config.bridge)?;
            Some(DnsService::start(dns, local).map_err(system("start the server of names"))?)
        }
        None => None,
    };
    let mut node = Node::new(weave_node::Config { mesh, ipam, dns: registry }, rng, clock.now());
    let Overlays { warp, sleeve, .. } = config.overlays;
    if warp {
        node.enable_warp(WarpConfig::new(has_aes()));
    }
    if !sleeve {
        node.disable_sleeve();
    }
    let device = names.device.clone();
    let data = DatapathConfig {
        device: Some(device.clone()),
        listen: config.host,
        port: config.port,
        threads: config.data_threads,
        origin: clock.origin(),
    };
    let (mut datapath, datapath_events) = Datapath::start(&data, node.tables())?;
    notifier.status("the bridge, its uplink and the firewall");
    let removed = takeover.remove_datapath(&names)?;
    let local_networks = own_networks(&node);
    let mtu = reconciler.start(local_networks.clone()).map_err(|e| removed.undo(e))?;
    let kernel = start_kernel_path(config, &device, clock);
    let (kernel, taps) = kernel.unzip();
    datapath.start_device(taps)?;
    if let Some(kernel) = &kernel {
        node.enable_fastdp();
        reconciler.use_shortcuts(kernel.shortcuts());
    }
    node.set_local_mtu(usize::try_from(mtu).unwrap_or(usize::MAX), clock.now());
    let recovered = network.recover()?;
    let inventory = find_used_addresses(config);
    if let Some(inventory) = inventory.as_ref().filter(|_| allocation.is_some()) {
        claim_used_addresses(inventory, &mut node, clock.now());
    }
    let ended = inventory.as_ref().map(|i| release_ended(&interfaces, i, &mut node, clock.now()));
    let ended = ended.unwrap_or_default();
    if let Some(dns) = &mut dns {
        for id in &ended {
            dns.local.apply(NameChange::Ended(long_owner(id)), &mut node, clock.now());
        }
        dns.local.restore(inventory.as_ref(), &reconciler.exposed(), &mut node, clock.now());
        reconciler.serve_names(dns.listener(config));
    }
    if allocation.is_some() {
        release_unused(&recovered, &reconciler.exposed(), &mut node, clock.now());
    }
    let prepared = Prepared {
        listener,
        listeners,
        proxy,
        plugin,
        node,
        allocation,
        dns,
        datapath,
        datapath_events,
        kernel,
        device,
        reconciler,
        local_networks,
        recovered,
        attachments,
        interfaces,
        ended,
    };
    Ok((prepared, takeover))
}

/// Starts the kernel path unless it is switched off or this kernel lacks what it needs, which is said once. What an earlier daemon has left
/// of it is removed then.
fn start_kernel_path(config: &Config, uplink: &str, clock: Clock) -> Option<(KernelPath, Taps)> {
    let parameters =
        kernel_path::parameters(config.port, config.instance.as_deref(), uplink, clock.origin())?;
    if config.overlays.fastdp {
        let threads = config.data_threads;
        match KernelPath::start(&parameters, config.password.is_some(), threads, clock.now().mono) {
            Ok(started) => return Some(started),
            Err(error) => tracing::warn!("fastdp is not used, frames go by another overlay: {error}"),
        }
    }
    if let Err(error) = weave_fastdp::remove_all(&parameters) {
        tracing::debug!("what an earlier launch left of fastdp is not removed: {error}");
    }
    None
}

/// Whether the processor has instructions for AES and for the multiplications of GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// Releases the addresses of interrupted operations that are not in use.
fn release_unused(recovered: &[Recovered], exposed: &[Cidr], node: &mut Node, now: weave_types::Now) {
    for Recovered { operation, in_use, .. } in recovered {
        let in_use = if matches!(operation.change, Change::Expose | Change::Hide) { exposed } else { in_use };
        node.with_allocator(now, |allocator| {
            let owned =
                allocator.owned().get(&operation.container).map(|r| r.cidrs.clone()).unwrap_or_default();
            for cidr in operation.to_release(&owned, in_use) {
                tracing::info!("releasing {cidr} of {} after an interrupted operation", operation.container);
                if let Err(e) = allocator.free(&operation.container, cidr.addr(), now) {
                    tracing::warn!("{cidr} of {} is not released: {e}", operation.container);
                }
            }
        });
    }
}

/// A bridge that was named must exist. The usual one may be created later.
fn check_docker_bridge(config: &Config) -> Result<(), StartError> {
    match &config.docker_bridge {
        Some(name) if config.docker_bridge_named && Netlink::open()?.link(name)?.is_none() => {
            Err(StartError::NoDockerBridge(name.clone()))
        }
        _ => Ok(()),
    }
}

/// `None` while address allocation is off.
fn load_allocation(
    config: &Config,
    name: PeerName,
    uid: PeerUid,
    legacy: Option<&LegacyDatabase>,
) -> Result<Option<(IpamConfig, Allocation)>, StartError> {
    let mut store = match (&config.allocation, legacy) {
        (None, None) => return Ok(None),
        _ => AllocationStore::open(&config.state_dir)?,
    };
    if let Some(legacy) = legacy {
        // Also while allocation is off, because a database is imported only once.
        store.replace(&legacy.loaded())?;
    }
    let Some(wanted) = &config.allocation else { return Ok(None) };
    let loaded = store.load()?;
    let allocation = Allocation::new(store, &loaded, &config.bridge);
    let ipam = weave_ipam::Config {
        default_subnet: wanted.default_subnet,
        init: wanted.init.clone(),
        ..weave_ipam::Config::new(name, uid, config.nickname.clone(), wanted.range)
    };
    Ok(Some((IpamConfig { config: ipam, loaded }, allocation)))
}

/// The addresses in use on this host; not needed without address allocation and names.
fn find_used_addresses(config: &Config) -> Option<Inventory> {
    if config.allocation.is_none() && config.dns.is_none() {
        return None;
    }
    Inventory::take(&config.bridge, config.legacy.docker.clone())
        .inspect_err(|e| {
            tracing::warn!("cannot find addresses in use on this host, they may be allocated again: {e}");
        })
        .ok()
}

/// Claims the addresses that are in use on this host before any address is allocated, and releases those of containers that
/// have ended.
fn claim_used_addresses(inventory: &Inventory, node: &mut Node, now: weave_types::Now) {
    node.with_allocator(now, |allocator| {
        let named = allocator.owned().iter().filter(|(id, r)| r.is_container && !is_docker_id(id));
        let named: Vec<_> = named.map(|(id, r)| (id.clone(), r.cidrs.clone())).collect();
        for (owner, cidrs) in named {
            // The name may lead to another namespace by now.
            for (user, cidrs) in
                inventory.users(&owner, &cidrs).into_iter().filter(|(user, _)| *user != owner)
            {
                tracing::info!("container {user} uses addresses that were recorded as owned by {owner}");
                allocator.reassign(&owner, &user, &cidrs, now);
            }
        }
        let owned: BTreeSet<_> = allocator.owned().values().flat_map(|r| r.cidrs.clone()).collect();
        let new = |found: &InUse| -> Vec<_> {
            found.cidrs.iter().filter(|c| !owned.contains(c)).copied().collect()
        };
        // 2.8.1 attached them, or a command while no daemon ran. Under its id a container of Docker keeps them when it starts again.
        let unknown =
            inventory.in_use().iter().any(|found| found.namespace.is_some() && !new(found).is_empty());
        let of_docker = if unknown { inventory.docker_containers() } else { BTreeMap::new() };
        for found in inventory.in_use() {
            let new = new(found);
            if !new.is_empty() {
                let container = found.namespace.and_then(|ns| of_docker.get(&ns)).unwrap_or(&found.container);
                let list = new.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                tracing::info!("container {container} already uses {list}: recorded as owned");
                allocator.preclaim(container.clone(), &new, found.is_container, now);
            }
        }
        let containers = allocator.owned().iter().filter(|(_, r)| r.is_container);
        let running = containers.filter(|(id, r)| inventory.runs(id, &r.cidrs)).map(|(id, _)| id.clone());
        let found = inventory.in_use().iter().map(|found| found.container.clone());
        let running: BTreeSet<_> = running.chain(found).chain(of_docker.into_values()).collect();
        allocator.prune(&running, now);
    });
}

fn mesh_config(config: &Config, name: PeerName, uid: PeerUid, store: &PeerState) -> weave_mesh::Config {
    weave_mesh::Config {
        short_id: store.short_id(),
        version: store.version_ceiling(),
        port: config.port,
        password: config.password.as_ref().and_then(|p| Secret::new(p.reveal())),
        trusted_subnets: config.trusted_subnets.clone(),
        discovery: config.discovery,
        connection_limit: config.connection_limit,
        min_protocol: config.min_protocol,
        ..weave_mesh::Config::new(name, config.nickname.clone(), uid)
    }
}

/// The peers to connect to, and whether they are those that were stored. `weave launch` uses its arguments. Any other start with
/// the peers of the last one is a restart, which uses the stored peers; with other peers it uses those (docs/spec/cli.md 4.4).
/// The database of 2.8.1 counts as stored state, and is also used if no peer was named.
fn initial_peers(config: &Config, store: &PeerState, legacy: Option<&LegacyDatabase>) -> (Vec<String>, bool) {
    let resumed = config.resume || (store.continues(&config.peers) && !config.fresh_file().exists());
    match legacy {
        Some(legacy) if resumed || config.peers.is_empty() => {
            (legacy.database.direct_peers.clone().unwrap_or_default(), true)
        }
        _ if resumed => (store.targets().to_vec(), true),
        _ => (config.peers.clone(), false),
    }
}

fn listen_for_peers(config: &Config) -> Result<TcpListener, StartError> {
    net::listen(config.host, config.port).map_err(|source| StartError::Listen {
        protocol: "TCP",
        addr: match config.host {
            Some(host) => format!("{host} port {}", config.port),
            None => format!("port {}", config.port),
        },
        option: "--port or WEAVE_PORT",
        source,
    })
}

async fn listen_for_requests(config: &Config) -> Result<Vec<Listener>, StartError> {
    let socket = Some(ListenAddr::Unix(config.socket()));
    let wanted = [
        (&socket, Access::Trusted, "--run-dir"),
        (&config.http_addr, Access::Control, "--http-addr or WEAVE_HTTP_ADDR"),
        (&config.status_addr, Access::Status, "--status-addr or WEAVE_STATUS_ADDR"),
        (&config.metrics_addr, Access::Metrics, "--metrics-addr or WEAVE_METRICS_ADDR"),
    ];
    let mut listeners = Vec::new();
    for (addr, access, option) in wanted {
        let Some(addr) = addr else { continue };
        let listener = Listener::bind(addr, access).await.map_err(|source| StartError::Listen {
            protocol: "HTTP",
            addr: addr.to_string(),
            option,
            source,
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// The sockets of the proxy, and the program that its containers wait with.
fn listen_for_docker_clients(config: &Config) -> Result<Option<ProxyListeners>, StartError> {
    let Some(docker) = config.legacy.docker.as_ref().filter(|_| !config.proxy.endpoints.is_empty()) else {
        return Ok(None);
    };
    let path = config.wait_dir();
    weave_wait::install(&path).map_err(|source| StartError::WaitProgram { path, source })?;
    Ok(Some(ProxyListeners::bind(config, docker)?))
}

/// The sockets of the plugin, and the networks that it knows.
fn listen_for_docker(config: &Config) -> Result<Option<(PluginListeners, Networks)>, StartError> {
    let Some(plugin) = &config.plugin else {
        if config.instance.is_none() {
            plugin::remove_dead_sockets(&PluginConfig::default());
        }
        return Ok(None);
    };
    let networks = NetworkStore::open(&config.state_dir)?;
    Ok(Some((PluginListeners::bind(plugin)?, networks)))
}

fn random_seed() -> Result<[u8; 32], StartError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| system("get random bytes from the kernel")(e.into()))?;
    Ok(seed)
}
