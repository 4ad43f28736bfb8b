//! Every operation of a command on its host is made to fail, one after the other; or the process is killed before it. After a
//! failure the host is as before, after a success as if nothing had happened, and in any case the next command works.
//!
//! Needs a program built with feature `fault-injection`, as `make lab-test` does.

use weave_lab::{Host, Lab, Outcome, Topology};

use crate::common::*;

/// Private to the host; not part of its state.
const HIT: &str = "/var/log/fault";
/// Where the daemon looks for what is to happen to it.
const PLAN: &str = "/var/log/fault.plan";
/// More operations than any command has.
const MANY: usize = 1000;
/// The kernel's error for operations that fail.
const EIO: &str = "5";
/// "Not supported": what a kernel says that lacks something.
const EOPNOTSUPP: &str = "95";
const KILL: &str = "kill";
const MODES: [&str; 3] = [EIO, EOPNOTSUPP, KILL];

/// Which process fails.
#[derive(Clone, Copy)]
enum Of {
    /// The one that was called with this command: the one that was typed, or one that it starts.
    Process(&'static str),
    /// The daemon that runs, while it does this for somebody.
    Daemon(&'static str),
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Of::Process(name) | Of::Daemon(name) => name,
        }
    }

    fn is_daemon(self) -> bool {
        matches!(self, Of::Daemon(_))
    }
}

/// Runs a command whose process fails (`mode` is the error) or dies (`kill`) at its `n`th operation. Also the step where
/// that happened; none if there are not as many.
fn faulty(host: &Host, mode: &str, of: Of, n: usize, args: &[&str]) -> (Outcome, Option<String>) {
    let plan = format!("{mode}:{}:{n}:{HIT}", of.name());
    let script = format!(
        "[ -z \"$PLAN\" ] || echo \"$PLAN\" > {PLAN}; \"$@\"; c=$?; [ ! -e {HIT} ] || {{ echo \"@@$(cat {HIT})\" >&2; }}; \
         rm -f {HIT} {PLAN}; exit $c"
    );
    let mut argv = vec!["sh", "-c", &script, "-", weave_lab::weave_binary()];
    argv.extend(args);
    let variable = if of.is_daemon() { "PLAN" } else { "WEAVE_FAULT" };
    let mut outcome = host.command_with(&[(variable, &plan)], &argv, LONG_TIMEOUT);
    let mut step = None;
    if let Some((said, hit)) = outcome.stderr.rsplit_once("@@").map(|(a, b)| (a.to_owned(), b.to_owned())) {
        (outcome.stderr, step) = (said, Some(hit));
    }
    // The shell's words, not ours.
    let killed = |l: &&str| !l.ends_with("Killed") && !l.contains(" Killed ");
    outcome.stderr = outcome.stderr.lines().filter(killed).map(|l| format!("{l}\n")).collect();
    (outcome, step)
}

/// Whether the program has the feature; says so if not.
fn possible(host: &Host) -> bool {
    let (_, step) = faulty(host, EIO, Of::Process("reset"), 0, &["reset"]);
    if step.is_none() {
        let required = std::env::var("WEAVE_LAB_REQUIRED").as_deref() == Ok("1");
        assert!(!required, "the program is built without feature `fault-injection`");
        eprintln!("SKIPPED: the program is built without feature `fault-injection`");
    }
    step.is_some()
}

/// What a step that is not needed may leave out: rules of the firewall, tuning.
fn optional(change: &str) -> bool {
    ["-A ", "WEAVE", "/neigh/", "filter", "clsact", "promote_secondaries"].iter().any(|w| change.contains(w))
}

/// Part of the points that a run tries: this one, and every how many after it. Different ones in each mode.
fn part(of: Of, mode: &str) -> (usize, usize) {
    let stride = match of {
        // These take longest: the daemon's part of a launch has a hundred points, and a reset waits for others to hear of it.
        Of::Process("daemon" | "reset") if std::env::var_os("WEAVE_LAB_ALL_FAULTS").is_none() => 3,
        _ => 1,
    };
    (MODES.iter().position(|m| *m == mode).unwrap_or(0) % stride, stride)
}

/// A command, how to get back to the state before it, and the two states.
#[derive(Clone, Copy)]
struct Trial<'a> {
    host: &'a Host,
    of: Of,
    command: &'a [&'a str],
    back: &'a dyn Fn(&Host),
    /// A failure leaves what was done until then: the command takes away, and takes away as much as it can.
    keeps_going: bool,
    /// Not even a kill leaves anything between before and after.
    atomic: bool,
    /// Whoever has begun what is killed finishes it.
    guarded: bool,
}

impl Trial<'_> {
    /// In all modes.
    fn run(&self) -> String {
        let counts: Vec<String> = MODES.iter().map(|mode| self.run_mode(mode)).collect();
        format!("{} {}: {}", self.command.first().unwrap_or(&""), self.of.name(), counts.join(", "))
    }

    /// Gives what was tried, in words.
    fn run_mode(&self, mode: &str) -> String {
        let (first, stride) = part(self.of, mode);
        let before = host_state(self.host);
        self.host.weave_ok(self.command);
        let after = host_state(self.host);
        self.back(&before);
        // A detach that is killed may leave this switched on. It says what happens to an interface's other addresses when one
        // is removed, which only detach does.
        let left = |mut changes: Vec<String>| {
            changes.retain(|c| mode != KILL || !c.contains("ethwe/promote_secondaries"));
            changes
        };
        let (mut tried, mut half) = (0, 0);
        for n in (first..MANY).step_by(stride) {
            let (outcome, step) = faulty(self.host, mode, self.of, n, self.command);
            let Some(step) = step else {
                // Also the next command after all those that failed and left the host as it was: what failed in one trial
                // succeeds in the next, up to the next operation.
                assert!(outcome.success(), "{outcome}");
                assert_same(&after, &host_state(self.host), "what works has to do everything", "");
                self.back(&before);
                break;
            };
            tried += 1;
            if mode == KILL && self.guarded {
                let at = format!("killed at operation {n} of {}: {step}{outcome}", self.of.name());
                assert!(outcome.success(), "{at}");
                // Who starts a daemon that was killed says nothing of it.
                let told = outcome.stderr.contains("was killed, and is done again");
                assert_eq!(told, !matches!(self.of, Of::Process("daemon" | "supervise")), "{at}");
                let lacking = left(differences(&after, &host_state(self.host)));
                assert!(lacking.is_empty(), "{lacking:#?}\n{at}");
                (self.back)(self.host);
                let changes = left(differences(&before, &host_state(self.host)));
                assert!(changes.is_empty(), "and is undone: {changes:#?}\n{at}");
                continue;
            }
            let at = format!("{mode} at operation {n} of {}: {step}{outcome}", self.of.name());
            assert!(!outcome.timed_out, "{at}");
            let now = host_state(self.host);
            if mode != KILL && outcome.success() {
                let mut lacking = differences(&after, &now);
                if lacking.iter().any(|change| change.contains("/var/lib/weave/")) {
                    // The daemon has gone on without it, and sees to it a moment later.
                    lacking = self.host.wait("what is missing", SHORT_TIMEOUT, || {
                        let lacking = differences(&after, &host_state(self.host));
                        if lacking.iter().all(|change| optional(change)) {
                            Ok(lacking)
                        } else {
                            Err(format!("{lacking:#?}"))
                        }
                    });
                }
                assert!(lacking.iter().all(|change| optional(change)), "{lacking:#?}\n{at}");
                (self.back)(self.host);
                if lacking.is_empty() {
                    continue;
                }
            } else if mode != KILL && !self.keeps_going {
                assert_eq!(outcome.stderr.lines().count(), 1, "one line has to tell\n{at}");
                assert_same(&before, &now, "nothing may change", &at);
                continue;
            }
            if !self.of.is_daemon() {
                half += usize::from([&before, &after].iter().all(|s| !differences(s, &now).is_empty()));
            }
            if mode == KILL && self.of.is_daemon() {
                relaunch(self.host);
            }
            if mode == KILL && self.atomic {
                let now = host_state(self.host);
                let (undone, lacking) = (differences(&before, &now), differences(&after, &now));
                assert!(undone.is_empty() || lacking.is_empty(), "{undone:#?}\n{lacking:#?}\n{at}");
            }
            // Whatever is left over, the next one works and leaves what it always leaves.
            let next = self.host.weave(self.command);
            assert!(next.success(), "the next one has to work\n{at}\n{next}");
            let changes = left(differences(&after, &host_state(self.host)));
            assert!(changes.is_empty(), "the next one has to do everything: {changes:#?}\n{at}");
            (self.back)(self.host);
            let changes = left(differences(&before, &host_state(self.host)));
            assert!(changes.is_empty(), "and is undone: {changes:#?}\n{at}");
        }
        assert!(tried > 0, "no operation was reached");
        match mode {
            EIO => format!("EIO {tried}"),
            EOPNOTSUPP => format!("EOPNOTSUPP {tried}"),
            _ => format!("SIGKILL {tried} ({half} left half done until the next command)"),
        }
    }

    fn back(&self, before: &str) {
        (self.back)(self.host);
        assert_same(before, &host_state(self.host), "the way back", "");
    }
}

#[track_caller]
fn assert_same(wanted: &str, now: &str, what: &str, at: &str) {
    let changes = differences(wanted, now);
    assert!(changes.is_empty(), "{what}: {changes:#?}\n{at}");
}

/// A daemon that can be told to fail.
fn relaunch(host: &Host) {
    host.weave_env(&[("WEAVE_FAULT_PLAN", PLAN)], &["launch", "--no-restart"]).expect_ok();
}

fn ok(host: &Host, commands: &[&[&str]]) {
    commands.iter().for_each(|args| drop(host.weave_ok(args)));
}

/// A lab with one host and a container `c` on it, and the test that is to be done there.
fn on_a_host(name: &str, test: impl FnOnce(&Host)) {
    let Some(lab) = Lab::start(name, &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let _c = h1.container("c");
    if possible(h1) {
        test(h1);
    }
}

#[test]
fn attach() {
    on_a_host("fattach", |h1| {
        relaunch(h1);
        let trial = Trial {
            host: h1,
            of: Of::Process("attach"),
            command: &["attach", "10.2.1.1/24", "10.2.2.1/24", "netns:c"],
            back: &|h| ok(h, &[&["detach", "10.2.1.1/24", "10.2.2.1/24", "netns:c"]]),
            keeps_going: false,
            atomic: false,
            guarded: true,
        };
        println!("{}", trial.run());
        // The daemon's part: whose address is it?
        let allocated = Trial {
            of: Of::Daemon("ip"),
            command: &["attach", "netns:c"],
            guarded: false,
            back: &|h| ok(h, &[&["detach", "netns:c"]]),
            ..trial
        };
        println!("{}", allocated.run());
    });
}

#[test]
fn detach() {
    on_a_host("fdetach", |h1| {
        relaunch(h1);
        ok(h1, &[&["attach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"]]);
        let some = Trial {
            host: h1,
            of: Of::Process("detach"),
            command: &["detach", "10.2.1.1/24", "10.2.2.1/24", "netns:c"],
            back: &|h| {
                // In this order the addresses are again what they were.
                ok(h, &[&["detach", "10.2.1.2/24", "netns:c"]]);
                ok(h, &[&["attach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"]]);
            },
            keeps_going: false,
            atomic: false,
            guarded: true,
        };
        println!("some addresses: {}", some.run());
        let all = Trial {
            command: &["detach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"],
            back: &|h| ok(h, &[&["attach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"]]),
            ..some
        };
        println!("all addresses: {}", all.run());
    });
}

/// One address with a name, or two of which the host is to translate none.
const EXPOSED: [&[&str]; 2] = [
    &["expose", "10.2.1.102/24", "-h", "exposed.weave.local"],
    &["expose", "10.2.1.102/24", "10.2.2.102/24", "--without-masquerade"],
];
const HIDDEN: [&[&str]; 2] = [&["hide", "10.2.1.102/24"], &["hide", "10.2.1.102/24", "10.2.2.102/24"]];

/// As it is on a host without Docker.
fn forward_nothing(host: &Host) {
    host.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
}

fn exposing(name: &str, addresses: usize) {
    on_a_host(name, |h1| {
        relaunch(h1);
        forward_nothing(h1);
        let trial = Trial {
            host: h1,
            of: Of::Daemon("expose"),
            command: EXPOSED[addresses],
            back: &|h| {
                ok(h, &[HIDDEN[addresses]]);
                forward_nothing(h);
            },
            keeps_going: false,
            atomic: true,
            guarded: false,
        };
        println!("{} addresses: {}", addresses + 1, trial.run());
        println!("{} addresses: {}", addresses + 1, Trial { of: Of::Process("expose"), ..trial }.run());
    });
}

fn hiding(name: &str, addresses: usize) {
    on_a_host(name, |h1| {
        relaunch(h1);
        // One that stays, and comes second in its subnet.
        ok(h1, &[EXPOSED[addresses], &["expose", "10.2.1.103/24"]]);
        let trial = Trial {
            host: h1,
            of: Of::Daemon("hide"),
            command: HIDDEN[addresses],
            back: &|h| {
                ok(h, &[&["hide", "10.2.1.103/24"], EXPOSED[addresses], &["expose", "10.2.1.103/24"]]);
            },
            keeps_going: false,
            atomic: true,
            guarded: false,
        };
        println!("{} addresses: {}", addresses + 1, trial.run());
        println!("{} addresses: {}", addresses + 1, Trial { of: Of::Process("hide"), ..trial }.run());
    });
}

#[test]
fn expose_one() {
    exposing("fexpose1", 0);
}

#[test]
fn expose_two() {
    exposing("fexpose2", 1);
}

#[test]
fn hide_one() {
    hiding("fhide1", 0);
}

#[test]
fn hide_two() {
    hiding("fhide2", 1);
}

fn launching<'a>(h1: &'a Host, of: &'static str, command: &'a [&'a str]) -> Trial<'a> {
    Trial {
        host: h1,
        of: Of::Process(of),
        command,
        back: &|h| ok(h, &[&["stop"], &["reset"]]),
        keeps_going: false,
        atomic: false,
        guarded: true,
    }
}

#[test]
fn launch() {
    on_a_host("flaunch", |h1| {
        println!("{}", launching(h1, "launch", &["launch", "--no-restart", "--password", "p"]).run());
        let daemon = launching(h1, "daemon", &["launch", "--no-restart"]);
        for mode in [EIO, EOPNOTSUPP] {
            println!("launch daemon: {}", daemon.run_mode(mode));
        }
    });
}

#[test]
fn launch_killed() {
    on_a_host("flaunchk", |h1| {
        println!("launch daemon: {}", launching(h1, "daemon", &["launch", "--no-restart"]).run_mode(KILL));
    });
}

#[test]
fn launch_supervised() {
    on_a_host("flaunchs", |h1| {
        for of in ["launch", "supervise"] {
            println!("supervised {}", launching(h1, of, &["launch"]).run());
        }
    });
}

#[test]
fn launch_supervised_daemon() {
    on_a_host("flaunchd", |h1| {
        println!("supervised {}", launching(h1, "daemon", &["launch"]).run_mode(KILL));
    });
}

fn resetting(name: &str, mode: &str) {
    on_a_host(name, |h1| {
        ok(h1, &[&["launch", "--no-restart"]]);
        let trial = Trial {
            host: h1,
            of: Of::Process("reset"),
            command: &["reset"],
            back: &|h| ok(h, &[&["launch", "--no-restart"]]),
            keeps_going: true,
            atomic: false,
            guarded: true,
        };
        println!("reset: {}", trial.run_mode(mode));
    });
}

#[test]
fn reset_fails() {
    resetting("freset", EIO);
}

#[test]
fn reset_unsupported() {
    resetting("fresetu", EOPNOTSUPP);
}

#[test]
fn reset_killed() {
    resetting("fresetk", KILL);
}
