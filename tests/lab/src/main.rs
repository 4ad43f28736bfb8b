//! The `lab` program: labs for people, the demo, and the helpers that tests run in hosts.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use std::os::unix::process::CommandExt;
use weave_lab::bench::{self, BenchArgs};
use weave_lab::init::{self, InitArgs};
use weave_lab::probe::{self, Probe};
use weave_lab::without::{self, Feature};
use weave_lab::{Lab, LabState, Topology, demo, labs_up};

/// Hosts made of network namespaces, to try weave on one machine.
#[derive(Parser, Debug)]
#[command(
    name = "lab",
    after_help = "\
Example:
  lab up 3                 three hosts h1 h2 h3 on one wire
  lab shell h1             a shell on h1 (`weave` is on the PATH there)
  lab cut h1 h2            nothing passes between h1 and h2 any more
  lab heal h1 h2           ends the cut
  lab down                 removes the lab"
)]
struct Cli {
    /// Which lab; needed only if several are up.
    #[arg(long, global = true, env = "WEAVE_LAB")]
    id: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Makes a lab of N hosts.
    Up {
        /// Hosts that can reach each other.
        #[arg(default_value_t = 3)]
        hosts: usize,
        /// Further hosts, each behind a router that masquerades.
        #[arg(long, default_value_t = 0)]
        nat: usize,
    },
    /// Removes a lab and everything that runs in it.
    Down,
    /// Opens a shell on a host, or runs a command there: `lab shell h1 -- ip addr`.
    Shell {
        host: String,
        /// The command; a shell if none is given.
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Makes a container on a host: a network namespace with a process. `weave attach netns:NAME` attaches it.
    RunContainer { host: String, name: String },
    /// Opens a shell in a container, or runs a command there.
    Enter {
        host: String,
        container: String,
        /// The command; a shell if none is given.
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Drops everything between two hosts.
    Cut { a: String, b: String },
    /// Undoes `cut` and `block`.
    Heal { a: String, b: String },
    /// Drops what A sends to B unless B opened the connection.
    Block { a: String, b: String },
    /// Drops a share of the packets that are sent to a host, `lab loss h1 0.05`.
    Loss {
        host: String,
        /// 0 to 1.
        #[arg(value_parser = parse_share)]
        share: f64,
    },
    /// Limits the size of packets on the path to a host.
    Mtu {
        host: String,
        /// Bytes.
        #[arg(value_parser = clap::value_parser!(u16).range(68..))]
        mtu: u16,
        /// Send no ICMP messages: a black hole.
        #[arg(long)]
        silent: bool,
    },
    /// Lists the labs that are up.
    Status,
    /// Shows a network of three hosts in a minute, and leaves it up.
    Demo {
        /// Remove the lab at the end.
        #[arg(long)]
        check: bool,
    },
    /// Removes the lab of `demo`.
    DemoDown,
    /// Measures ratios against kernel VXLAN, launch time, memory and size.
    Bench(BenchArgs),
    /// (internal) Makes the namespaces of a host.
    #[command(hide = true)]
    Init(InitArgs),
    /// (internal) Process 1 of a host.
    #[command(hide = true)]
    InitInner(InitArgs),
    /// (internal) Starts a container's process.
    #[command(hide = true)]
    Container { name: String },
    /// (internal) A container's process.
    #[command(hide = true)]
    ContainerHold { name: String },
    /// Runs a command without a feature of the kernel.
    #[command(hide = true)]
    Without {
        feature: Feature,
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Network tools that tests run inside hosts and containers.
    #[command(subcommand)]
    Probe(Probe),
}

fn main() {
    // The verbs of the library are made for tests and panic when they fail. For a person that is an error like any other.
    std::panic::set_hook(Box::new(|panic| fail(panic.payload_as_str().unwrap_or("internal error"))));
    // A copy of the program that stands for another one gets the other one's arguments.
    let arguments = std::env::var("LAB_ARGUMENTS");
    let cli = match &arguments {
        Ok(line) => Cli::parse_from(std::iter::once("lab").chain(line.split(' '))),
        Err(_) => Cli::parse(),
    };
    if let Err(e) = run(cli) {
        fail(&format!("{e:#}"));
    }
}

/// Ends the program with an error of one line.
fn fail(text: &str) -> ! {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    eprintln!("lab: {}", lines.join("; "));
    std::process::exit(1);
}

fn parse_share(text: &str) -> Result<f64> {
    let share = text.parse()?;
    ensure!((0.0..=1.0).contains(&share), "not between 0 and 1");
    Ok(share)
}

fn run(cli: Cli) -> Result<()> {
    let id = cli.id;
    match cli.command {
        Command::Init(args) => init::outer(&args),
        Command::InitInner(args) => init::inner(&args),
        Command::Container { name } => init::container_outer(&name),
        Command::ContainerHold { name } => init::container_hold(&name),
        Command::Probe(tool) => probe::main(&tool),
        Command::Without { feature, command } => without::main(feature, &command),
        Command::Status => {
            status();
            Ok(())
        }
        other => {
            if !nix::unistd::geteuid().is_root() {
                bail!("namespaces need root");
            }
            manage(id, other)
        }
    }
}

fn manage(id: Option<String>, command: Command) -> Result<()> {
    match command {
        Command::Up { hosts, nat } => {
            let mut topology = Topology::hosts(hosts);
            for _ in 0..nat {
                topology = topology.and_behind_nat();
            }
            let lab = Lab::create(id.as_deref().unwrap_or("lab"), &topology, true)?;
            describe(&LabState::load(lab.id())?);
            println!("next: lab shell h1");
        }
        Command::Down => LabState::load(&chosen(id)?)?.remove()?,
        Command::Shell { host, command } => {
            let lab = open(id)?;
            return Err(shell(&lab, &host, None, &command));
        }
        Command::Enter { host, container, command } => {
            let lab = open(id)?;
            return Err(shell(&lab, &host, Some(&container), &command));
        }
        Command::RunContainer { host, name } => {
            let lab = open(id)?;
            let container = find(&lab, &host)?.try_container(&name)?;
            println!("{}", container.netns());
        }
        Command::Cut { a, b } => with_two(id, &a, &b, |lab| lab.cut(&a, &b))?,
        Command::Heal { a, b } => with_two(id, &a, &b, |lab| lab.heal(&a, &b))?,
        Command::Block { a, b } => with_two(id, &a, &b, |lab| lab.block(&a, &b))?,
        Command::Loss { host, share } => with_two(id, &host, &host, |lab| lab.loss(&host, share))?,
        Command::Mtu { host, mtu, silent } => {
            with_two(id, &host, &host, |lab| lab.path_mtu(&host, mtu, !silent))?;
        }
        Command::Demo { check } => demo::demo(check)?,
        Command::DemoDown => demo::down()?,
        Command::Bench(args) => bench::bench(&args)?,
        _ => bail!("internal error: not a command for labs"),
    }
    Ok(())
}

fn chosen(id: Option<String>) -> Result<String> {
    if let Some(id) = id {
        return Ok(id);
    }
    let mut ids: Vec<String> = labs_up().into_iter().filter(|l| l.owner.is_none()).map(|l| l.id).collect();
    match ids.len() {
        0 => bail!("no lab is up (`lab up 3` makes one)"),
        1 => Ok(ids.remove(0)),
        _ => bail!("several labs are up, choose one with --id: {}", ids.join(" ")),
    }
}

fn open(id: Option<String>) -> Result<Lab> {
    Lab::open(&chosen(id)?)
}

fn find<'l>(lab: &'l Lab, name: &str) -> Result<&'l weave_lab::Host> {
    let host = lab.hosts().iter().find(|h| h.name() == name);
    let host = host.with_context(|| {
        format!("no host `{name}` in lab `{}`, which has {}", lab.id(), lab.hosts().len())
    })?;
    ensure!(host.is_up(), "host `{name}` is not running any more");
    Ok(host)
}

fn with_two(id: Option<String>, a: &str, b: &str, action: impl FnOnce(&Lab)) -> Result<()> {
    let lab = open(id)?;
    find(&lab, a)?;
    find(&lab, b)?;
    action(&lab);
    Ok(())
}

/// Replaces this process by a shell or a command in a host. Returns only if that fails.
fn shell(lab: &Lab, host: &str, container: Option<&str>, command: &[String]) -> anyhow::Error {
    let host = match find(lab, host) {
        Ok(host) => host,
        Err(e) => return e,
    };
    let prompt = match container {
        Some(container) => format!("{container}@{}:\\w# ", host.name()),
        None => format!("{}:\\w# ", host.name()),
    };
    let mut process = host.interactive(container, &prompt, command);
    anyhow::Error::new(process.exec()).context("cannot run nsenter (package util-linux)")
}

fn status() {
    let labs = labs_up();
    if labs.is_empty() {
        println!("no lab is up");
    }
    for lab in labs {
        describe(&lab);
    }
}

fn describe(lab: &LabState) {
    println!("lab {}", lab.id);
    for member in &lab.members {
        let state = if member.holder.alive() { "up" } else { "down" };
        let nat = if member.nat.is_some() { "  behind NAT" } else { "" };
        println!("  {:<6} {:<15} pid {:<8} {state}{nat}", member.name, member.ip, member.holder.pid);
    }
}
