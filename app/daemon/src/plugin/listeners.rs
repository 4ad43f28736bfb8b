//! Sockets at which Docker finds the plugin.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use weave_plugin::Driver;

use crate::config::PluginConfig;
use crate::unix_socket::{self, SocketFile};

/// Why the plugin cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {} for Docker's networks: {source}; --plugin=false switches them off", path.display())]
pub struct PluginError {
    path: PathBuf,
    source: io::Error,
}

/// Sockets of the drivers.
#[derive(Debug, Default)]
pub(crate) struct PluginListeners {
    pub(super) sockets: Vec<(Driver, UnixListener)>,
    files: PluginFiles,
}

/// Removes the files of the sockets, and directories that were made for them, when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct PluginFiles {
    files: Vec<SocketFile>,
    /// The innermost one first.
    directories: Vec<PathBuf>,
}

impl Drop for PluginFiles {
    fn drop(&mut self) {
        self.files.clear();
        for directory in &self.directories {
            // Other plugins may be there by now.
            let _ = std::fs::remove_dir(directory);
        }
    }
}

impl PluginListeners {
    /// Opens the sockets.
    ///
    /// # Errors
    /// One of them cannot be created.
    pub(crate) fn bind(config: &PluginConfig) -> Result<PluginListeners, PluginError> {
        let mut listeners = PluginListeners::default();
        let sockets = [(Driver::Global, &config.socket), (Driver::Local, &config.mesh_socket)];
        for (driver, path) in sockets {
            let Some(path) = path else { continue };
            let failed = |source| PluginError { path: path.clone(), source };
            listeners.files.make_directory(path).map_err(failed)?;
            let restrict =
                |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
            let (listener, file) =
                unix_socket::bind(path, "socket of the plugin", restrict).map_err(failed)?;
            listeners.sockets.push((driver, listener));
            listeners.files.files.push(file);
        }
        Ok(listeners)
    }

    /// What keeps the files of the sockets.
    pub(crate) fn take_files(&mut self) -> PluginFiles {
        std::mem::take(&mut self.files)
    }
}

impl PluginFiles {
    fn make_directory(&mut self, socket: &Path) -> io::Result<()> {
        let Some(directory) = socket.parent() else { return Ok(()) };
        self.directories.extend(directory.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned));
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)
    }
}

/// Removes sockets of a plugin that has ended. Docker would wait for it.
pub(crate) fn remove_dead_sockets(config: &PluginConfig) {
    for path in [&config.socket, &config.mesh_socket].into_iter().flatten() {
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_directories_go_with_the_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("docker/plugins");
        let config = PluginConfig {
            socket: Some(plugins.join("weave.sock")),
            mesh_socket: Some(plugins.join("weavemesh.sock")),
            ..PluginConfig::default()
        };
        let names = || {
            let entries = std::fs::read_dir(&plugins).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let listeners = PluginListeners::bind(&config).unwrap();
        assert_eq!(names(), ["weave.sock", "weavemesh.sock"]);
        remove_dead_sockets(&config);
        assert_eq!(names(), ["weave.sock", "weavemesh.sock"], "they are in use");
        drop(listeners);
        assert!(!dir.path().join("docker").exists());

        std::fs::create_dir_all(&plugins).unwrap();
        drop(UnixListener::bind(plugins.join("weave.sock")).unwrap());
        std::fs::write(plugins.join("weavemesh.sock"), "").unwrap();
        remove_dead_sockets(&config);
        assert_eq!(names(), ["weavemesh.sock"], "only a dead socket is removed");
    }
}
