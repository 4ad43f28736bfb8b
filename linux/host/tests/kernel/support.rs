//! Namespaces as hosts and containers, packets, and snapshots of the configuration.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use weave_host::{BridgeConfig, DeviceNames, Mtu, NetNs, Netlink, UplinkInfo, ensure_bridge, ensure_uplink};
use weave_types::{Cidr, MacAddr};

/// Longest wait for an expected event.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which an event that is not expected would happen.
pub(crate) const SILENCE: Duration = Duration::from_millis(150);
pub(crate) const PEER: MacAddr = MacAddr([0x02, 0x42, 0xac, 0x11, 0x00, 0x01]);

/// Runs `test` in a thread with a network namespace of its own. Without root the test is skipped, with a message.
pub(crate) fn host(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces need root");
        return;
    }
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("SKIPPED: no network namespace can be made: {e}");
            return;
        }
        sh("ip link set lo up");
        test();
    });
    if let Err(panic) = thread.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// A new namespace, which exists as long as its handle.
pub(crate) fn container() -> NetNs {
    let ns = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link set lo up");
        NetNs::current().unwrap()
    });
    ns.join().unwrap()
}

pub(crate) fn cidrs(text: &str) -> Vec<Cidr> {
    text.split_whitespace().map(|c| c.parse().unwrap()).collect()
}

pub(crate) fn bridge_config() -> BridgeConfig {
    BridgeConfig { name: "weave".into(), mac: PEER, mtu: Mtu::default() }
}

/// Sets up bridge and uplink like the daemon.
pub(crate) fn launch() -> UplinkInfo {
    ensure_bridge(&bridge_config()).unwrap();
    ensure_uplink(&DeviceNames::default()).unwrap()
}

/// Runs a command in the namespace of this thread and returns its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn sh_in(ns: &NetNs, command: &str) -> String {
    ns.run(|| sh(command)).unwrap()
}

pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The configuration of the namespace of this thread, without values that change by themselves.
pub(crate) fn snapshot() -> String {
    let mut lines: Vec<String> = Vec::new();
    let links = Netlink::open().unwrap().links().unwrap();
    lines.extend(links.iter().map(|l| {
        let tx = weave_host::tx_checksum(&l.name);
        format!(
            "{} {} {:?} mtu {} up {} {:?} master {:?} hairpin {:?} tx {tx:?}",
            l.index, l.name, l.mac, l.mtu, l.up, l.kind, l.master, l.hairpin
        )
    }));
    lines.push(sh("ip -4 -o addr show"));
    lines.push(sh("ip -4 route show table all").replace(" linkdown", ""));
    let mut rules: Vec<String> = sh("iptables -S").lines().map(str::to_owned).collect();
    rules.sort();
    lines.extend(rules);
    lines.push(sh("tc qdisc show"));
    // A program that is loaded again has another id.
    let filters = |name: &str| sh(&format!("tc filter show dev {name} ingress | sed 's/ id [0-9]*//'"));
    lines.extend(links.iter().map(|l| filters(&l.name)));
    lines.join("\n")
}

pub(crate) fn snapshot_of(ns: &NetNs) -> String {
    ns.run(snapshot).unwrap()
}

/// A packet socket on one interface.
pub(crate) struct Tap {
    fd: OwnedFd,
}

impl Tap {
    pub(crate) fn on(interface: &str) -> Tap {
        let index = Netlink::open().unwrap().link(interface).unwrap().unwrap().index;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let length = size_of_val(&address) as u32;
        // SAFETY: pointer and length describe `address`, which outlives the call.
        let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(result, 0);
        Tap { fd }
    }

    pub(crate) fn in_container(ns: &NetNs, interface: &str) -> Tap {
        ns.run(|| Tap::on(interface)).unwrap()
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        nix::unistd::write(&self.fd, frame).unwrap();
    }

    /// The next frame, in either direction, for which `wanted` is true.
    pub(crate) fn find(&self, timeout: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = [0; 2048];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            let timeout = TimeVal::new(left.as_secs() as i64, i64::from(left.subsec_micros()).max(1));
            setsockopt(&self.fd, sockopt::ReceiveTimeout, &timeout).unwrap();
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(n) if wanted(&buffer[..n]) => return Some(buffer[..n].to_vec()),
                Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(e) => panic!("reading a packet socket: {e}"),
            }
        }
        None
    }
}

pub(crate) fn arp_request(from: MacAddr, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut f =
        [&[0xff; 6][..], &from.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &from.0, &sender, &[0; 6], &target]
            .concat();
    f.resize(60, 0);
    f
}

pub(crate) fn is_arp_reply_from(frame: &[u8], sender: [u8; 4]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == sender
}

pub(crate) fn is_arp_request_for(frame: &[u8], target: [u8; 4]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == target
}

/// The number of datagrams that arrive until none arrives any more.
pub(crate) fn count_datagrams(socket: &UdpSocket) -> usize {
    let mut count = 0;
    loop {
        socket.set_read_timeout(Some(if count == 0 { TIMEOUT } else { SILENCE })).unwrap();
        match socket.recv(&mut [0; 64]) {
            Ok(_) => count += 1,
            Err(_) => return count,
        }
    }
}

/// A process in a namespace.
pub(crate) struct Holder(std::process::Child);

impl Holder {
    pub(crate) fn of(ns: &NetNs) -> Holder {
        Holder(ns.run(|| Command::new("sleep").arg("600").spawn().unwrap()).unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
