//! `weave setup` makes directories and installs the CNI plugins before the first launch. 2.8.1 also pulled its images; this version has
//! none.

use crate::args::Parsed;
use crate::cni::install;
use crate::env::Env;
use crate::options;
use crate::service::files::{Undo, is_read_only};
use crate::{Failure, require_root};

pub(crate) fn run(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    require_root()?;
    let mut undo = Undo::default();
    undo.directory(&options::state_dir(parsed, env), 0o700)?;
    undo.directory(&options::run_dir(parsed, env), 0o755)?;
    let config = std::path::Path::new("/etc/weave");
    // Nothing depends on it: the unit reads the file there only if it exists.
    if !is_read_only(config) {
        undo.directory(config, 0o755)?;
    }
    undo.keep();
    install::install(env)
}

/// `weave setup-cni`.
pub(crate) fn cni(env: &dyn Env) -> Result<(), Failure> {
    require_root()?;
    install::install(env)
}
