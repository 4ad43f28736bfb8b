//! `docs/guide/options.md`, made from the tables that parse the command line. The test fails when they differ; with
//! `UPDATE_GUIDE=1` in its environment it writes the page.

use std::fmt::Write;

use crate::args::{Effect, Kind, dashed};
use crate::environment::{FILES, VARIABLES};
use crate::old;
use crate::options::LAUNCH_TABLE;
use crate::usage::COMMANDS;

const INTRODUCTION: &str = "\
# Options, variables, files

Options have one dash or two; their value follows after a blank or `=`; switches take nothing, `=true` or `=false`. They may stand before or
after other arguments, `--` ends them. Where an option and a variable say different things, the option wins. `weave help <command>` and
`man weave` say the same as this page, which is made from the program's own tables.

";

fn page() -> String {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("## Options of `weave launch`\n\n`weave daemon` takes the same, but for the few of the process around it.\n");
    let mut groups: Vec<&str> = Vec::new();
    let listed = || LAUNCH_TABLE.all().filter(|o| o.effect != Effect::Gone);
    for option in listed() {
        if !groups.contains(&option.group) {
            groups.push(option.group);
        }
    }
    for group in groups {
        let _ = write!(text, "\n**{group}**\n\n| Option | |\n| --- | --- |\n");
        for option in listed().filter(|o| o.group == group) {
            let _ = writeln!(
                text,
                "| `{}` | {}{} |",
                head(option.name, option.kind, option.value),
                cell(option.help),
                later(matches!(option.effect, Effect::Awaits(_)))
            );
        }
    }
    text.push_str("\n## Options of other commands\n\n| Command | Options |\n| --- | --- |\n");
    for command in COMMANDS.iter().filter(|c| !["launch", "daemon"].contains(&c.name)) {
        let options: Vec<_> =
            command.table().all().map(|o| format!("`{}`", head(o.name, o.kind, o.value))).collect();
        if !options.is_empty() {
            let _ = writeln!(text, "| `{}` | {} |", command.name, options.join(", "));
        }
    }
    text.push_str("\n## Old names\n\nAccepted with a warning that names the new one. With one dash, every option is an old name.\n\n| Old | Now |\n| --- | --- |\n");
    for option in LAUNCH_TABLE.old {
        let _ = writeln!(text, "| `--{}` | `{} {}` |", option.old, dashed(option.name), option.prefix);
    }
    for (name, meaning) in old::OLD {
        let now = match meaning {
            old::Meaning::Now(words) => format!("`weave {}`", words.join(" ")),
            old::Meaning::Nothing(why) => format!("nothing; {why}"),
            old::Meaning::Part { .. } => "a part of the daemon: `weave launch`, `weave stop`".to_owned(),
            old::Meaning::CreateBridge => {
                "`weave launch`; makes a plain bridge if `WEAVE_NO_FASTDP` is set".to_owned()
            }
        };
        let _ = writeln!(text, "| `weave {name}` | {now} |");
    }
    let gone: Vec<_> = LAUNCH_TABLE
        .all()
        .filter(|o| o.effect == Effect::Gone)
        .map(|o| format!("`{}`", dashed(o.name)))
        .collect();
    let _ = write!(text, "\nAccepted, without effect: {}.\n", gone.join(", "));
    text.push_str("\n## Variables\n\n| Variable | Default | |\n| --- | --- | --- |\n");
    for v in VARIABLES {
        let default = if v.default.is_empty() { String::new() } else { format!("`{}`", v.default) };
        let _ =
            writeln!(text, "| `{}` | {default} | {}{} |", v.name, cell(v.effect), later(v.waits.is_some()));
    }
    text.push_str("\n## Files\n\n| Path | |\n| --- | --- |\n");
    for (path, what) in FILES {
        let _ = writeln!(text, "| `{path}` | {} |", cell(what));
    }
    text.replace(" ` |", "` |")
}

fn head(name: &str, kind: Kind, value: &str) -> String {
    if kind == Kind::Flag { dashed(name) } else { format!("{} {}", dashed(name), cell(value)) }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn later(waits: bool) -> &'static str {
    if waits { " *(not in this version yet)*" } else { "" }
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
