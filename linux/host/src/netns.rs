//! Network namespaces: open, compare, enter.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::netlink::{Request, find, u32_at};
use crate::{Error, Netlink, fault_injection};

/// Directory in which `ip netns add` creates names.
const NAMED: &str = "/var/run/netns";
/// ioctl `NS_GET_NSTYPE`: returns the kind of namespace that an open file refers to (Linux 4.11).
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Identity of a namespace: two handles refer to the same namespace exactly if these are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// The number that `ls -L -i` prints, and the target of the link `/proc/<pid>/ns/net` in brackets.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

/// An open network namespace. The handle keeps the namespace alive.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    id: NamespaceId,
    label: String,
}

/// Identifies a namespace to other processes of the same boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceKey {
    /// See [`NamespaceId::inode`]. The kernel uses the number again after the namespace has ended.
    pub inode: u64,
    /// The kernel's cookie of the namespace, which is never used again; `None` before Linux 5.14.
    pub cookie: Option<u64>,
}

impl NetNs {
    /// The namespace of the calling thread.
    pub fn current() -> Result<NetNs, Error> {
        open(Path::new("/proc/thread-self/ns/net"), "the current network namespace".into())
    }

    /// The namespace that `ip netns` calls `name`, or the one that the file `name` refers to if it contains a slash.
    pub fn named(name: &str) -> Result<NetNs, Error> {
        if name.contains('/') {
            return NetNs::at(Path::new(name));
        }
        if name.is_empty() || name == "." || name == ".." || name.contains('\0') {
            return Err(Error::Argument(format!("{name:?} is not the name of a network namespace")));
        }
        let path: PathBuf = [NAMED, name].iter().collect();
        match open(&path, format!("network namespace {name}")) {
            Err(Error::NamespaceGone(_)) => Err(Error::NamespaceGone(format!(
                "network namespace {name} not found; `ip netns list` shows those that have a name, a path works as well"
            ))),
            other => other,
        }
    }

    /// The namespace that a file refers to: a bind mount, or a link under `/proc/<pid>/ns`.
    pub fn at(path: &Path) -> Result<NetNs, Error> {
        open(path, format!("network namespace {}", path.display()))
    }

    /// The namespace of a process.
    pub fn of_process(pid: u32) -> Result<NetNs, Error> {
        match open(
            &PathBuf::from(format!("/proc/{pid}/ns/net")),
            format!("the network namespace of process {pid}"),
        ) {
            Err(Error::NamespaceGone(_)) => {
                Err(Error::NamespaceGone(format!("process {pid} not found; it may have ended meanwhile")))
            }
            other => other,
        }
    }

    /// Every network namespace of a process, with the lowest process id in it, in order of those ids. Processes that this process may
    /// not inspect are left out.
    pub fn all_of_processes() -> Result<Vec<(u32, NetNs)>, Error> {
        let step = "listing processes";
        let entries = std::fs::read_dir("/proc").map_err(|e| Error::io(step, &e))?;
        let mut pids: Vec<u32> = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        let mut seen = std::collections::BTreeSet::new();
        let mut found = Vec::new();
        for pid in pids {
            if let Ok(ns) = NetNs::of_process(pid)
                && seen.insert(ns.id)
            {
                found.push((pid, ns));
            }
        }
        Ok(found)
    }

    /// Every network namespace that has a name of `ip netns` or a process, once.
    pub fn all() -> Result<Vec<NetNs>, Error> {
        let names = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
        let named = names.filter_map(|entry| NetNs::named(&entry.file_name().into_string().ok()?).ok());
        let mut seen = std::collections::BTreeSet::new();
        let all = named.chain(NetNs::all_of_processes()?.into_iter().map(|(_, ns)| ns));
        Ok(all.filter(|ns| seen.insert(ns.id)).collect())
    }

    /// The identity of the namespace.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Another handle for the same namespace.
    pub fn try_clone(&self) -> Result<NetNs, Error> {
        let file = self.file.try_clone().map_err(|e| Error::io(format!("duplicating {self}"), &e))?;
        Ok(NetNs { file, id: self.id, label: self.label.clone() })
    }

    /// Runs `work` inside the namespace, on a thread of its own. Processes that it starts are in the namespace too. A panic is
    /// propagated to the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let operation = fault_injection::Context::current();
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                let _operation = operation.enter();
                let enter = || {
                    fault_injection::fail_point(&"entering a namespace")?;
                    setns(&self.file, CloneFlags::CLONE_NEWNET)
                };
                enter().map_err(|e| {
                    let step = format!("entering {self}");
                    match e {
                        Errno::ENOSYS => {
                            Error::MissingFeature { step, feature: "network namespaces (CONFIG_NET_NS)" }
                        }
                        _ => Error::refused(step, e, ""),
                    }
                })?;
                Ok(work())
            });
            let thread = thread.map_err(|e| Error::io("starting a thread", &e))?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A netlink socket of the namespace; it may be used by any thread.
    pub fn netlink(&self) -> Result<Netlink, Error> {
        self.run(Netlink::open)?
    }

    /// The number (`nsid`) by which the namespace of `seen_from` refers to this one, if it has one.
    pub fn number(&self, seen_from: &mut Netlink) -> Result<Option<i32>, Error> {
        // struct rtgenmsg, padded.
        let mut request = Request::new(libc::RTM_GETNSID, 0, &[0; 4]);
        request.number(NETNSA_FD, self.as_raw_fd() as u32);
        let replies = seen_from.query(request, format_args!("looking up the number of {self}"))?;
        let number = replies
            .iter()
            .filter(|r| r.kind == libc::RTM_NEWNSID)
            .find_map(|r| u32_at(find(r.body.get(4..)?, NETNSA_NSID)?, 0))
            .map(|n| n as i32);
        Ok(number.filter(|n| *n >= 0))
    }

    /// The namespace that a received file descriptor refers to.
    pub fn from_fd(fd: OwnedFd) -> Result<NetNs, Error> {
        check(File::from(fd), "the received network namespace".into())
    }

    /// Identifies the namespace to a later process.
    pub fn key(&self) -> Result<NamespaceKey, Error> {
        Ok(NamespaceKey { inode: self.id.inode, cookie: self.run(cookie)? })
    }

    /// Finds a namespace by its key: at `path` (as [`NetNs::named`] takes it), among the names of `ip netns`, or among those of
    /// processes.
    pub fn find(key: NamespaceKey, path: Option<&str>) -> Result<Option<NetNs>, Error> {
        let names = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let named =
            path.map(str::to_owned).into_iter().chain(names).filter_map(|name| NetNs::named(&name).ok());
        let all = named.chain(NetNs::all_of_processes()?.into_iter().map(|(_, ns)| ns));
        for ns in all.filter(|ns| ns.id.inode == key.inode) {
            if ns.key()? == key {
                return Ok(Some(ns));
            }
        }
        Ok(None)
    }
}

/// The cookie of the namespace of the calling thread.
fn cookie() -> Option<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}

fn open(path: &Path, label: String) -> Result<NetNs, Error> {
    let step = || format!("opening {label} ({})", path.display());
    let file = File::open(path).map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
        // ESRCH: a process that has ended but is not reaped has no namespaces any more.
        Some(Errno::ENOENT | Errno::ESRCH | Errno::ENOTDIR | Errno::ENXIO) => {
            Error::NamespaceGone(format!("{label} not found ({} does not exist)", path.display()))
        }
        _ => Error::io(step(), &e),
    })?;
    check(file, label)
}

fn check(file: File, label: String) -> Result<NetNs, Error> {
    // SAFETY: the request takes no argument and only returns a number about a file that is open.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    // ENOTTY is the answer of files of other kinds, and of namespaces on kernels before 4.11.
    let on_old_kernel = kind < 0 && is_nsfs(&file);
    if kind != libc::CLONE_NEWNET && !on_old_kernel {
        let name = label.strip_prefix("network namespace ").unwrap_or(&label);
        return Err(Error::Argument(format!("{name} is not a network namespace")));
    }
    let meta = file.metadata().map_err(|e| Error::io(format!("inspecting {label}"), &e))?;
    Ok(NetNs { id: NamespaceId { device: meta.dev(), inode: meta.ino() }, file, label })
}

fn is_nsfs(file: &File) -> bool {
    nix::sys::statfs::fstatfs(file).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}
