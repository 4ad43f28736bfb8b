//! What 2.8.1 leaves on a host, made by hand from recordings (`tests/vectors`).

use weave_lab::{Container, Host};

/// Rules of 2.8.1 with an exposed address.
pub const RULES: &str = include_str!("../../../vectors/cli/iptables-after-expose.txt");
/// The peer on whose host they were recorded.
pub const NAME: &str = "8a:3e:3e:3e:3e:02";
/// The exposed address.
pub const EXPOSED: &str = "10.32.0.1/12";

/// A database of 2.8.1: half of 10.2.0.0/24 and some addresses, among them 10.2.0.33 as a container of the network plugin has it.
pub const SAMPLE_DATABASE: &[u8] = include_bytes!("../../../vectors/ipam/sample-weavedata.db");
/// The peer of [`stored_database`].
pub const STORED_PEER: &str = "02:00:00:00:00:0a";

/// The sample database with a peer name that a bridge can have as its address.
pub fn stored_database() -> Vec<u8> {
    let (old, new) = (*b"\xfa\x01\0\0\0\0\x0a", *b"\xfa\x02\0\0\0\0\x0a");
    let mut bytes = SAMPLE_DATABASE.to_vec();
    for at in 0..bytes.len() - old.len() {
        if bytes[at..].starts_with(&old) {
            bytes[at..at + new.len()].copy_from_slice(&new);
        }
    }
    bytes
}

/// Bridge, uplink and rules as 2.8.1 makes them without a fast datapath (docs/spec/cli.md 4.2, 4.3).
pub fn devices_of_the_original(host: &Host) {
    host.sh(&format!(
        "ip link add weave type bridge; ip link set weave address {NAME}; \
         ip link add vethwedu mtu 65535 type veth peer name vethwedup mtu 65535; ip link set vethwedu master weave; \
         ip link del vethwedu; \
         {UPLINK}; \
         ip link set weave up; ethtool -K weave tx off >/dev/null; ip addr add {EXPOSED} brd + dev weave; \
         sysctl -qw net.ipv6.conf.weave.accept_ra=0 net.ipv4.neigh.weave.base_reachable_time=5"
    ));
    let mut script = String::new();
    let mut table = "";
    for line in RULES.lines() {
        match line.strip_prefix("# table ") {
            Some(name) => table = name,
            None if line.starts_with("-P") => {}
            None => script.push_str(&format!("iptables -w -t {table} {line}\n")),
        }
    }
    host.sh(&script);
}

/// Makes the uplink of 2.8.1.
pub const UPLINK: &str = "ip link add vethwe-bridge mtu 65535 type veth peer name vethwe-pcap mtu 65535; \
     ip link set vethwe-bridge master weave; ip link set vethwe-pcap up; ip link set vethwe-bridge up";

/// Attaches a container as 2.8.1 does (docs/spec/containers.md D.2).
pub fn attach_of_the_original(host: &Host, name: &str, cidr: &str) -> Container {
    let container = host.container(name);
    attach_process_of_the_original(host, &container.pid().to_string(), cidr);
    container
}

/// The same for the container of a process of the host.
pub fn attach_process_of_the_original(host: &Host, pid: &str, cidr: &str) {
    begin_to_attach_as_the_original(host, pid, cidr);
    host.sh(&format!("nsenter --net=/proc/{pid}/ns/net ip route add 224.0.0.0/4 dev ethwe scope link"));
}

/// The same without the last step, the route for which programs wait.
pub fn begin_to_attach_as_the_original(host: &Host, pid: &str, cidr: &str) {
    host.sh(&format!(
        "ip link add vethwepl{pid} mtu 65535 type veth peer name vethwepg{pid} mtu 65535; \
         ip link set vethwepl{pid} master weave; ethtool -K vethwepg{pid} tx off >/dev/null; \
         ip link set vethwepg{pid} netns {pid}; in=\"nsenter --net=/proc/{pid}/ns/net\"; \
         $in ip link set vethwepg{pid} name ethwe; $in iptables -w -A INPUT -i ethwe -d 224.0.0.0/4 -j DROP; \
         ip link set vethwepl{pid} up; bridge link set dev vethwepl{pid} hairpin on; \
         $in ip addr add {cidr} brd + dev ethwe; \
         $in iptables -w -I INPUT 1 -s {cidr} -d 224.0.0.0/4 -i ethwe -j ACCEPT; \
         $in ip link set ethwe up"
    ));
}
