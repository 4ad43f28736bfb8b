//! The interface between `launch` and what runs the daemon.

use weave_daemon::config::Config;

use crate::Failure;
use crate::args::Parsed;
use crate::env::Env;
use crate::options;

/// The daemon that is to be started.
pub(crate) struct LaunchRequest<'a> {
    pub(crate) parsed: &'a Parsed,
    pub(crate) config: &'a Config,
    pub(crate) env: &'a dyn Env,
    /// Whether the daemon is started again after a crash or a reboot.
    pub(crate) restart: bool,
    /// Contains the password, if there is one.
    pub(crate) password_file: String,
}

impl LaunchRequest<'_> {
    /// `name`, or `name-<instance>`.
    pub(crate) fn named(&self, name: &str) -> String {
        options::named(name, self.parsed, self.env)
    }

    /// Options for `weave daemon`, without those of `launch` alone and without the password, which `ps` would show.
    pub(super) fn options(&self) -> Parsed {
        let mut options = options::explicit(self.parsed, self.config, self.env);
        for own in ["password", "password-file", "no-restart", "service", "log-file", "take-over"] {
            options.remove(own);
        }
        if self.config.password.is_some() {
            options.set("password-file", self.password_file.clone());
        }
        options
    }
}

/// systemd, Docker or a supervisor process.
pub(crate) trait ServiceManager {
    /// Starts the daemon. After a failure nothing is left behind.
    fn start(&mut self) -> Result<(), Failure>;

    /// Why the daemon has ended, if it has; a text for the operator.
    fn exit_reason(&mut self) -> Result<Option<String>, Failure>;

    /// Stops the daemon and undoes what `start` did.
    fn roll_back(&mut self);

    /// The daemon is ready: what `start` did is kept.
    fn commit(&mut self) {}

    /// What `launch` prints at the end, if it is not the peer's name.
    fn id(&self) -> Option<&str> {
        None
    }

    /// A line for stderr at the end.
    fn note(&self) -> Option<String> {
        None
    }
}
