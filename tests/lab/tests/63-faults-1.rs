//! Every operation of a command on its host is made to fail, one after the other; or the process is killed before it. After a
//! failure the host is as before, after a success as if nothing had happened, and in any case the next command works.
//!
//! Needs a program built with feature `faults`, as `make lab-test` does.

use weave_lab::{Host, Lab, Outcome, Topology};

use crate::common::*;

/// Private to the host; not part of its state.
const HIT: &str = "/var/log/fault";
/// More operations than any command has.
const MANY: usize = 1000;
/// The kernel's error for operations that fail.
const EIO: &str = "5";
/// "Not supported": what a kernel says that lacks something.
const EOPNOTSUPP: &str = "95";

/// Runs a command whose process `of` fails (`mode` is the error) or dies (`kill`) at its `n`th operation. Also the step where
/// that happened; none if there are not as many.
fn faulty(host: &Host, mode: &str, of: &str, n: usize, args: &[&str]) -> (Outcome, Option<String>) {
    let plan = format!("{mode}:{of}:{n}:{HIT}");
    let outcome = host.weave_env(&[("WEAVE_FAULT", &plan)], args);
    let step = host.command(&["sh", "-c", "cat $0 && rm $0", HIT]);
    (outcome, step.success().then_some(step.stdout))
}

/// Whether the program has the feature; says so if not.
fn possible(host: &Host) -> bool {
    let (_, step) = faulty(host, EIO, "reset", 0, &["reset"]);
    if step.is_none() {
        let required = std::env::var("WEAVE_LAB_REQUIRED").as_deref() == Ok("1");
        assert!(!required, "the program is built without feature `faults`");
        eprintln!("SKIPPED: the program is built without feature `faults`");
    }
    step.is_some()
}

/// What a step that is not needed may leave out: rules of the firewall, tuning.
fn optional(change: &str) -> bool {
    change.contains("-A ")
        || change.contains("/neigh/")
        || change.contains("filter")
        || change.contains("clsact")
}

/// A command, how to get back to the state before it, and the two states.
struct Trial<'a> {
    host: &'a Host,
    /// The process that fails.
    of: &'a str,
    command: &'a [&'a str],
    back: &'a [&'a [&'a str]],
    /// A failure leaves what was done until then: the command takes away, and takes away as much as it can.
    keeps_going: bool,
}

impl Trial<'_> {
    fn back(&self) {
        self.back.iter().for_each(|args| drop(self.host.weave_ok(args)));
    }

    /// Every third operation, from `first` on; all if `WEAVE_LAB_ALL_FAULTS` is set. Gives the number of operations tried.
    fn run(&self, mode: &str, first: usize) -> usize {
        let all = std::env::var_os("WEAVE_LAB_ALL_FAULTS").is_some();
        let (first, stride) = if all { (0, 1) } else { (first, 3) };
        let before = state(self.host);
        self.host.weave_ok(self.command);
        let after = state(self.host);
        self.back();
        let changes = differences(&before, &state(self.host));
        assert!(changes.is_empty(), "the way back: {changes:#?}");
        let mut tried = 0;
        for n in (first..MANY).step_by(stride) {
            let (outcome, step) = faulty(self.host, mode, self.of, n, self.command);
            let Some(step) = step else {
                assert!(outcome.success(), "{outcome}");
                self.back();
                break;
            };
            tried += 1;
            let at = format!("{mode} at operation {n} of {}: {step}{outcome}", self.of);
            assert!(!outcome.timed_out, "{at}");
            let now = state(self.host);
            if outcome.success() {
                let lacking = differences(&after, &now);
                assert!(lacking.iter().all(|change| optional(change)), "{lacking:#?}\n{at}");
                self.back();
            } else if mode != "kill" && !self.keeps_going {
                assert_eq!(outcome.stderr.lines().count(), 1, "one line has to tell\n{at}");
                let changes = differences(&before, &now);
                assert!(changes.is_empty(), "nothing may change: {changes:#?}\n{at}");
            }
            // Whatever is left over, the next one works and leaves what it always leaves.
            let next = self.host.weave(self.command);
            assert!(next.success(), "the next one has to work\n{at}\n{next}");
            let mut changes = differences(&after, &state(self.host));
            // A detach that is killed may leave this switched on. It says what happens to an interface's other addresses when one
            // is removed, which only detach does.
            changes.retain(|c| mode != "kill" || !c.contains("ethwe/promote_secondaries"));
            assert!(changes.is_empty(), "the next one has to do everything: {changes:#?}\n{at}");
            self.back();
            let mut changes = differences(&before, &state(self.host));
            changes.retain(|c| mode != "kill" || !c.contains("ethwe/promote_secondaries"));
            assert!(changes.is_empty(), "and is undone: {changes:#?}\n{at}");
        }
        assert!(tried > 0, "no operation was reached");
        tried
    }
}

#[test]
fn attach() {
    let Some(lab) = Lab::start("fattach", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let _c = h1.container("c");
    if !possible(h1) {
        return;
    }
    launch_mesh(&lab, &[]);
    let trial = Trial {
        host: h1,
        of: "attach",
        command: &["attach", "10.2.1.1/24", "10.2.2.1/24", "netns:c"],
        back: &[&["detach", "10.2.1.1/24", "10.2.2.1/24", "netns:c"]],
        keeps_going: false,
    };
    let tried = trial.run(EIO, 0) + trial.run("kill", 1) + trial.run(EOPNOTSUPP, 2);
    println!("attach: {tried} faults");
}

#[test]
fn detach() {
    let Some(lab) = Lab::start("fdetach", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let _c = h1.container("c");
    if !possible(h1) {
        return;
    }
    launch_mesh(&lab, &[]);
    h1.weave_ok(&["attach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"]);
    let some = Trial {
        host: h1,
        of: "detach",
        command: &["detach", "10.2.1.1/24", "10.2.2.1/24", "netns:c"],
        back: &[
            // In this order the addresses are again what they were.
            &["detach", "10.2.1.2/24", "netns:c"],
            &["attach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"],
        ],
        keeps_going: false,
    };
    let tried = some.run(EIO, 0) + some.run("kill", 1);
    let all = Trial {
        command: &["detach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"],
        back: &[&["attach", "10.2.1.1/24", "10.2.2.1/24", "10.2.1.2/24", "netns:c"]],
        ..some
    };
    let tried = tried + all.run(EIO, 2) + all.run("kill", 0);
    println!("detach: {tried} faults");
}

#[test]
fn launch() {
    let Some(lab) = Lab::start("flaunch", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    if !possible(h1) {
        return;
    }
    let daemon = Trial {
        host: h1,
        of: "daemon",
        command: &["launch", "--no-restart"],
        back: &[&["stop"], &["reset"]],
        keeps_going: false,
    };
    let tried = daemon.run(EIO, 0) + daemon.run("kill", 1) + daemon.run(EOPNOTSUPP, 2);
    let itself = Trial { of: "launch", ..daemon };
    let tried = tried + itself.run(EIO, 0) + itself.run("kill", 0);
    println!("launch: {tried} faults");
}

#[test]
fn reset() {
    let Some(lab) = Lab::start("freset", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    if !possible(h1) {
        return;
    }
    h1.weave_ok(&["launch", "--no-restart"]);
    let trial = Trial {
        host: h1,
        of: "reset",
        command: &["reset"],
        back: &[&["launch", "--no-restart"]],
        keeps_going: true,
    };
    let tried = trial.run(EIO, 1) + trial.run("kill", 0);
    println!("reset: {tried} faults");
}
