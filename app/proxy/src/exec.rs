//! `POST /containers/<container>/exec`.

use crate::Error;
use crate::json::Object;
use crate::policy::WAIT_PROGRAM;

/// Puts the wait program in front of the command, so that a program that is run right after the start of the container has its network,
/// too.
///
/// # Errors
/// The body is not what Docker's API says.
pub fn rewrite(body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut exec = Object::parse(body)?;
    let mut command = exec.strings("Cmd")?;
    command.insert(0, WAIT_PROGRAM.to_owned());
    exec.set("Cmd", &command);
    Ok(exec.to_bytes())
}
