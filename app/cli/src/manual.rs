//! `weave man`: the manual page, made from the tables that parse the command line.

use std::fmt::Write;

use crate::args::{Effect, Kind, Parsed, dashed};
use crate::environment::{FILES, VARIABLES};
use crate::usage::{COMMANDS, Command};
use crate::{Failure, old, print};

pub(crate) fn run(_: &Parsed) -> Result<(), Failure> {
    print(&page())
}

/// Text for roff: no escapes, no requests, hyphens that can be copied.
fn plain(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    text.lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect::<Vec<_>>()
        .join("\n")
}

pub(crate) fn page() -> String {
    let version = weave_daemon::VERSION;
    let mut text = format!(
        ".\\\" Made by 'weave man'.\n.TH WEAVE 8 \"\" \"weave {}\" \"Weave Net\"\n\
         .SH NAME\nweave \\- one network for containers on many hosts\n\
         .SH SYNOPSIS\n.B weave\n.I command\n.RI [ argument \" ...]\"\n\
         .SH DESCRIPTION\n",
        plain(version)
    );
    text.push_str(&plain(
        "Each host runs one peer, which 'weave launch' starts. Peers find each other through any one that is named, and carry\n\
         Ethernet frames between the containers that 'weave attach' plugs in. Results go to standard output, everything else\n\
         to standard error.",
    ));
    text.push_str("\n.PP\n");
    text.push_str(&plain(
        "Options have one dash or two, and their value after a blank or '='; they may stand before or after other arguments.",
    ));
    text.push_str("\n.SH COMMANDS\n");
    for command in COMMANDS {
        section(&mut text, command);
    }
    text.push_str(".SH OLD COMMANDS\nAccepted, with a warning where they mean something else now:\n");
    let names: Vec<_> = old::OLD.iter().map(|(name, _)| plain(name)).collect();
    let _ = writeln!(text, "{}.", names.join(", "));
    text.push_str(".SH ENVIRONMENT\n");
    for v in VARIABLES {
        let default = if v.default.is_empty() { String::new() } else { format!(" (default: {})", v.default) };
        let later = v.waits.map_or("", |_| " [not in this version yet]");
        let _ =
            writeln!(text, ".TP\n.B {}\n{}", plain(v.name), plain(&format!("{}{default}{later}", v.effect)));
    }
    text.push_str(".SH FILES\n");
    for (path, what) in FILES {
        let _ = writeln!(text, ".TP\n.I {}\n{}", plain(path), plain(what));
    }
    text.push_str(".SH EXIT STATUS\n");
    for (code, what) in [
        ("0", "done"),
        ("1", "failed, for the reason on standard error"),
        ("3", "launch: weave runs already"),
        ("4", "the service that was asked is off"),
        ("7", "the daemon runs and does not answer"),
        ("125", "daemon: the command line cannot be understood"),
    ] {
        let _ = writeln!(text, ".TP\n.B {code}\n{}", plain(what));
    }
    text.push_str(".SH SEE ALSO\n.BR docker (1),\n.BR ip\\-netns (8)\n");
    text
}

fn section(text: &mut String, command: &Command) {
    let _ = writeln!(text, ".SS weave {} {}", plain(command.name), plain(command.arguments));
    let mut summary = command.summary.chars();
    let first = summary.next().map(|c| c.to_ascii_uppercase());
    let summary: String = first.into_iter().chain(summary).collect();
    let _ = writeln!(text, "{}.", plain(&summary));
    if !command.detail.is_empty() {
        let _ = writeln!(text, ".PP\n.nf\n{}\n.fi", plain(command.detail.trim_end()));
    }
    for option in command.table().all().filter(|o| o.effect != Effect::Gone) {
        let value = if option.kind == Kind::Flag { "" } else { option.value };
        let later =
            if matches!(option.effect, Effect::Awaits(_)) { " [not in this version yet]" } else { "" };
        let head = format!("\\fB{}\\fP {}", plain(&dashed(option.name)), plain(value));
        let _ = writeln!(text, ".TP\n{}\n{}{later}", head.trim_end(), plain(option.help));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::piped;

    #[test]
    fn everything_is_in_the_manual() {
        let page = page();
        for command in COMMANDS {
            let head = format!("\n.SS weave {} ", plain(command.name));
            let section = page.split_once(&head).unwrap_or_else(|| panic!("{}", command.name)).1;
            let section = section.split("\n.S").next().expect("something");
            for option in command.table().all().filter(|o| o.effect != Effect::Gone) {
                let head = format!("\n\\fB{}\\fP", plain(&dashed(option.name)));
                assert!(section.contains(&head), "{} {}", command.name, option.name);
            }
        }
        for name in VARIABLES.iter().map(|v| v.name).chain(old::OLD.iter().map(|(name, _)| *name)) {
            assert!(page.contains(&plain(name)), "{name}");
        }
        for line in page.lines().filter(|l| l.starts_with('.')) {
            let request = line.split([' ', '\\']).next().expect("a word");
            assert!(
                [".", ".TH", ".SH", ".SS", ".TP", ".B", ".I", ".RI", ".BR", ".PP", ".nf", ".fi"]
                    .contains(&request),
                "{line}"
            );
        }
    }

    /// What formatters say of it, where one is installed.
    #[test]
    fn formatters_do_not_complain() {
        let run = |program: &str, args: &[&str]| {
            let Some(output) = piped(program, args, &page()) else { return };
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && words.is_empty(), "{program}: {words}");
            assert!(output.stdout.len() > 10_000, "{program}: only {} bytes", output.stdout.len());
        };
        run("groff", &["-man", "-Tutf8", "-ww"]);
        run("mandoc", &["-Tutf8", "-Werror"]);
    }
}
