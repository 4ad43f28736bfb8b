//! `docs/guide/options.md`, made from the definitions that parse the command line. The test fails when they differ; with
//! `UPDATE_GUIDE=1` in its environment it writes the page.

use std::fmt::Write;

use clap::{Arg, Command};

use crate::args::{dashed, is_flag, name};
use crate::env_vars::{FILES, VARIABLES};
use crate::{commands, deprecated, launch_options};

const INTRODUCTION: &str = "\
# Options, variables, files

Options have one dash or two; their value follows after a blank or `=`; switches take nothing, `=true` or `=false`. They may stand before or
after other arguments, `--` ends them. Where an option and a variable say different things, the option wins. `weave help <command>` and
`man weave` say the same as this page, which is made from the program's own definitions.

";

fn page() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("## Options of `weave launch`\n\n`weave daemon` takes the same, but for the few of the process around it.\n");
    let launch: Vec<Arg> =
        launch_options::launch_options().into_iter().chain(launch_options::daemon_options()).collect();
    let mut headings: Vec<&str> = launch.iter().filter_map(Arg::get_help_heading).collect();
    headings.dedup();
    for heading in headings {
        let _ = write!(text, "\n**{heading}**\n\n| Option | |\n| --- | --- |\n");
        for option in launch.iter().filter(|o| o.get_help_heading() == Some(heading)) {
            let help = option.get_help().cloned().unwrap_or_default().to_string();
            let _ = writeln!(text, "| `{}` | {} |", head(option), cell(&help));
        }
    }
    text.push_str("\n## Options of other commands\n\n| Command | Options |\n| --- | --- |\n");
    for command in commands::all().iter().filter(|c| !["launch", "daemon"].contains(&c.get_name())) {
        let options: Vec<_> = options_of(command).map(|o| format!("`{}`", head(o))).collect();
        if !options.is_empty() {
            let _ = writeln!(text, "| `{}` | {} |", command.get_name(), options.join(", "));
        }
    }
    text.push_str("\n## Old names\n\nAccepted with a warning that names the new one. With one dash, every option is an old name.\n\n| Old | Now |\n| --- | --- |\n");
    for option in launch_options::OLD {
        if let Some(now) = option.name {
            let _ = writeln!(text, "| `{}` | `{} {}` |", dashed(option.old), dashed(now), option.prefix);
        }
    }
    for (name, meaning) in deprecated::OLD {
        let now = match meaning {
            deprecated::Meaning::Now(words) => format!("`weave {}`", words.join(" ")),
            deprecated::Meaning::Removed(_) => "nothing; `weave launch` and `weave stop` do it".to_owned(),
            deprecated::Meaning::Nothing(reason) => format!("nothing; {reason}"),
            deprecated::Meaning::LaunchPlugin => {
                "options of `weave launch`, which it names; the plugin is a part of the daemon".to_owned()
            }
            deprecated::Meaning::CreateBridge => {
                "`weave launch`; makes a plain bridge if `WEAVE_NO_FASTDP` is set".to_owned()
            }
        };
        let _ = writeln!(text, "| `weave {name}` | {now} |");
    }
    let obsolete = launch_options::OLD.iter().filter(|o| o.name.is_none());
    let obsolete: Vec<_> = obsolete.map(|o| format!("`{}`", dashed(o.old))).collect();
    let _ = write!(text, "\nAccepted, without effect: {}.\n", obsolete.join(", "));
    text.push_str("\n## Variables\n\n| Variable | Default | |\n| --- | --- | --- |\n");
    for v in VARIABLES {
        let default = if v.default.is_empty() { String::new() } else { format!("`{}`", v.default) };
        let _ = writeln!(text, "| `{}` | {default} | {} |", v.name, cell(v.effect));
    }
    text.push_str("\n## Files\n\n| Path | |\n| --- | --- |\n");
    for (path, what) in FILES {
        let _ = writeln!(text, "| `{path}` | {} |", cell(what));
    }
    text.replace(" ` |", "` |")
}

fn options_of(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_positional())
}

fn head(option: &Arg) -> String {
    let value = option.get_value_names().map_or("", |names| names[0].as_str());
    if is_flag(option) { dashed(name(option)) } else { format!("{} <{}>", dashed(name(option)), cell(value)) }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn the_guide_has_every_option() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/options.md");
    if std::env::var_os("UPDATE_GUIDE").is_some() {
        std::fs::write(path, page()).expect("written");
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let page = page();
    let differs = page.lines().zip(written.lines().chain(std::iter::repeat(""))).find(|(a, b)| a != b);
    assert!(
        written == page,
        "docs/guide/options.md is old; UPDATE_GUIDE=1 cargo test -p weave-cli guide writes it: {differs:?}"
    );
}
