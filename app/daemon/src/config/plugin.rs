use std::path::{Path, PathBuf};

pub use weave_plugin::Mode as PluginMode;

/// The Docker network plugin (docs/spec/containers.md B.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginConfig {
    pub mode: PluginMode,
    /// Socket of the driver of networks that Docker keeps in its cluster store. `None`: there is no such driver.
    pub socket: Option<PathBuf>,
    /// Socket of the driver of networks of one Docker daemon, which is an IPAM driver, too.
    pub mesh_socket: Option<PathBuf>,
    /// Name of the network that is created in Docker. `None`: no network is created.
    pub network: Option<String>,
}

/// Directory in which Docker looks for plugins.
pub const PLUGIN_DIR: &str = "/run/docker/plugins";
/// Usual name of [`PluginConfig::socket`] in [`PLUGIN_DIR`].
pub const PLUGIN_SOCKET: &str = "weave.sock";
/// Usual name of [`PluginConfig::mesh_socket`] in [`PLUGIN_DIR`].
pub const PLUGIN_MESH_SOCKET: &str = "weavemesh.sock";
/// Label of the network that the plugin creates, whatever its name is.
pub const PLUGIN_NETWORK_LABEL: &str = "works.weave.default";
/// Usual value of [`PluginConfig::network`].
pub const PLUGIN_NETWORK: &str = "weave";

impl Default for PluginConfig {
    fn default() -> PluginConfig {
        PluginConfig {
            mode: PluginMode::Legacy,
            socket: Some(Path::new(PLUGIN_DIR).join(PLUGIN_SOCKET)),
            mesh_socket: Some(Path::new(PLUGIN_DIR).join(PLUGIN_MESH_SOCKET)),
            network: Some(PLUGIN_NETWORK.to_owned()),
        }
    }
}

/// The name by which Docker knows a driver: that of its socket.
pub(crate) fn driver_name(socket: &Path) -> String {
    socket.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
