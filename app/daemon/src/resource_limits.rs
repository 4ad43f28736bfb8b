//! Resource limits of this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Many peers and containers need many descriptors. systemd and Docker set a soft limit of 1024 for programs that use select(2),
/// which the daemon does not.
const MAX_DESCRIPTORS: u64 = 1 << 20;
/// Other processes are to be killed before this one, because all containers would lose their network. The kernel's range is
/// -1000 to 1000.
const OOM_SCORE: i32 = -500;

/// Raises the limits as far as possible. Failures are logged only.
pub(crate) fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(MAX_DESCRIPTORS);
        if soft < wanted
            && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        {
            tracing::debug!("cannot raise the limit of open files above {soft}: {e}");
        }
    }
    let file = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // A lower score was chosen by an operator.
    if now.is_some_and(|score| score > OOM_SCORE)
        && let Err(e) = std::fs::write(file, OOM_SCORE.to_string())
    {
        tracing::debug!("cannot lower the score for the out-of-memory killer: {e}");
    }
}
