//! `weave man` and `weave completions`, made from the commands that parse the command line.

use std::path::Path;

use clap::Command;
use clap_complete::shells::{Bash, Fish, Zsh};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

use crate::args::Parsed;
use crate::env_vars::{FILES, VARIABLES};
use crate::service::files::failed;
use crate::{Failure, commands, deprecated, print};

const EXIT_STATUS: [(&str, &str); 6] = [
    ("0", "success"),
    ("1", "failure, for the reason on standard error"),
    ("3", "launch: weave is already running"),
    ("4", "the service that was asked is off"),
    ("7", "the daemon runs and does not answer"),
    ("125", "daemon: the command line cannot be understood"),
];

pub(crate) fn completions(parsed: &Parsed) -> Result<(), Failure> {
    print(&script(parsed.rest.first().map_or("", String::as_str)))
}

fn script(shell: &str) -> String {
    let mut text = Vec::new();
    let mut program = commands::program();
    match shell {
        "bash" => clap_complete::generate(Bash, &mut program, "weave", &mut text),
        "zsh" => clap_complete::generate(Zsh, &mut program, "weave", &mut text),
        _ => clap_complete::generate(Fish, &mut program, "weave", &mut text),
    }
    String::from_utf8_lossy(&text).into_owned()
}

pub(crate) fn man(parsed: &Parsed) -> Result<(), Failure> {
    let pages = pages()?;
    if let Some(directory) = parsed.text("directory") {
        for (name, page) in pages {
            let path = Path::new(directory).join(format!("{name}.8"));
            std::fs::write(&path, page).map_err(|e| failed("write", &path, &e))?;
        }
        return Ok(());
    }
    let command = parsed.rest.first();
    let name = command.map_or_else(|| "weave".to_owned(), |command| format!("weave-{command}"));
    match pages.into_iter().find(|(page_name, _)| *page_name == name) {
        Some((_, page)) => print(&page),
        None => Err(commands::unknown(command.map_or("", String::as_str))),
    }
}

/// All pages with their names, the program's first.
fn pages() -> Result<Vec<(String, String)>, Failure> {
    let mut program = commands::program();
    program.build();
    let mut pages = vec![("weave".to_owned(), main_page(&program)?)];
    for command in program.get_subcommands() {
        pages.push((format!("weave-{}", command.get_name()), page(command)?));
    }
    Ok(pages)
}

/// Title to options. What help shows after the options is the description here.
fn page(command: &Command) -> Result<String, Failure> {
    let mut description = command.get_about().cloned().unwrap_or_default().to_string();
    description.push_str(".\n\n");
    description.push_str(&command.get_after_help().cloned().unwrap_or_default().to_string());
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_uppercase();
    let page = Man::new(command.clone().long_about(description)).title(name).section("8");
    let page = page.source(format!("weave {}", weave_daemon::VERSION)).manual("Weave Net");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    } else {
        page.render_options_section(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The page of the program, with what all commands share.
fn main_page(program: &Command) -> Result<String, Failure> {
    let mut roff = Roff::new();
    roff.control("SH", ["OPTIONS"]).text([roman(
        "Options have one dash or two, and their value after a blank or '='; they may stand before or after other arguments. \
         'weave help command' lists those of a command.",
    )]);
    roff.control("SH", ["OLD COMMANDS"]);
    roff.text([roman("Accepted, with a warning where their meaning has changed:")]);
    let old: Vec<&str> = deprecated::OLD.iter().map(|(name, _)| *name).collect();
    roff.text([roman(format!("{}.", old.join(", ")))]);
    roff.control("SH", ["ENVIRONMENT"]);
    for v in VARIABLES {
        let default = if v.default.is_empty() { String::new() } else { format!(" (default: {})", v.default) };
        roff.control("TP", []).text([bold(v.name)]).text([roman(format!("{}{default}", v.effect))]);
    }
    roff.control("SH", ["FILES"]);
    for (path, content) in FILES {
        roff.control("TP", []).text([italic(*path)]).text([roman(*content)]);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_STATUS {
        roff.control("TP", []).text([bold(code)]).text([roman(meaning)]);
    }
    roff.control("SH", ["SEE ALSO"]).text([bold("docker"), roman("(1), "), bold("ip-netns"), roman("(8)")]);
    Ok(page(program)? + &roff.to_roff())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::piped;

    #[test]
    fn manual_has_variables_files_and_old_commands() {
        let (_, page) = pages().expect("pages").remove(0);
        let words = VARIABLES.iter().map(|v| v.name).chain(FILES.iter().map(|(path, _)| *path));
        for word in words.chain(deprecated::OLD.iter().map(|(name, _)| *name)) {
            assert!(page.contains(&word.replace('-', "\\-")), "{word}\n{page}");
        }
    }

    #[test]
    fn formatters_accept_the_manual() {
        for (name, page) in pages().expect("pages") {
            for (program, args) in
                [("groff", &["-man", "-Tutf8", "-ww"][..]), ("mandoc", &["-Tutf8", "-Werror"])]
            {
                let Some(output) = piped(program, args, &page) else { continue };
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && errors.is_empty(), "{program} {name}: {errors}");
            }
        }
    }

    /// Runs a shell with this script; `None` where it is not installed.
    fn shell(program: &str, args: &[&str], script: &str) -> Option<String> {
        let output = piped(program, args, script)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
        Some(String::from_utf8(output.stdout).expect("text"))
    }

    #[test]
    fn bash_completes_commands_options_and_words() {
        let complete = |words: &str| {
            let current = words.rsplit(' ').next().unwrap_or_default();
            let position = words.split(' ').count() - 1;
            let script = format!(
                "{}\nCOMP_WORDS=({words})\nCOMP_CWORD={position}\n_weave weave '{current}' ''\n\
                 printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
                script("bash")
            );
            shell("bash", &["--norc", "--noprofile"], &script)
        };
        for (words, completion) in [
            ("weave stat", "status\n"),
            ("weave launch --no-f", "--no-fastdp\n"),
            ("weave status conn", "connections\n"),
            ("weave completions zs", "zsh\n"),
            ("weave connect --rep", "--replace\n"),
        ] {
            let Some(completed) = complete(words) else { return };
            assert_eq!(completed, completion, "{words}");
        }
    }

    #[test]
    fn zsh_and_fish_parse_their_completions() {
        shell("zsh", &["-n"], &script("zsh"));
        shell("fish", &["--no-execute"], &script("fish"));
    }
}
