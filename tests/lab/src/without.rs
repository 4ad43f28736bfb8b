//! Runs a command without one feature of the kernel: `lab without packet weave launch`.
//!
//! A seccomp filter makes system calls fail as they do in a kernel without the feature, also in processes that the command starts.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// A feature of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Feature {
    /// Packet sockets.
    Packet,
    /// The virtio header on packet sockets.
    PacketVnet,
    /// Route netlink.
    Netlink,
    /// eBPF programs.
    Bpf,
    /// Merged reception of UDP.
    UdpGro,
    /// Entering namespaces.
    Setns,
}

impl Feature {
    /// The system call, the arguments for which it needs the feature, and the error of a kernel without it.
    fn filter(self) -> (libc::c_long, &'static [(u8, i32)], Errno) {
        match self {
            Feature::Packet => (libc::SYS_socket, &[(0, libc::AF_PACKET)], Errno::EAFNOSUPPORT),
            Feature::PacketVnet => (
                libc::SYS_setsockopt,
                &[(1, libc::SOL_PACKET), (2, libc::PACKET_VNET_HDR)],
                Errno::ENOPROTOOPT,
            ),
            Feature::Netlink => {
                (libc::SYS_socket, &[(0, libc::AF_NETLINK), (2, libc::NETLINK_ROUTE)], Errno::EPROTONOSUPPORT)
            }
            Feature::Bpf => (libc::SYS_bpf, &[], Errno::ENOSYS),
            Feature::UdpGro => {
                (libc::SYS_setsockopt, &[(1, libc::SOL_UDP), (2, libc::UDP_GRO)], Errno::ENOPROTOOPT)
            }
            Feature::Setns => (libc::SYS_setns, &[], Errno::ENOSYS),
        }
    }

    fn program(self) -> Result<BpfProgram> {
        let (call, arguments, errno) = self.filter();
        let conditions = arguments
            .iter()
            .map(|(index, value)| SeccompCondition::new(*index, Dword, Eq, u64::from(value.cast_unsigned())))
            .collect::<Result<Vec<_>, _>>()?;
        // Without a rule every such call fails.
        let rules = if conditions.is_empty() { Vec::new() } else { vec![SeccompRule::new(conditions)?] };
        let filter = SeccompFilter::new(
            BTreeMap::from([(call, rules)]),
            SeccompAction::Allow,
            SeccompAction::Errno((errno as i32).cast_unsigned()),
            std::env::consts::ARCH.try_into()?,
        )?;
        Ok(filter.try_into()?)
    }
}

/// Replaces this process by `command`, without the feature. Returns only if that fails.
pub fn main(feature: Feature, command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command is given")?;
    seccompiler::apply_filter(&feature.program()?).map_err(|e| anyhow!("seccomp: {e}"))?;
    Err(anyhow!(Command::new(program).args(arguments).exec()).context(format!("cannot run {program}")))
}
