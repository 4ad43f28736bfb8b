//! Each operation on the host is made to fail in turn, or the process is killed before it: in the daemon for `attach`, `detach`,
//! `expose` and `hide`, in the command for the parts that it does itself.
//!
//! * After a failure the host is as before, and one line of stderr says why.
//! * After a kill of the daemon its next start leaves the host as before or as after the command.
//! * After a kill of a command that changes the host itself, the same command works and completes it.
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

/// What a step that is not needed may leave out: rules of the firewall, tuning, fastdp.
fn optional(change: &str) -> bool {
    let words = ["-A ", "WEAVE", "/neigh/", "filter", "clsact", "promote_secondaries"];
    let fastdp = ["vxlan-", "weavetap", "weaverelay"];
    words.iter().chain(&fastdp).any(|word| change.contains(word))
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
    /// A kill leaves the host as before or as after the command, once the daemon runs again.
    atomic: bool,
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
        let before = state(self.host);
        self.host.weave_ok(self.command);
        let after = state(self.host);
        self.back(&before);
        let (mut tried, mut half) = (0, 0);
        for n in (first..MANY).step_by(stride) {
            let (outcome, step) = faulty(self.host, mode, self.of, n, self.command);
            let Some(step) = step else {
                // Also the next command after all those that failed and left the host as it was: what failed in one trial
                // succeeds in the next, up to the next operation.
                assert!(outcome.success(), "{outcome}");
                assert_same(&after, &state(self.host), "what works has to do everything", "");
                self.back(&before);
                break;
            };
            tried += 1;
            let at = format!("{mode} at operation {n} of {}: {step}{outcome}", self.of.name());
            assert!(!outcome.timed_out, "{at}");
            let now = state(self.host);
            if mode != KILL && outcome.success() {
                let mut lacking = differences(&after, &now);
                if lacking.iter().any(|change| change.contains("/var/lib/weave/")) {
                    // The daemon has gone on without it, and sees to it a moment later.
                    lacking = self.host.wait("what is missing", SHORT_TIMEOUT, || {
                        let lacking = differences(&after, &state(self.host));
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
                let now = state(self.host);
                let (undone, lacking) = (differences(&before, &now), differences(&after, &now));
                assert!(undone.is_empty() || lacking.is_empty(), "{undone:#?}\n{lacking:#?}\n{at}");
            }
            // Whatever is left over, the next one works and leaves what it always leaves.
            let next = self.host.weave(self.command);
            // The command may be complete: a killed launch has started the daemon, or a detach was completed.
            let complete =
                ["weave is already running", "Link not found"].iter().any(|t| next.stderr.contains(t));
            assert!(next.success() || complete, "the next one has to work\n{at}\n{next}");
            let changes = differences(&after, &state(self.host));
            assert!(changes.is_empty(), "the next one has to do everything: {changes:#?}\n{at}");
            (self.back)(self.host);
            let changes = differences(&before, &state(self.host));
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
        assert_same(before, &state(self.host), "the way back", "");
    }
}

/// Everything that a failed command must leave alone: the host, its container, and the addresses that the daemon has allocated.
fn state(host: &Host) -> String {
    let request = "exec 2>/dev/null 3<>/dev/tcp/127.0.0.1/6784; printf 'GET /ip HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3";
    let allocated = host.command(&["bash", "-c", request]).stdout;
    format!("{}\nallocated {}", host_state(host), allocated.trim())
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

/// The addresses of the tests with particular addresses.
const TWO: [&str; 2] = ["10.2.1.1/24", "10.2.2.1/24"];

fn attach_trial<'a>(host: &'a Host, of: Of, command: &'a [&'a str]) -> Trial<'a> {
    let back = &|h: &Host| ok(h, &[&["detach", TWO[0], TWO[1], "netns:c"]]);
    Trial { host, of, command, back, keeps_going: false, atomic: true }
}

#[test]
fn attach_in_the_daemon() {
    on_a_host("fattach", |h1| {
        relaunch(h1);
        let command = ["attach", TWO[0], TWO[1], "netns:c"];
        println!("{}", attach_trial(h1, Of::Daemon("attach"), &command).run());
        println!("{}", attach_trial(h1, Of::Process("attach"), &command).run());
    });
}

#[test]
fn attach_with_an_allocated_address() {
    on_a_host("fattachn", |h1| {
        relaunch(h1);
        for of in ["attach", "ip"] {
            let allocated = Trial {
                back: &|h| ok(h, &[&["detach", "netns:c"]]),
                ..attach_trial(h1, Of::Daemon(of), &["attach", "net:default", "netns:c"])
            };
            println!("{}", allocated.run());
        }
    });
}

#[test]
fn attach_without_a_daemon() {
    on_a_host("fattachw", |h1| {
        relaunch(h1);
        h1.weave_ok(&["stop"]);
        let command = ["attach", TWO[0], TWO[1], "netns:c"];
        let trial = Trial { atomic: false, ..attach_trial(h1, Of::Process("attach"), &command) };
        println!("{}", trial.run());
    });
}

const THREE: [&str; 3] = ["10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24"];

/// `detach` of two of three addresses; or of all, with the interface.
fn detach_trials(host: &Host, of: Of, atomic: bool) {
    let attach_all = |h: &Host| ok(h, &[&["attach", THREE[0], THREE[1], THREE[2], "netns:c"]]);
    attach_all(host);
    let some = Trial {
        host,
        of,
        command: &["detach", THREE[0], THREE[1], "netns:c"],
        back: &|h| {
            // In this order the addresses are again what they were.
            ok(h, &[&["detach", THREE[2], "netns:c"]]);
            attach_all(h);
        },
        keeps_going: false,
        atomic,
    };
    println!("some addresses: {}", some.run());
    let all =
        Trial { command: &["detach", THREE[0], THREE[1], THREE[2], "netns:c"], back: &attach_all, ..some };
    println!("all addresses: {}", all.run());
}

#[test]
fn detach_in_the_daemon() {
    on_a_host("fdetach", |h1| {
        relaunch(h1);
        detach_trials(h1, Of::Daemon("detach"), true);
    });
}

#[test]
fn detach_without_a_daemon() {
    on_a_host("fdetachw", |h1| {
        relaunch(h1);
        h1.weave_ok(&["stop"]);
        detach_trials(h1, Of::Process("detach"), false);
    });
}

/// A container that is gone when the daemon starts again leaves nothing on the host, and no address.
#[test]
fn container_that_ends_with_the_daemon() {
    on_a_host("fgone", |h1| {
        relaunch(h1);
        let before = state(h1);
        let gone: Vec<&str> = before.lines().filter(|line| !line.starts_with("c: ")).collect();
        for n in (0..MANY).step_by(3) {
            h1.sh("ip netns add c2");
            let (outcome, step) =
                faulty(h1, KILL, Of::Daemon("attach"), n, &["attach", "net:default", "netns:c2"]);
            h1.sh("ip netns del c2");
            let Some(step) = step else { break };
            relaunch(h1);
            h1.wait("the host as before", SHORT_TIMEOUT, || {
                let now = state(h1);
                let now: Vec<&str> = now.lines().filter(|line| !line.starts_with("c: ")).collect();
                let changes = differences(&gone.join("\n"), &now.join("\n"));
                if changes.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{changes:#?}\nkilled at {n}: {step}\n{outcome}"))
                }
            });
        }
    });
}

/// The daemon completes a request whose caller is killed, or does not begin it.
#[test]
fn caller_that_is_killed() {
    on_a_host("fcaller", |h1| {
        relaunch(h1);
        let (weave, mut attached) = (weave_lab::weave_binary(), 0);
        let before = state(h1);
        let addresses = TWO.join(" ");
        h1.sh(&format!("{weave} attach {addresses} netns:c"));
        let after = state(h1);
        h1.sh(&format!("{weave} detach {addresses} netns:c"));
        for delay in 0..40 {
            h1.sh(&format!(
                "{weave} attach {addresses} netns:c & sleep 0.{delay:03}; kill -9 $! || true; wait $! || true"
            ));
            let complete = h1.wait("the host as before or after", SHORT_TIMEOUT, || {
                let now = state(h1);
                let (undone, lacking) = (differences(&before, &now), differences(&after, &now));
                match (undone.is_empty(), lacking.is_empty()) {
                    (true, _) => Ok(false),
                    (_, true) => Ok(true),
                    _ => Err(format!("{undone:#?}\n{lacking:#?}")),
                }
            });
            if complete {
                attached += 1;
                h1.sh(&format!("{weave} detach {addresses} netns:c"));
            }
        }
        println!("40 callers killed, {attached} of their containers attached");
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

#[test]
fn stop() {
    on_a_host("fstop", |h1| {
        ok(h1, &[&["launch", "--no-restart"]]);
        let trial = Trial {
            host: h1,
            of: Of::Process("stop"),
            command: &["stop"],
            back: &|h| ok(h, &[&["launch", "--no-restart"]]),
            keeps_going: true,
            atomic: false,
        };
        println!("{}", trial.run());
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
