//! TX checksum offload, by the ioctl of ethtool (docs/spec/data-plane.md 1.5).

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::links::check_name;
use crate::{Error, fault_injection};

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the interface, in the current namespace, sends packets without checksums, which are left to the next device.
pub fn tx_checksum(interface: &str) -> Result<bool, Error> {
    call(interface, ETHTOOL_GTXCSUM, 0, "reading the TX checksum offload of").map(|v| v != 0)
}

/// Makes the kernel complete checksums before the interface sends a packet. `false` if it already does.
pub fn disable_tx_checksum(interface: &str) -> Result<bool, Error> {
    if !tx_checksum(interface)? {
        return Ok(false);
    }
    call(interface, ETHTOOL_STXCSUM, 0, "switching off the TX checksum offload of")?;
    Ok(true)
}

fn call(interface: &str, command: u32, data: u32, step: &str) -> Result<u32, Error> {
    check_name(interface)?;
    let step = || format!("{step} {interface}");
    fault_injection::fail_point(&step()).map_err(|e| Error::refused(step(), e, ""))?;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| Error::refused(step(), e, ""))?;
    let mut value = Value { command, data };
    // SAFETY: all-zero bytes are a valid `ifreq` (integers, byte arrays and a null pointer).
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` is an `ifreq` whose name ends with a zero (at most 15 bytes were copied into 16 zeros) and whose
    // data points to a `Value`, which both commands read and write; all outlive the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        let errno = Errno::last();
        return Err(if errno == Errno::ENODEV {
            Error::LinkNotFound
        } else {
            Error::refused(step(), errno, "")
        });
    }
    Ok(value.data)
}
