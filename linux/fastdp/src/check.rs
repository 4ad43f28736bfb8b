//! Whether this kernel can do what the kernel path needs.

use nix::sched::{CloneFlags, unshare};
use weave_host::Netlink;

use crate::error::Error;
use crate::fastdp::{Fastdp, FastdpConfig};

const UPLINK: &str = "uplink";
const MAX_MACS: u32 = 64;
/// Any: a namespace has ports of its own.
const PORT: u16 = 6784;

/// Starts the kernel path in a network namespace of its own, which ends with the call. The host stays as it is, but for modules that the
/// kernel loads.
///
/// # Errors
/// Why it does not start.
pub fn check_kernel() -> Result<(), Error> {
    let check = || {
        Error::at("making a network namespace", || Ok(unshare(CloneFlags::CLONE_NEWNET)?))
            .map_err(|e| e.lacking(&[libc::ENOSYS, libc::EINVAL], "network namespaces (CONFIG_NET_NS)"))?;
        Netlink::open()?.create_veth(UPLINK, "peer", None)?;
        let config =
            FastdpConfig { max_macs: MAX_MACS, ..FastdpConfig::new(UPLINK, PORT, std::time::Instant::now()) };
        Fastdp::start(&config).map(drop)
    };
    // The namespace belongs to the thread.
    let thread = std::thread::Builder::new().name("fastdp-check".to_owned()).spawn(check);
    let thread = thread.map_err(|e| Error::new("starting a thread", e))?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
