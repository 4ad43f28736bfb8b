//! `weave setup` makes directories before the first launch. 2.8.1 also pulled its images; this version has none.

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::service::files::{Undo, is_read_only};
use crate::{Failure, notice, require_root};

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
    notice("Notice: this version installs no CNI plugin yet");
    Ok(())
}
