//! `weave completions <shell>`: what makes bash, zsh and fish complete commands and options, made from the tables that
//! parse them.

use std::fmt::Write;

use crate::args::{Effect, Kind, Opt, Parsed, dashed};
use crate::usage::{COMMANDS, Command};
use crate::{Failure, print, weaveutil};

/// Shells that have it.
pub(crate) const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];
const PAGES: [&str; 5] = ["targets", "connections", "peers", "dns", "ipam"];

pub(crate) fn run(command: &Command, parsed: &Parsed) -> Result<(), Failure> {
    match parsed.rest.as_slice() {
        [shell] if shell == "bash" => print(&bash()),
        [shell] if shell == "zsh" => print(&zsh()),
        [shell] if shell == "fish" => print(&fish()),
        _ => Err(Failure::new(1, command.synopsis())),
    }
}

/// What stands behind a command besides options.
enum Operands {
    Words(Vec<&'static str>),
    Containers,
    Targets,
    Hosts,
    Nothing,
}

fn operands(command: &Command) -> Operands {
    match command.name {
        "status" => Operands::Words(PAGES.to_vec()),
        "help" => Operands::Words(COMMANDS.iter().map(|c| c.name).collect()),
        "completions" => Operands::Words(SHELLS.to_vec()),
        "weaveutil" => Operands::Words(weaveutil::SUBS.iter().map(|s| s.name).collect()),
        "attach" | "detach" | "ps" | "dns-add" | "dns-remove" => Operands::Containers,
        "forget" => Operands::Targets,
        "connect" | "launch" | "daemon" => Operands::Hosts,
        _ => Operands::Nothing,
    }
}

/// Shell command that lists containers, one a line; silent where there is no Docker.
const CONTAINERS: &str =
    "docker ps --format '{{.Names}}' 2>/dev/null; ls /run/netns 2>/dev/null | sed 's/^/netns:/'";
const TARGETS: &str = "weave status targets 2>/dev/null";

fn options(command: &Command) -> impl Iterator<Item = &'static Opt> {
    command.table().all().filter(|o| o.effect != Effect::Gone)
}

fn bash() -> String {
    let mut text = String::from(
        "# Completion of weave(8) for bash; made by 'weave completions bash'.\n\
         _weave() {\n\
         \x20   local cur=${COMP_WORDS[COMP_CWORD]} command='' words='' i\n\
         \x20   for ((i = 1; i < COMP_CWORD; i++)); do\n\
         \x20       case ${COMP_WORDS[i]} in -*) ;; *) command=${COMP_WORDS[i]}; break ;; esac\n\
         \x20   done\n\
         \x20   case $command in\n",
    );
    let names: Vec<_> = COMMANDS.iter().map(|c| c.name).collect();
    let _ = writeln!(text, "    '') words='{}' ;;", names.join(" "));
    for command in COMMANDS {
        let mut words: Vec<String> = options(command).map(|o| dashed(o.name)).collect();
        words.push("--help".to_owned());
        let dynamic = match operands(command) {
            Operands::Words(more) => {
                words.extend(more.into_iter().map(str::to_owned));
                None
            }
            Operands::Containers => Some(CONTAINERS),
            Operands::Targets => Some(TARGETS),
            Operands::Hosts => {
                let _ = writeln!(
                    text,
                    "    {}) [[ $cur == -* ]] || COMPREPLY=($(compgen -A hostname -- \"$cur\"))",
                    command.name
                );
                let _ = writeln!(text, "        words='{}' ;;", words.join(" "));
                continue;
            }
            Operands::Nothing => None,
        };
        let dynamic =
            dynamic.map(|d| format!("; [[ $cur == -* ]] || words+=\" $({d})\"")).unwrap_or_default();
        let _ = writeln!(text, "    {}) words='{}'{dynamic} ;;", command.name, words.join(" "));
    }
    text.push_str(
        "\x20   esac\n\
         \x20   COMPREPLY+=($(compgen -W \"$words\" -- \"$cur\"))\n\
         }\n\
         complete -o default -F _weave weave\n",
    );
    text
}

/// Between single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn zsh() -> String {
    let escape =
        |text: &str| text.replace('\\', "\\\\").replace(':', "\\:").replace('[', "\\[").replace(']', "\\]");
    let mut text = String::from(
        "#compdef weave\n# Completion of weave(8) for zsh; made by 'weave completions zsh'.\n\
         _weave_containers() { compadd -- ${(f)\"$(",
    );
    let _ = writeln!(text, "{CONTAINERS})\"}} }}");
    let _ = writeln!(text, "_weave_targets() {{ compadd -- ${{(f)\"$({TARGETS})\"}} }}");
    text.push_str("_weave() {\n    local -a commands=(\n");
    for command in COMMANDS {
        let line = format!("{}:{}", command.name, command.summary.replace(':', "\\:"));
        let _ = writeln!(text, "        {}", quoted(&line));
    }
    text.push_str(
        "    )\n    if (( CURRENT == 2 )); then\n        _describe -t commands 'weave command' commands\n        return\n    fi\n\
         \x20   local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in\n",
    );
    for command in COMMANDS {
        let _ = writeln!(text, "    {}) _arguments -S \\", command.name);
        for option in options(command) {
            let repeat = if option.kind == Kind::List { "*" } else { "" };
            let (name, help) = (dashed(option.name), escape(option.help));
            let spec = match option.kind {
                Kind::Flag => format!("{name}[{help}]"),
                _ => {
                    let joint = if option.name.len() == 1 { "" } else { "=" };
                    format!("{repeat}{name}{joint}[{help}]:{}:", escape(option.value))
                }
            };
            let _ = writeln!(text, "        {} \\", quoted(&spec));
        }
        let rest = match operands(command) {
            Operands::Words(words) => format!("*:argument:({})", words.join(" ")),
            Operands::Containers => "*:container:_weave_containers".to_owned(),
            Operands::Targets => "*:peer:_weave_targets".to_owned(),
            Operands::Hosts => "*:peer:_hosts".to_owned(),
            Operands::Nothing => "*:argument:".to_owned(),
        };
        let _ = writeln!(text, "        '--help[explain the command]' {} ;;", quoted(&rest));
    }
    text.push_str("    esac\n}\n[[ $funcstack[1] == _weave ]] && _weave \"$@\" || compdef _weave weave\n");
    text
}

fn fish() -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let mut text = String::from(
        "# Completion of weave(8) for fish; made by 'weave completions fish'.\ncomplete -c weave -f\n",
    );
    for command in COMMANDS {
        let (name, summary) = (command.name, quoted(command.summary));
        let _ = writeln!(text, "complete -c weave -n __fish_use_subcommand -a {name} -d {summary}");
        let seen = format!("complete -c weave -n '__fish_seen_subcommand_from {name}'");
        for option in options(command) {
            let form = if option.name.len() == 1 { "-s" } else { "-l" };
            let value = if option.kind == Kind::Flag { "" } else { " -x" };
            let _ = writeln!(text, "{seen} {form} {}{value} -d {}", option.name, quoted(option.help));
        }
        let words = match operands(command) {
            Operands::Words(words) => words.join(" "),
            Operands::Containers => format!("({CONTAINERS})"),
            Operands::Targets => format!("({TARGETS})"),
            Operands::Hosts => "(__fish_print_hostnames)".to_owned(),
            Operands::Nothing => continue,
        };
        let _ = writeln!(text, "{seen} -a {}", quoted(&words));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::piped;

    /// Runs a shell with this script; `None` where it is not installed.
    fn shell(program: &str, args: &[&str], script: &str) -> Option<String> {
        let output = piped(program, args, script)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
        Some(String::from_utf8(output.stdout).expect("text"))
    }

    /// Every command, and every option at its command, in each of the three.
    #[test]
    fn everything_is_completed() {
        let (bash, zsh, fish) = (bash(), zsh(), fish());
        for command in COMMANDS {
            let name = command.name;
            assert!(
                fish.contains(&format!("-a {name} ")) && zsh.contains(&format!("        '{name}:")),
                "{name}"
            );
            let of_bash = bash.split_once(&format!("\n    {name}) ")).expect(name).1;
            let of_bash = of_bash.split_once(";;").expect(name).0;
            let of_zsh = zsh.split_once(&format!("\n    {name}) ")).expect(name).1;
            let of_zsh = of_zsh.split_once(";;").expect(name).0;
            for option in options(command) {
                let (dashed, bare) = (dashed(option.name), option.name);
                assert!(of_bash.split([' ', '\'']).any(|w| w == dashed), "bash: {name} {dashed}");
                assert!(
                    of_zsh.contains(&format!("{dashed}[")) || of_zsh.contains(&format!("{dashed}=[")),
                    "zsh: {name} {dashed}"
                );
                let letter = if bare.len() == 1 { "-s" } else { "-l" };
                let line = format!("__fish_seen_subcommand_from {name}' {letter} {bare} ");
                assert!(fish.contains(&line), "fish: {name} {dashed}");
            }
        }
    }

    #[test]
    fn bash_completes() {
        let complete = |words: &str, at: usize| {
            let script = format!(
                "{}\nCOMP_WORDS=({words})\nCOMP_CWORD={at}\n_weave\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
                bash()
            );
            shell("bash", &["--norc", "--noprofile"], &script)
        };
        let Some(commands) = complete("weave sta", 1) else { return };
        assert_eq!(commands, "status\n");
        let lines = |words, at| complete(words, at).expect("bash is there");
        assert_eq!(lines("weave launch --no-f", 2), "--no-fastdp\n");
        assert_eq!(lines("weave --local status conn", 3), "connections\n");
        assert_eq!(lines("weave completions zs", 2), "zsh\n");
        assert_eq!(lines("weave connect --rep", 2), "--replace\n");
    }

    #[test]
    fn the_other_shells_understand_theirs() {
        shell("zsh", &["-n"], &zsh());
        shell("fish", &["--no-execute"], &fish());
    }
}
