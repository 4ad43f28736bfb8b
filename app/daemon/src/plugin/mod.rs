//! The Docker network plugin (docs/spec/containers.md B).
//!
//! ```text
//!            weave.sock, weavemesh.sock
//!  dockerd ------- requests -------> server --> service --+--> networks that are known (weave-plugin)
//!     |                                                   +--> addresses: allocator, under the text of each address
//!     |                                                   +--> devices: containers
//!     +------- containers that start ----------> watcher: names, ARP
//! ```
//!
//! It has its own thread, since Docker waits for the answers.

mod listeners;
mod server;
mod service;
mod watcher;

pub(crate) use listeners::{PluginError, PluginListeners, remove_dead_sockets};
pub(crate) use service::Service;

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use weave_api::report;

use crate::config::{Config, PluginConfig, PluginMode, driver_name};

/// Requests that change the host or ask Docker at the same time.
const MAX_BLOCKING: usize = 32;

/// Starts the thread of the plugin, which serves Docker until the daemon ends. `service` makes what answers, with the runtime of the thread.
pub(crate) fn start(
    listeners: PluginListeners,
    service: impl FnOnce(Handle) -> Service,
) -> io::Result<Arc<Service>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING)
        .build()?;
    let service = Arc::new(service(runtime.handle().clone()));
    let serving = service.clone();
    let run = move || {
        runtime.block_on(async {
            if let Err(e) = server::serve(listeners, serving).await {
                tracing::error!("the Docker network plugin has ended: {e}");
            }
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("weave-plugin".to_owned()).spawn(run)?;
    Ok(service)
}

/// Removes the usual sockets of a daemon that was killed. Docker would wait for it.
pub fn remove_dead_plugin_sockets() {
    remove_dead_sockets(&PluginConfig::default());
}

/// For the report.
pub(crate) fn report(plugin: &PluginConfig, config: &Config) -> report::Plugin {
    let path = |socket: &Option<_>| {
        socket.as_ref().map(|path: &std::path::PathBuf| path.display().to_string()).unwrap_or_default()
    };
    let name =
        |socket: &Option<std::path::PathBuf>| socket.as_deref().map_or_else(|| ".".to_owned(), driver_name);
    let managed = match plugin.mode {
        PluginMode::Legacy => None,
        PluginMode::Managed { multicast } => Some(multicast),
    };
    let subnet = config.allocation.as_ref().map(|allocation| allocation.default_subnet.to_string());
    report::Plugin {
        config: report::PluginConfig {
            socket: path(&plugin.socket),
            mesh_socket: path(&plugin.mesh_socket),
            enable: managed.is_none(),
            enable_v2: managed.is_some(),
            enable_v2_multicast: managed == Some(true),
            dns: config.dns.is_some(),
            default_subnet: subnet.unwrap_or_else(|| "0.0.0.0/0".to_owned()),
            proc_path: "/proc".to_owned(),
        },
        driver_name: name(&plugin.socket),
        mesh_driver_name: name(&plugin.mesh_socket),
    }
}
