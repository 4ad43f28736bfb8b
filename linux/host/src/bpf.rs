//! An eBPF program of two instructions that drops every packet, loaded by the system call itself.

use std::os::fd::{FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::{Error, fault_injection};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const TC_ACT_SHOT: i32 = 2;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    opcode: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
}

/// Loads `r0 = TC_ACT_SHOT; exit` as a classifier of traffic control.
pub(crate) fn load_drop() -> Result<OwnedFd, Error> {
    let program = [
        // BPF_ALU64 | BPF_MOV | BPF_K
        Instruction { opcode: 0xb7, registers: 0, offset: 0, immediate: TC_ACT_SHOT },
        // BPF_JMP | BPF_EXIT
        Instruction { opcode: 0x95, registers: 0, offset: 0, immediate: 0 },
    ];
    let step = "loading a BPF program that drops frames";
    fault_injection::fail_point(&step).map_err(|e| Error::refused(step, e, ""))?;
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes have the layout of the kernel's structure and the size given; the program and the licence
    // they point to outlive the call, which only reads them.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of_val(&attributes))
    };
    if fd < 0 {
        return Err(Error::refused(step, Errno::last(), ""));
    }
    // SAFETY: the call succeeded, so this is a new descriptor that has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
