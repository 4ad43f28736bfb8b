//! What the kernel grants this process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Many peers and many containers need many descriptors; systemd and Docker give a soft limit of 1024 for the sake of
/// programs that use select(2), which this is not.
const DESCRIPTORS: u64 = 1 << 20;
/// The network of all containers goes with this process: others first. The kernel's range is -1000 to 1000.
const OOM_SCORE: i32 = -500;

/// Takes what can be had. Without privileges the process runs with what it has.
pub(crate) fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(DESCRIPTORS);
        if soft < wanted
            && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
        {
            tracing::debug!("descriptors stay limited to {soft}: {e}");
        }
    }
    let file = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // One that is lower has been chosen by somebody.
    if now.is_some_and(|score| score > OOM_SCORE)
        && let Err(e) = std::fs::write(file, OOM_SCORE.to_string())
    {
        tracing::debug!("the score for the out-of-memory killer stays: {e}");
    }
}
