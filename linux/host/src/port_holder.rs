//! The program that uses a port (proc_pid_net(5)), for texts.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Who keeps others from listening on `address`: name and pid of a program, or that its process is not visible here, as that of a socket of
/// the kernel. `None` if nobody does. `protocol` is `TCP` or `UDP`.
pub fn port_holder(protocol: &str, address: SocketAddr) -> Option<String> {
    let inodes: Vec<_> = ["", "6"]
        .into_iter()
        .filter_map(|family| {
            fs::read_to_string(format!("/proc/net/{}{family}", protocol.to_lowercase())).ok()
        })
        .flat_map(|table| holders(&table, protocol == "TCP", address))
        .collect();
    if inodes.is_empty() {
        return None;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let target = target.to_string_lossy();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            if inode.is_some_and(|inode| inodes.iter().any(|i| i == inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("{} (pid {pid})", name.trim()));
            }
        }
    }
    Some("the kernel, or a process that is not visible here".to_owned())
}

/// Inodes of the sockets of a table (proc_pid_net(5)) that keep others from an address.
fn holders(table: &str, listening_only: bool, address: SocketAddr) -> Vec<String> {
    /// `TCP_LISTEN` in the column of states.
    const LISTEN: &str = "0A";
    let mut inodes = Vec::new();
    for line in table.lines().skip(1) {
        let columns: Vec<_> = line.split_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (columns.get(1), columns.get(3), columns.get(9)) else {
            continue;
        };
        let Some((ip, port)) = local.split_once(':') else { continue };
        let (Some(ip), Ok(port)) = (parse_ip(ip), u16::from_str_radix(port, 16)) else { continue };
        let overlaps = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        if port == address.port() && overlaps && (!listening_only || *state == LISTEN) {
            inodes.push((*inode).to_owned());
        }
    }
    inodes
}

/// Addresses are printed as words in the byte order of the host.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let word = |n: usize| u32::from_str_radix(text.get(n * 8..n * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (n, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(n)?);
            }
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn this_program_is_found_by_its_sockets() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let suffix = format!(" (pid {})", std::process::id());
        for (protocol, address) in [("UDP", udp.local_addr().unwrap()), ("TCP", tcp.local_addr().unwrap())] {
            let found = port_holder(protocol, address).unwrap();
            assert!(found.ends_with(&suffix), "{found}");
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            assert!(port_holder(protocol, any).unwrap().ends_with(&suffix));
        }
        let udp_port = udp.local_addr().unwrap();
        drop(udp);
        // A process that another test starts has a copy of the socket until it executes its program.
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Some(holder) = port_holder("UDP", udp_port) {
            assert!(Instant::now() < deadline, "{holder}");
            std::thread::yield_now();
        }
    }
}
