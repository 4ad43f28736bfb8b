//! Who starts the daemon, and starts it again: the first that is there of
//!
//! | | crash | reboot | log |
//! | --- | --- | --- | --- |
//! | [`systemd`]: a unit `weave.service` | yes | yes | journal |
//! | [`docker`]: a container `weave` made of this program | yes | yes | `docker logs` |
//! | [`process`]: a supervisor process | yes | no | `/var/log/weave.log` |
//! | [`process`] without one (`--no-restart`) | no | no | the same |
//!
//! Whoever it is, the daemon tells `launch` through a socket in the run directory how far it is, and takes the stored peers
//! when it is started again (docs/spec/cli.md 4.4).

pub(crate) mod docker;
mod elf;
pub(crate) mod files;
pub(crate) mod process;
pub(crate) mod systemd;
mod unit;

use weave_daemon::config::Config;

use crate::args::Parsed;
use crate::options::{self, Env};
use crate::{Failure, notice};

/// What is to be started.
pub(crate) struct Job<'a> {
    pub(crate) parsed: &'a Parsed,
    pub(crate) config: &'a Config,
    pub(crate) env: &'a dyn Env,
    /// Started again after a crash or a reboot.
    pub(crate) restart: bool,
    /// Holds the password, if there is one.
    pub(crate) password_file: String,
}

impl Job<'_> {
    /// `usual`, or `usual-<instance>`.
    pub(crate) fn named(&self, usual: &str) -> String {
        options::named(usual, self.parsed, self.env)
    }

    /// Options for `weave daemon`, without those of `launch` alone and without the password, which would be shown by ps.
    fn options(&self) -> Parsed {
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

/// Somebody who starts daemons.
pub(crate) trait Keeper {
    /// Starts it. After a failure nothing is left behind.
    fn start(&mut self) -> Result<(), Failure>;

    /// Looks whether it has ended; why, in words for a person.
    fn ended(&mut self) -> Result<Option<String>, Failure>;

    /// Ends it and takes back what `start` did.
    fn abandon(&mut self);

    /// It is ready: what `start` did stays.
    fn done(&mut self) {}

    /// What `launch` prints in the end, if it is not the peer's name.
    fn id(&self) -> Option<&str> {
        None
    }

    /// A line that a person should know in the end.
    fn remark(&self) -> Option<String> {
        None
    }
}

/// The one that `--service` names, or the first that is there. Refuses what is known not to work.
pub(crate) fn choose<'a>(job: &'a Job<'a>) -> Result<Box<dyn Keeper + 'a>, Failure> {
    let wanted = job.parsed.text("service").unwrap_or("auto");
    let plain = |remark| Box::new(process::Process::new(job, remark));
    Ok(match wanted {
        "systemd" => Box::new(systemd::Systemd::new(job)?),
        "docker" => Box::new(docker::Container::new(job)?),
        "supervisor" | "none" => plain(None),
        _ => {
            // Who says --no-restart has a service manager of his own, which may be running us.
            let systemd = if job.restart { systemd::Systemd::if_usable(job) } else { None };
            if let Some(systemd) = systemd {
                return Ok(Box::new(systemd));
            }
            match docker::Container::if_usable(job)? {
                Ok(container) => Box::new(container),
                Err(why) => plain(job.restart.then(|| {
                    format!(
                        "A crashed daemon is started again. To come back after a reboot it needs a service manager, \
                         and {why}."
                    )
                })),
            }
        }
    })
}

/// Variables without effect that somebody may rely on.
pub(crate) fn notice_ignored(env: &dyn Env) {
    for variable in ["WEAVE_DOCKER_ARGS", "WEAVEEXEC_DOCKER_ARGS"] {
        if env.var(variable).is_some_and(|v| !v.is_empty()) {
            notice(format_args!("Notice: {variable} has no effect"));
        }
    }
}
