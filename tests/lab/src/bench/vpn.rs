//! Other networks between two hosts that encrypt in user space: WireGuard's protocol by wireguard-go or gotatun, and nebula. Containers
//! reach each other by routes through the tunnel.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{START_TIMEOUT, address};
use crate::{Background, Container, Host, Lab, within};

/// A program that makes such a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vpn {
    program: PathBuf,
    nebula: bool,
    /// With its version.
    pub(super) name: String,
}

impl Vpn {
    /// What a program is, its file name tells; others than nebula take the command line of wireguard-go.
    pub(super) fn find(program: &Path) -> Result<Vpn> {
        let program = program.canonicalize().with_context(|| format!("no {}", program.display()))?;
        let file = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let nebula = file == "nebula";
        let version = Command::new(&program).arg(if nebula { "-version" } else { "--version" }).output()?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
        let version =
            version.split_whitespace().map(|word| word.trim_start_matches('v')).find(number).unwrap_or("");
        Ok(Vpn { nebula, name: format!("{file} {version}").trim_end().to_owned(), program })
    }

    /// MTU of the tunnel that the program recommends for a wire of 1,500 bytes.
    fn mtu(&self) -> u32 {
        if self.nebula { 1300 } else { 1420 }
    }

    /// Joins two hosts, and their containers with them. The programs end with the values.
    pub(super) fn join(&self, lab: &Lab, containers: &[Container]) -> Result<Vec<Background>> {
        let [one, two] = lab.hosts() else { anyhow::bail!("{} joins two hosts", self.name) };
        let mtu = self.mtu();
        for (i, (host, container)) in lab.hosts().iter().zip(containers).enumerate() {
            let (own, pid) = (address(i), container.pid());
            host.sh(&format!(
                "sysctl -qw net.ipv4.ip_forward=1
                 ip link add v{pid} mtu {mtu} type veth peer name ethwe mtu {mtu} netns {pid}
                 ip addr add 10.3.0.1/32 dev v{pid}; ip link set v{pid} up; ip route add {own}/32 dev v{pid}"
            ));
            let inside = format!(
                "ip addr add {own}/32 dev ethwe; ip link set ethwe up; \
                 ip route add 10.3.0.1 dev ethwe; ip route add default via 10.3.0.1"
            );
            container.command_ok(&["sh", "-ec", &inside]);
        }
        if self.nebula { self.nebula([one, two]) } else { self.wireguard([one, two]) }
    }

    fn wireguard(&self, hosts: [&Host; 2]) -> Result<Vec<Background>> {
        let mut programs = Vec::new();
        let program = self.program.to_string_lossy();
        // gotatun wants to become the user of the terminal, and ends where there is none.
        let options: &[&str] =
            if program.ends_with("/gotatun") { &["--disable-drop-privileges"] } else { &[] };
        for host in hosts {
            programs.push(host.background(&[&[&*program, "-f", "wg0"], options].concat(), false)?);
            ready(host, &["wg", "show", "wg0"])?;
        }
        let keys = hosts.map(|host| host.sh("umask 077; wg genkey > /run/wg.key; wg pubkey < /run/wg.key"));
        for (i, host) in hosts.into_iter().enumerate() {
            let (key, to, endpoint) = (keys[1 - i].trim(), address(1 - i), hosts[1 - i].ip());
            host.sh(&format!(
                "wg set wg0 listen-port 51820 private-key /run/wg.key \
                 peer {key} allowed-ips {to}/32 endpoint {endpoint}:51820
                 ip link set wg0 mtu {} up; ip route add {to}/32 dev wg0",
                self.mtu()
            ));
        }
        Ok(programs)
    }

    fn nebula(&self, hosts: [&Host; 2]) -> Result<Vec<Background>> {
        let program = self.program.to_string_lossy();
        let certify = self.program.with_file_name("nebula-cert");
        ensure!(certify.exists(), "no {}", certify.display());
        let tunnel = |i: usize| format!("192.168.100.{}", i + 1);
        let certify = certify.to_string_lossy();
        hosts[0].sh(&format!("mkdir -p /run/nebula; cd /run/nebula; {certify} ca -name bench"));
        let mut programs = Vec::new();
        for (i, host) in hosts.into_iter().enumerate() {
            hosts[0].sh(&format!(
                "cd /run/nebula; {certify} sign -name h{i} -ip {}/24 -subnets {}/32",
                tunnel(i),
                address(i)
            ));
            let certificates = ["ca.crt".to_owned(), format!("h{i}.crt"), format!("h{i}.key")]
                .map(|file| hosts[0].sh(&format!("cat /run/nebula/{file}")));
            host.sh("mkdir -p /run/nebula");
            for (file, text) in ["ca.crt", "host.crt", "host.key"].into_iter().zip(certificates) {
                host.sh(&format!("cat > /run/nebula/{file} <<E\n{text}\nE"));
            }
            let any = "[{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}]";
            host.sh(&format!(
                "cat > /run/nebula/config.yml <<E
pki: {{ca: /run/nebula/ca.crt, cert: /run/nebula/host.crt, key: /run/nebula/host.key}}
static_host_map: {{\"{via}\": [\"{endpoint}:4242\"]}}
lighthouse: {{am_lighthouse: false}}
listen: {{host: 0.0.0.0, port: 4242}}
tun: {{dev: nebula0, mtu: {mtu}, unsafe_routes: [{{route: {to}/32, via: {via}}}]}}
firewall: {{outbound: {any}, inbound: {any}}}
logging: {{level: error}}
E",
                via = tunnel(1 - i),
                endpoint = hosts[1 - i].ip(),
                to = address(1 - i),
                mtu = self.mtu(),
            ));
            programs.push(host.background(&[&program, "-config", "/run/nebula/config.yml"], false)?);
            ready(host, &["ip", "link", "show", "up", "dev", "nebula0"])?;
        }
        Ok(programs)
    }
}

fn ready(host: &Host, command: &[&str]) -> Result<()> {
    let what = format!("`{}` on {}", command.join(" "), host.name());
    let ready = within(&what, START_TIMEOUT, || {
        let outcome = host.command(command);
        if outcome.success() { Ok(()) } else { Err(outcome.to_string()) }
    });
    ready.map_err(anyhow::Error::msg)
}
