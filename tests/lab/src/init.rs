//! The processes that hold namespaces: the init of a host or of a router, and the process of a container.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

const NONE: Option<&str> = None;

/// Options of `lab init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Host name.
    #[arg(long)]
    name: String,
    /// Folder with the disk of the host (`lib`, `log`, `etc`, `opt`); a router has none.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// The tree that the host has as its root, instead of this machine's.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Folder that stays visible, read-only, where the disk of the host would hide it.
    #[arg(long)]
    program_folder: Vec<PathBuf>,
    /// Forward packets between the interfaces and answer ARP for all hosts.
    #[arg(long)]
    router: bool,
    /// Do not end when the standard input closes.
    #[arg(long)]
    detached: bool,
}

/// `lab init`: makes the namespaces, starts the init in them and prints its pid.
pub fn outer(args: &InitArgs) -> Result<()> {
    if let Some(disk) = &args.disk {
        prepare_disk(disk, args.root.as_deref(), &args.name)?;
    }
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("cannot make namespaces")?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("init-inner")
        .args(std::env::args_os().skip_while(|a| a != "init").skip(1))
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the init")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
    if line.trim() != "ready" {
        bail!("the init did not become ready: {:?}", child.wait()?);
    }
    println!("{}", child.id());
    Ok(())
}

/// Fills a new disk: `/etc` is a copy of that of its root, the rest is empty. A disk that exists already stays as it is.
fn prepare_disk(disk: &Path, root: Option<&Path>, name: &str) -> Result<()> {
    if disk.exists() {
        return Ok(());
    }
    for part in ["lib", "log", "opt", "etc", "changes", "work"] {
        fs::create_dir_all(disk.join(part))?;
    }
    let etc = root.unwrap_or(Path::new("/")).join("etc");
    copy_tree(&etc, &disk.join("etc")).with_context(|| format!("cannot copy {}", etc.display()))?;
    fs::write(disk.join("etc/hostname"), format!("{name}\n"))?;
    // Without a name server, names that are not in /etc/hosts fail immediately.
    let _ = fs::remove_file(disk.join("etc/resolv.conf"));
    fs::write(disk.join("etc/resolv.conf"), "# no name server in the lab\n")?;
    // The name of a peer depends on the machine id, so each host has its own.
    let mut id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
    if !id.ends_with('\n') {
        id.push('\n');
    }
    let _ = fs::remove_file(disk.join("etc/machine-id"));
    fs::write(disk.join("etc/machine-id"), id)?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

/// `lab init-inner`: process 1 of the new namespaces. It sets them up, prints `ready`, reaps processes, and ends when its standard
/// input closes.
pub fn inner(args: &InitArgs) -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("cannot make mounts private")?;
    // Opened before the mounts below may hide them.
    let programs = args.program_folder.iter().map(|folder| Ok((folder, open_folder(folder)?)));
    let programs = programs.collect::<Result<Vec<_>>>()?;
    if let (Some(root), Some(disk)) = (&args.root, &args.disk) {
        change_root(root, disk, &args.program_folder)?;
    }
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).context("cannot mount /proc")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
        .context("cannot mount /run")?;
    fs::create_dir_all("/run/lock")?;
    if let Some(disk) = &args.disk {
        bind(&disk.join("etc"), "/etc")?;
        bind_children("/opt", &disk.join("opt"))?;
        bind(&disk.join("lib"), "/var/lib")?;
        bind(&disk.join("log"), "/var/log")?;
    }
    for (folder, opened) in programs.iter().filter(|(folder, _)| !folder.exists()) {
        fs::create_dir_all(folder)?;
        bind_read_only(Path::new(&format!("/proc/self/fd/{}", opened.as_raw_fd())), folder)?;
    }
    nix::unistd::sethostname(&args.name)?;
    ip(&["link", "set", "lo", "up"])?;
    if args.router {
        become_router()?;
    }
    // As on a host without the module br_netfilter, until Docker or a test switches it on.
    for which in ["iptables", "ip6tables", "arptables"] {
        let _ = fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{which}"), "0");
    }
    println!("ready");
    std::io::stdout().flush()?;
    // The reader of the output waits for its end.
    nix::unistd::dup2_stdout(fs::OpenOptions::new().write(true).open("/dev/null")?)?;

    let stdin = std::io::stdin();
    loop {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if !args.detached {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if fds.get(1).and_then(|fd| fd.revents()).is_some_and(|r| !r.is_empty()) {
            return Ok(()); // The owner of the lab has ended; the kernel kills all other processes of this pid namespace.
        }
        while signals.read_signal()?.is_some() {}
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(s) if s != WaitStatus::StillAlive) {}
    }
}

/// Makes `root` the root, with the devices, `/sys`, `/tmp` and the programs of this machine. What is changed in it is on the disk of the
/// host. Docker does not work with `chroot`.
fn change_root(root: &Path, disk: &Path, programs: &[PathBuf]) -> Result<()> {
    let place = disk.join("root");
    fs::create_dir_all(&place)?;
    let part = |name: &str| disk.join(name).to_string_lossy().into_owned();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", root.display(), part("changes"), part("work"));
    mount(Some("overlay"), &place, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("cannot mount {} as root", root.display()))?;
    for folder in ["dev", "sys", "tmp", "proc"] {
        let (from, to) = (Path::new("/").join(folder), place.join(folder));
        mount(Some(&from), &to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
            .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))?;
    }
    for folder in programs {
        let target = place.join(folder.strip_prefix("/").unwrap_or(folder));
        if !target.exists() {
            fs::create_dir_all(&target)?;
            bind_read_only(folder, &target)?;
        }
    }
    std::env::set_current_dir(&place)?;
    // The old root is mounted over the new one, and unmounted (pivot_root(2)).
    nix::unistd::pivot_root(".", ".").context("cannot change the root")?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH).context("cannot unmount the old root")?;
    Ok(std::env::set_current_dir("/")?)
}

/// Opens a folder only to mount it again.
fn open_folder(folder: &Path) -> Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    options.open(folder).with_context(|| format!("cannot open {}", folder.display()))
}

fn bind(from: &Path, to: &str) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("cannot bind {} to {to}", from.display()))
}

fn bind_read_only(from: &Path, to: &Path) -> Result<()> {
    let target = to.to_string_lossy();
    bind(from, &target)?;
    mount(NONE, to, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, NONE)
        .with_context(|| format!("cannot make {target} read-only"))
}

/// Mounts a private folder in place of `folder`; its former subfolders except `cni` stay visible in it.
fn bind_children(folder: &str, private: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in
        entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()) && e.file_name() != "cni")
    {
        let target = private.join(entry.file_name());
        fs::create_dir_all(&target)?;
        bind(&entry.path(), &target.to_string_lossy())?;
    }
    mount(Some(private), folder, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("cannot bind {} to {folder}", private.display()))
}

fn become_router() -> Result<()> {
    let net = Path::new("/proc/sys/net");
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/proxy_arp", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        // Tests of path MTU discovery need every "fragmentation needed" message.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_msgs_per_sec", "100000"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        // Not every kernel has every key in every namespace; only forwarding is required.
        if let Err(e) = fs::write(net.join(key), value)
            && key == "ipv4/ip_forward"
        {
            return Err(e).context("cannot enable forwarding");
        }
    }
    Ok(())
}

fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("cannot run `ip` (package iproute2)")?;
    if !status.success() {
        bail!("`ip {}` failed", args.join(" "));
    }
    Ok(())
}

/// `lab container NAME`, run in a host: starts the process of a container and prints its pid in the host.
pub fn container_outer(name: &str) -> Result<()> {
    if name.is_empty()
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        || name.starts_with('.')
    {
        bail!("container name `{name}`: only letters, digits, `-`, `_` and `.`");
    }
    if Path::new("/run/netns").join(name).exists() {
        bail!("container `{name}` already exists");
    }
    let mut child = Command::new(std::env::current_exe()?)
        .args(["container-hold", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
    if line.trim() != "ready" {
        bail!("the container's process did not become ready: {:?}", child.wait()?);
    }
    println!("{}", child.id());
    Ok(())
}

/// `lab container-hold NAME`: the process of a container, with a network namespace and a host name of its own; the namespace is
/// mounted at `/run/netns/NAME`.
pub fn container_hold(name: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS).context("cannot make namespaces")?;
    nix::unistd::sethostname(name)?;
    ip(&["link", "set", "lo", "up"])?;
    let mount_point = Path::new("/run/netns").join(name);
    fs::create_dir_all("/run/netns")?;
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&mount_point)
        .with_context(|| format!("container {name}"))?;
    fs::set_permissions(&mount_point, fs::Permissions::from_mode(0o444))?;
    mount(Some("/proc/self/ns/net"), &mount_point, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("cannot mount the namespace at {}", mount_point.display()))?;
    println!("ready");
    std::io::stdout().flush()?;
    nix::unistd::dup2_stdout(fs::OpenOptions::new().write(true).open("/dev/null")?)?;
    loop {
        std::thread::park();
    }
}
