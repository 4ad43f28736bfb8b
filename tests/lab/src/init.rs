//! The processes that hold namespaces: the init of a host, of a router, and the process of a container.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
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

/// How to make a host or a router.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Host name.
    #[arg(long)]
    name: String,
    /// Folder with the host's disk (`lib`, `log`, `etc`, `opt`); none for a router, which has no disk.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Forward packets between the interfaces and answer ARP for everybody.
    #[arg(long)]
    router: bool,
    /// Stay when the standard input closes.
    #[arg(long)]
    detached: bool,
}

/// `lab init`: makes the namespaces, starts the init in them and prints its pid.
pub fn outer(args: &InitArgs) -> Result<()> {
    if let Some(disk) = &args.disk {
        prepare_disk(disk, &args.name)?;
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

/// A disk starts as copies of the machine's folders where the content matters and empty otherwise. Done once per lab, so that a
/// host that "reboots" finds what it wrote.
fn prepare_disk(disk: &Path, name: &str) -> Result<()> {
    if disk.exists() {
        return Ok(());
    }
    for part in ["lib", "log", "opt", "etc"] {
        fs::create_dir_all(disk.join(part))?;
    }
    copy_tree(Path::new("/etc"), &disk.join("etc")).context("cannot copy /etc")?;
    fs::write(disk.join("etc/hostname"), format!("{name}\n"))?;
    // No resolver: names that are not in /etc/hosts fail at once.
    let _ = fs::remove_file(disk.join("etc/resolv.conf"));
    fs::write(disk.join("etc/resolv.conf"), "# no name server in the lab\n")?;
    // Peer names derive from the machine id, so each host has its own.
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

/// `lab init-inner`: process 1 of the new namespaces. Sets them up, says "ready", reaps, and ends with its standard input.
pub fn inner(args: &InitArgs) -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("cannot make mounts private")?;
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
    nix::unistd::sethostname(&args.name)?;
    ip(&["link", "set", "lo", "up"])?;
    if args.router {
        become_router()?;
    }
    println!("ready");
    std::io::stdout().flush()?;
    // Whoever waits for the end of our output has what it needs.
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
            return Ok(()); // The lab's owner is gone; the kernel kills everything else in here.
        }
        while signals.read_signal()?.is_some() {}
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(s) if s != WaitStatus::StillAlive) {}
    }
}

fn bind(from: &Path, to: &str) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("cannot bind {} to {to}", from.display()))
}

/// Replaces a folder by a private one in which what it held can still be reached.
fn bind_children(folder: &str, private: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in
        entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()) && e.file_name() != "cni")
    {
        let place = private.join(entry.file_name());
        fs::create_dir_all(&place)?;
        bind(&entry.path(), &place.to_string_lossy())?;
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
        // Every "fragmentation needed" counts in a test of path MTU discovery.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv4/icmp_msgs_per_sec", "100000"),
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        // Not every kernel has every key in every namespace; forwarding is the one that matters.
        if let Err(e) = fs::write(net.join(key), value)
            && key == "ipv4/ip_forward"
        {
            return Err(e).context("cannot switch forwarding on");
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

/// `lab container NAME`, run inside a host: starts the holder of a container and prints its pid in the host.
pub fn container_outer(name: &str) -> Result<()> {
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

/// `lab container-hold NAME`: becomes the container: own network and host name, known as `/run/netns/NAME`.
pub fn container_hold(name: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS).context("cannot make namespaces")?;
    nix::unistd::sethostname(name)?;
    ip(&["link", "set", "lo", "up"])?;
    let place = Path::new("/run/netns").join(name);
    fs::create_dir_all("/run/netns")?;
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&place)
        .with_context(|| format!("container {name}"))?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o444))?;
    mount(Some("/proc/self/ns/net"), &place, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("cannot keep the namespace as {}", place.display()))?;
    println!("ready");
    std::io::stdout().flush()?;
    nix::unistd::dup2_stdout(fs::OpenOptions::new().write(true).open("/dev/null")?)?;
    loop {
        std::thread::park();
    }
}
