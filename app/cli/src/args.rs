//! What clap does not do for the command lines of 2.8.1 and before: one dash or two before any option, `=true` and `=false`
//! after a flag, and old names with the warning `-iprange is deprecated; please use --ipalloc-range` (docs/spec/cli.md 3.2).
//!
//! Every option is rewritten to `--name=value`, then clap parses the line.

use std::collections::BTreeSet;

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Command};

use crate::launch_options;

/// The command line is wrong. All but the last are texts of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("flag provided but not defined: {0}")]
    Unknown(String),
    #[error("flag needs an argument: {0}")]
    NoValue(String),
    #[error(
        "invalid boolean value {value:?} for flag {flag}: strconv.ParseBool: parsing {value:?}: invalid syntax"
    )]
    NotBool { flag: String, value: String },
    #[error("invalid value {value:?} for flag {flag}: {reason}")]
    Invalid { flag: String, value: String, reason: String },
    #[error("{0}")]
    Usage(String),
}

/// A parsed command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Names without dashes and values, in the order of the command line. Kept as text, because `launch` passes them to the
    /// daemon's own command line.
    values: Vec<(String, String)>,
    /// Arguments that are not options.
    pub(crate) rest: Vec<String>,
    /// Lines for stderr about old spellings.
    pub(crate) warnings: Vec<String>,
    /// Options that are accepted without effect.
    obsolete: BTreeSet<String>,
    pub(crate) help: bool,
    /// `usage: weave attach ...`, for errors that are found later.
    pub(crate) usage: String,
}

impl Parsed {
    /// The last value given.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Name and value of the last option among `names` that is accepted.
    pub(crate) fn last_of(
        &self,
        names: &[&str],
        accept: impl Fn(&str, &str) -> bool,
    ) -> Option<(&str, &str)> {
        let mut values = self.values.iter().rev().map(|(name, value)| (name.as_str(), value.as_str()));
        values.find(|(name, value)| names.contains(name) && accept(name, value))
    }

    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        self.values.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// A number; clap has checked it.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// All options as `--name=value`.
    pub(crate) fn canonical(&self) -> Vec<String> {
        self.values.iter().map(|(n, v)| format!("{}={v}", dashed(n))).collect()
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.values.retain(|(n, _)| n != name);
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.values.push((name.to_owned(), value.into()));
    }

    /// One line for each missing feature that an option asks for, and one for obsolete options. Switching a missing feature
    /// off needs none.
    pub(crate) fn notices(&self) -> Vec<String> {
        let asked = |name: &&&str| self.text(name).is_some_and(|v| !matches!(v, "" | "false"));
        let features = launch_options::MISSING.iter().filter_map(|(feature, names)| {
            let names: Vec<_> = names.iter().filter(asked).map(|n| dashed(n)).collect();
            let line =
                format!("Notice: this version does not do {feature} yet; no effect: {}", names.join(" "));
            (!names.is_empty()).then_some(line)
        });
        let obsolete: Vec<&str> = self.obsolete.iter().map(String::as_str).collect();
        let line = format!("Notice: obsolete, no effect: {}", obsolete.join(" "));
        features.chain((!obsolete.is_empty()).then_some(line)).collect()
    }
}

/// `--name`, or `-n` for one letter.
pub(crate) fn dashed(name: &str) -> String {
    if name.len() == 1 { format!("-{name}") } else { format!("--{name}") }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

pub(crate) fn is_flag(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::SetTrue)
}

/// The option's name without dashes.
pub(crate) fn name(option: &Arg) -> &str {
    option.get_id().as_str()
}

/// Parses `args`, the arguments of `command`.
pub(crate) fn parse(command: Command, args: &[String]) -> Result<Parsed, ArgsError> {
    let usage = command.clone().render_usage().to_string().replacen("Usage", "usage", 1);
    let mut parsed = Parsed { usage, ..Parsed::default() };
    let args = rewrite(&command, args, &mut parsed)?;
    if parsed.help {
        return Ok(parsed);
    }
    // Rewritten flags have a value, and the last of several options counts.
    let mut command = command.no_binary_name(true).mut_args(|option| match option.get_action() {
        ArgAction::SetTrue => option.action(ArgAction::Append).num_args(1),
        _ => option,
    });
    let matches = command.try_get_matches_from_mut(args).map_err(|e| usage_error(&e, &parsed.usage))?;
    let mut values = Vec::new();
    for arg in command.get_arguments() {
        let given =
            matches.get_raw(name(arg)).into_iter().flatten().map(|v| v.to_string_lossy().into_owned());
        if arg.is_positional() {
            parsed.rest.extend(given);
        } else if let Some(indices) = matches.indices_of(name(arg)) {
            values.extend(indices.zip(given).map(|(index, value)| (index, name(arg).to_owned(), value)));
        }
    }
    values.sort_unstable();
    parsed.values.extend(values.into_iter().map(|(_, name, value)| (name, value)));
    Ok(parsed)
}

/// Rewrites every option to `--name=value`. Help, warnings and obsolete options go to `parsed`.
fn rewrite(command: &Command, args: &[String], parsed: &mut Parsed) -> Result<Vec<String>, ArgsError> {
    let launches = matches!(command.get_name(), "launch" | "daemon");
    let old_names = if launches { launch_options::OLD } else { &[] };
    let mut rewritten = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            rewritten.push(arg.clone());
            rewritten.extend(args.cloned());
            break;
        }
        let body = arg.trim_start_matches('-');
        let dashes = arg.len() - body.len();
        if !(1..=2).contains(&dashes) || body.is_empty() {
            rewritten.push(arg.clone());
            continue;
        }
        let (given, inline) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v)));
        let flag = format!("{}{given}", &arg[..dashes]);
        let current = command.get_arguments().find(|a| !a.is_positional() && name(a) == given);
        let (name, prefix, takes_value) = match (current, old_names.iter().find(|o| o.old == given)) {
            (Some(option), _) => (Some(given), "", !is_flag(option)),
            (None, Some(old)) => (old.name, old.prefix, old.takes_value),
            (None, None) if given == "help" || (given == "h" && dashes == 1) => {
                parsed.help = true;
                continue;
            }
            (None, None) => return Err(ArgsError::Unknown(flag)),
        };
        let mut value = match inline {
            Some(value) => value.to_owned(),
            None if takes_value => args.next().cloned().ok_or_else(|| ArgsError::NoValue(flag.clone()))?,
            None => "true".to_owned(),
        };
        if !takes_value {
            value = parse_bool(&value).ok_or(ArgsError::NotBool { flag: flag.clone(), value })?.to_string();
        }
        let Some(name) = name else {
            parsed.obsolete.insert(dashed(given));
            continue;
        };
        let mut new = dashed(name);
        if !prefix.is_empty() {
            value = match (takes_value, value.as_str()) {
                (true, value) => format!("{prefix}{value}"),
                (false, "true") => prefix.to_owned(),
                // The option's default counts.
                (false, _) => continue,
            };
            new = format!("{new} {value}");
        }
        if flag != new {
            parsed.warnings.push(format!("Warning: {flag} is deprecated; please use {new}"));
        }
        rewritten.push(format!("{}={value}", dashed(name)));
    }
    Ok(rewritten)
}

/// One line of clap's text, which has several.
fn usage_error(error: &clap::Error, usage: &str) -> ArgsError {
    let context = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    match (error.kind(), std::error::Error::source(error)) {
        (ErrorKind::ValueValidation, Some(source)) => ArgsError::Invalid {
            flag: context(ContextKind::InvalidArg).split([' ', '=']).next().unwrap_or_default().to_owned(),
            value: context(ContextKind::InvalidValue),
            reason: source.to_string(),
        },
        _ => {
            let text = error.to_string();
            let paragraph = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
            let words: Vec<&str> = paragraph.split_whitespace().collect();
            ArgsError::Usage(format!("{}; {usage}", words.join(" ")))
        }
    }
}
