//! `POST /containers/create`.

use crate::json::Object;
use crate::policy::WAIT_PROGRAM;
use crate::query::parameter;
use crate::{Error, LeaveAlone, Policy};

/// What an image runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageCommand {
    /// `Config.Entrypoint` of the image.
    pub entrypoint: Vec<String>,
    /// `Config.Cmd` of the image.
    pub command: Vec<String>,
}

/// A container that is to be created and attached.
#[derive(Clone, Debug)]
pub struct Create {
    body: Object,
    /// The image, if its command is needed.
    image: Option<String>,
    warning: Option<String>,
}

impl Create {
    /// Reads a request and changes all but the command. `target` is that of the request line.
    ///
    /// # Errors
    /// The body is not what Docker's API says.
    pub fn read(policy: &Policy, target: &str, body: &[u8]) -> Result<Result<Create, LeaveAlone>, Error> {
        let mut body = Object::parse(body)?;
        let mut host_config = body.object("HostConfig")?;
        let (mode, env) = (host_config.string("NetworkMode")?, body.strings("Env")?);
        if let Err(reason) = policy.addresses(&mode, &env) {
            return Ok(Err(reason));
        }
        let image = if body.strings("Entrypoint")?.is_empty() { Some(body.string("Image")?) } else { None };
        policy.bind(&mut host_config, true)?;
        let mut warning = None;
        if let Some(dns) = &policy.dns {
            let hostname = policy.hostname.derive(&parameter(target, "name"), &mut body)?;
            warning = dns.set_hostname(&mut body, &hostname)?;
            policy.set_dns(&mut host_config, &hostname)?;
        }
        body.set_object("HostConfig", &host_config);
        Ok(Ok(Create { body, image, warning }))
    }

    /// The image whose command [`Create::finish`] needs.
    pub fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// What the operator should know.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Puts the wait program in front of the command, and returns the body to forward.
    ///
    /// # Errors
    /// There is no command, or the request's is not what Docker's API says.
    pub fn finish(mut self, image: &ImageCommand) -> Result<Vec<u8>, Error> {
        let mut entrypoint = self.body.strings("Entrypoint")?;
        if self.image.is_some() {
            let mut command = self.body.strings("Cmd")?;
            if command.is_empty() {
                command.clone_from(&image.command);
                self.body.set("Cmd", &(!command.is_empty()).then_some(&command));
            }
            // An empty list is meant so: without the entrypoint of the image.
            if !self.body.has("Entrypoint") {
                entrypoint.clone_from(&image.entrypoint);
            }
            if entrypoint.is_empty() && command.is_empty() {
                return Err(Error::NoCommand);
            }
        }
        if entrypoint.first().is_none_or(|first| first != WAIT_PROGRAM) {
            entrypoint.insert(0, WAIT_PROGRAM.to_owned());
        }
        self.body.set("Entrypoint", &entrypoint);
        Ok(self.body.to_bytes())
    }
}
