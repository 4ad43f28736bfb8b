//! Starting the daemon and keeping it running, by the first that is available of
//!
//! | | crash | reboot | log |
//! | --- | --- | --- | --- |
//! | [`systemd`]: a unit `weave.service` | yes | yes | journal |
//! | [`docker`]: a container `weave` made of this program | yes | yes | `docker logs` |
//! | [`process`]: a supervisor process | yes | no | `/var/log/weave.log` |
//! | [`process`] without one (`--no-restart`) | no | no | the same |
//!
//! In each case the daemon reports its progress to `launch` through a socket in the run directory, and uses the stored peers when it is
//! started again (docs/spec/cli.md 4.4).

pub(crate) mod docker;
mod elf;
pub(crate) mod files;
pub(crate) mod manager;
pub(crate) mod process;
pub(crate) mod systemd;
pub(crate) mod unit;

pub(crate) use manager::{LaunchRequest, ServiceManager};

use crate::env::Env;
use crate::{Failure, notice};

/// The service manager that `--service` names, or the first that is available. Fails if it is known not to work.
pub(crate) fn choose<'a>(request: &'a LaunchRequest<'a>) -> Result<Box<dyn ServiceManager + 'a>, Failure> {
    let wanted = request.parsed.text("service").unwrap_or("auto");
    let plain = |remark| Box::new(process::Process::new(request, remark));
    Ok(match wanted {
        "systemd" => Box::new(systemd::Systemd::new(request)?),
        "docker" => Box::new(docker::Container::new(request)?),
        "supervisor" | "none" => plain(None),
        _ => {
            // With --no-restart the operator has another service manager, which may be running this command.
            let systemd = if request.restart { systemd::Systemd::if_usable(request) } else { None };
            if let Some(systemd) = systemd {
                return Ok(Box::new(systemd));
            }
            match docker::Container::if_usable(request)? {
                Ok(container) => Box::new(container),
                Err(why) => plain(request.restart.then(|| {
                    format!(
                        "The daemon is started again after a crash, but not after a reboot: that needs systemd or Docker, \
                         and {why}."
                    )
                })),
            }
        }
    })
}

/// Warns of variables without effect that the operator may rely on.
pub(crate) fn notice_ignored(env: &dyn Env) {
    for variable in ["WEAVE_DOCKER_ARGS", "WEAVEEXEC_DOCKER_ARGS"] {
        if env.var(variable).is_some_and(|v| !v.is_empty()) {
            notice(format_args!("Notice: {variable} has no effect"));
        }
    }
}
