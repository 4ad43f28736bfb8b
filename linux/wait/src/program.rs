//! The wait program `/w/w`, which is the entrypoint of containers that the proxy created: it waits until the container is attached, and
//! then becomes the container's own program. It is compiled by `build.rs`, without libc and without `std`.
//!
//! ```text
//! subscribe to changes of links and routes -> attached? -- yes --> execve(arguments)
//!                                                ^  | no
//!                                                |  v
//!                                             wait for a change, or for SIGTERM
//! ```
//!
//! `waits_for` is `multicast` (interface up and route for multicast, which is added last), `interface` or `nothing`.
#![no_std]
#![no_main]
// Otherwise the compiler replaces the loops in `memcpy` and its like by calls of themselves.
#![no_builtins]

use core::arch::{asm, global_asm};
use core::ffi::CStr;

#[cfg(target_arch = "x86_64")]
mod nr {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const SOCKET: usize = 41;
    pub const RECVFROM: usize = 45;
    pub const BIND: usize = 49;
    pub const EXECVE: usize = 59;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const PPOLL: usize = 271;
    pub const SIGNALFD4: usize = 289;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub const IOCTL: usize = 29;
    pub const OPENAT: usize = 56;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PPOLL: usize = 73;
    pub const SIGNALFD4: usize = 74;
    pub const EXIT_GROUP: usize = 94;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const SOCKET: usize = 198;
    pub const BIND: usize = 200;
    pub const RECVFROM: usize = 207;
    pub const EXECVE: usize = 221;
}

// Passes the initial stack pointer to `start`: argument count, arguments, 0, environment, 0.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {}", "ud2", sym start);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x0, sp", "bl {}", "brk 1", sym start);

const ENOENT: isize = -2;
const EACCES: isize = -13;
const ENOTDIR: isize = -20;
const SIGNAL_SET: usize = size_of::<u64>();
/// SIGHUP, SIGINT, SIGQUIT, SIGTERM, which the first process of a container would ignore.
const SIGNALS: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14;
const CLOEXEC: usize = 0o2_000_000;

type Texts = *const *const u8;

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: this is the stack that the kernel makes for a new program.
    let (arguments, environment) = unsafe {
        let count = *stack;
        (stack.add(2) as Texts, stack.add(count + 2) as Texts)
    };
    // SAFETY: the list ends with a null pointer.
    let name = unsafe { *arguments };
    if name.is_null() {
        fail(&[b"No command specified"]);
    }
    if !cfg!(waits_for = "nothing") {
        wait();
    }
    execute(name, arguments, environment)
}

/// Returns when the container is attached.
fn wait() {
    let old_signals: u64 = 0;
    // SAFETY: the kernel reads the mask and writes the old one.
    let signals = unsafe {
        call(nr::RT_SIGPROCMASK, [0, &raw const SIGNALS_MASK as usize, &raw const old_signals as usize, SIGNAL_SET, 0, 0]);
        call(nr::SIGNALFD4, [usize::MAX, &raw const SIGNALS_MASK as usize, SIGNAL_SET, CLOEXEC, 0, 0])
    };
    // AF_NETLINK, SOCK_RAW, NETLINK_ROUTE
    // SAFETY: the arguments are numbers.
    let socket = unsafe { call(nr::SOCKET, [16, 3 | CLOEXEC, 0, 0, 0, 0]) };
    // sockaddr_nl: family, pad, pid, groups RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE
    let address: [u32; 3] = [16, 0, 0x51];
    // SAFETY: the kernel reads twelve bytes.
    let bound = unsafe { call(nr::BIND, [socket as usize, &raw const address as usize, 12, 0, 0, 0]) };
    if signals < 0 || socket < 0 || bound < 0 {
        fail(&[b"cannot wait for the network: the kernel offers no netlink socket"]);
    }
    while !is_attached(socket) {
        wait_for_change(socket, signals);
    }
    // SAFETY: the kernel reads the old mask; both descriptors are ours.
    unsafe {
        call(nr::RT_SIGPROCMASK, [2, &raw const old_signals as usize, 0, SIGNAL_SET, 0, 0]);
    }
}

static SIGNALS_MASK: u64 = SIGNALS;

fn wait_for_change(socket: isize, signals: isize) {
    #[repr(C)]
    struct PollFd {
        fd: i32,
        events: i16,
        revents: i16,
    }
    let mut fds =
        [socket, signals].map(|fd| PollFd { fd: fd as i32, events: 1, revents: 0 });
    // SAFETY: the kernel reads and writes two elements.
    unsafe { call(nr::PPOLL, [&raw mut fds as usize, 2, 0, 0, 0, 0]) };
    if fds[1].revents != 0 {
        let mut info = [0u32; 32];
        // SAFETY: signalfd_siginfo has 128 bytes.
        unsafe { call(nr::READ, [signals as usize, &raw mut info as usize, 128, 0, 0, 0]) };
        exit(128 + info[0] as usize);
    }
    // What has changed is looked up, so the messages are only removed. MSG_DONTWAIT
    let mut message = [0u8; 8192];
    // SAFETY: the kernel writes at most the length of the buffer.
    while unsafe { call(nr::RECVFROM, [socket as usize, &raw mut message as usize, 8192, 0x40, 0, 0]) } > 0 {}
}

/// Whether `ethwe` is up and, if that is waited for, has a route for multicast.
fn is_attached(socket: isize) -> bool {
    // struct ifreq: name, flags
    let mut request = [0u8; 40];
    request[..5].copy_from_slice(b"ethwe");
    // SAFETY: SIOCGIFFLAGS reads the name and writes two bytes behind it.
    let found = unsafe { call(nr::IOCTL, [socket as usize, 0x8913, &raw mut request as usize, 0, 0, 0]) };
    let is_up = found >= 0 && request[16] & 1 != 0;
    is_up && (cfg!(waits_for = "interface") || has_multicast_route())
}

/// A line of the file begins with interface and destination, separated by a tab: `ethwe\t000000E0`.
fn has_multicast_route() -> bool {
    let path = c"/proc/net/route";
    // SAFETY: the path ends with a zero. AT_FDCWD, O_RDONLY
    let file = unsafe { call(nr::OPENAT, [-100isize as usize, path.as_ptr() as usize, CLOEXEC, 0, 0, 0]) };
    if file < 0 {
        fail(&[b"cannot read /proc/net/route"]);
    }
    let (mut column, mut at, mut found) = (0, 0, false);
    let (wanted, mut same) = (b"000000E0", false);
    let mut buffer = [0u8; 4096];
    loop {
        // SAFETY: the kernel writes at most the length of the buffer.
        let read = unsafe { call(nr::READ, [file as usize, &raw mut buffer as usize, 4096, 0, 0, 0]) };
        let Some(bytes) = buffer.get(..usize::try_from(read).unwrap_or(0)).filter(|b| !b.is_empty()) else { break };
        for byte in bytes {
            match byte {
                b'\n' => (column, at, same) = (0, 0, false),
                b'\t' => {
                    found |= column == 1 && same && at == wanted.len();
                    (column, at, same) = (column + 1, 0, true);
                }
                _ => {
                    same &= wanted.get(at) == Some(byte);
                    at += 1;
                }
            }
        }
    }
    // SAFETY: the descriptor is ours.
    unsafe { call(nr::CLOSE, [file as usize, 0, 0, 0, 0, 0]) };
    found
}

/// Becomes the program, which is looked up in `PATH` unless its name has a slash.
fn execute(name: *const u8, arguments: Texts, environment: Texts) -> ! {
    // SAFETY: texts of the kernel end with a zero.
    let text = unsafe { CStr::from_ptr(name.cast()) }.to_bytes();
    // SAFETY: name, arguments and environment are those of the kernel.
    let become_program = |path: *const u8| unsafe {
        call(nr::EXECVE, [path as usize, arguments as usize, environment as usize, 0, 0, 0])
    };
    if text.contains(&b'/') {
        let reason: &[u8] = match become_program(name) {
            ENOENT | ENOTDIR => b"no such file or directory",
            EACCES => b"permission denied",
            _ => b"cannot be executed",
        };
        fail(&[b"exec: \"", text, b"\": ", reason]);
    }
    let mut denied = false;
    for directory in search_path(environment).split(|b| *b == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let mut path = [0u8; 4096];
        let mut parts = directory.iter().chain(b"/").chain(text);
        // The last byte stays zero.
        path[..4095].iter_mut().zip(&mut parts).for_each(|(to, from)| *to = *from);
        if text.is_empty() || parts.next().is_some() {
            continue;
        }
        match become_program(path.as_ptr()) {
            ENOENT | ENOTDIR => {}
            EACCES => denied = true,
            _ => fail(&[b"exec: \"", text, b"\": cannot be executed"]),
        }
    }
    if denied {
        fail(&[b"exec: \"", text, b"\": permission denied"]);
    }
    fail(&[b"exec: \"", text, b"\": executable file not found in $PATH"])
}

/// The value of `PATH`.
fn search_path(mut environment: Texts) -> &'static [u8] {
    // SAFETY: the list ends with a null pointer, and its texts with a zero; they exist until the program ends.
    unsafe {
        while !(*environment).is_null() {
            if let Some(path) = CStr::from_ptr((*environment).cast()).to_bytes().strip_prefix(b"PATH=") {
                return path;
            }
            environment = environment.add(1);
        }
    }
    b""
}

fn fail(parts: &[&[u8]]) -> ! {
    for part in parts.iter().copied().chain([b"\n".as_slice()]) {
        // SAFETY: the kernel reads the bytes of the part.
        unsafe { call(nr::WRITE, [2, part.as_ptr() as usize, part.len(), 0, 0, 0]) };
    }
    exit(1)
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { call(nr::EXIT_GROUP, [code, 0, 0, 0, 0, 0]) };
    }
}

/// A call of the kernel; errors are negative numbers.
///
/// # Safety
/// As for the call.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: [usize; 6]) -> isize {
    let result;
    // SAFETY: the registers are those of Linux's calling convention.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3],
            in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// A call of the kernel; errors are negative numbers.
///
/// # Safety
/// As for the call.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: [usize; 6]) -> isize {
    let result;
    // SAFETY: the registers are those of Linux's calling convention.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a[0] => result, in("x1") a[1], in("x2") a[2], in("x3") a[3],
            in("x4") a[4], in("x5") a[5], options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(2)
}

/// The compiled library refers to it, for panics that unwind, which there are none of.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// What compiled code calls, without libc.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    for i in 0..length {
        // SAFETY: within the lengths that the caller gives.
        unsafe { *to.add(i) = *from.add(i) };
    }
    to
}

/// What compiled code calls, without libc.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, length: usize) -> *mut u8 {
    for i in 0..length {
        // SAFETY: within the length that the caller gives.
        unsafe { *to.add(i) = value as u8 };
    }
    to
}

/// What compiled code calls, without libc.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    for i in 0..length {
        // SAFETY: within the length that the caller gives.
        let (a, b) = unsafe { (*a.add(i), *b.add(i)) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// What compiled code calls, without libc.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
    // SAFETY: as for the caller.
    unsafe { memcmp(a, b, length) }
}

/// What compiled code calls, without libc.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the text ends with a zero.
    while unsafe { *text.add(length) } != 0 {
        length += 1;
    }
    length
}
