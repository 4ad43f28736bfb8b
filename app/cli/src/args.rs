//! Options as 2.8.1 and its forerunners spell them, from tables.
//!
//! One dash or two, `--name value` or `--name=value`, before or after the other arguments, `--` ends them. Old names
//! work and say their new one: `Warning: -iprange is deprecated; please use --ipalloc-range` (docs/spec/cli.md 3.2). The tables
//! also make the help texts, so that they cannot disagree.

use std::fmt;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing, or `=true` / `=false`.
    Flag,
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// Any text, any number of times.
    List,
}

/// Whether an option does something in this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It does what it says.
    Works,
    /// It belongs to a feature that is not there yet; named so in the notice. Switching the feature off needs none.
    Awaits(&'static str),
    /// It has no meaning any more.
    Gone,
}

/// One option.
#[derive(Debug)]
pub(crate) struct Opt {
    /// Name without dashes. One letter: with one dash.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Placeholder of the value in help texts.
    pub(crate) value: &'static str,
    pub(crate) help: &'static str,
    pub(crate) group: &'static str,
    pub(crate) effect: Effect,
}

/// An old spelling: what it was, and what it means.
#[derive(Debug)]
pub(crate) struct Old {
    /// Old name without dashes.
    pub(crate) old: &'static str,
    /// Today's option.
    pub(crate) name: &'static str,
    /// Put before the value; a flag becomes exactly this.
    pub(crate) prefix: &'static str,
    /// What the old one took.
    pub(crate) kind: Kind,
}

/// Options of one command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) options: &'static [&'static [Opt]],
    pub(crate) old: &'static [Old],
}

impl Table {
    fn find(&self, name: &str) -> Option<&'static Opt> {
        self.all().find(|o| o.name == name)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &'static Opt> + use<> {
        self.options.iter().copied().flatten()
    }
}

/// The command line cannot be understood. Texts of 2.8.1.
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
    #[error("invalid value {value:?} for flag {flag}: strconv.ParseInt: parsing {value:?}: {why}")]
    NotNumber { flag: String, value: String, why: &'static str },
}

/// What was on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    values: Vec<(&'static str, String)>,
    /// Arguments that are not options.
    pub(crate) rest: Vec<String>,
    /// Lines for stderr about old spellings.
    pub(crate) warnings: Vec<String>,
    /// Whether `--help` or `-h` (where that is nothing else) was given.
    pub(crate) help: bool,
}

impl Parsed {
    /// The last value given.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// All values given, in order.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        self.values.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.as_str()).collect()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// A number; checked when parsed.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// All options as canonical arguments, `--name=value`, in order.
    pub(crate) fn canonical(&self) -> Vec<String> {
        self.values.iter().map(|(n, v)| format!("{}={v}", dashed(n))).collect()
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.values.retain(|(n, _)| *n != name);
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.values.push((name, value.into()));
    }

    /// One line per missing feature that an option asks for.
    pub(crate) fn notices(&self, table: Table) -> Vec<String> {
        let mut by_feature: Vec<(&str, Vec<String>)> = Vec::new();
        let mut gone = Vec::new();
        for opt in table.all() {
            let Some(value) = self.text(opt.name) else { continue };
            let asks = if opt.kind == Kind::Flag { value == "true" } else { !value.is_empty() };
            match opt.effect {
                Effect::Awaits(feature) if asks => match by_feature.iter_mut().find(|(f, _)| *f == feature) {
                    Some((_, names)) => names.push(dashed(opt.name)),
                    None => by_feature.push((feature, vec![dashed(opt.name)])),
                },
                Effect::Gone => gone.push(dashed(opt.name)),
                _ => {}
            }
        }
        let mut lines: Vec<_> = by_feature
            .into_iter()
            .map(|(feature, names)| {
                format!("Notice: this version does not do {feature} yet; no effect: {}", names.join(" "))
            })
            .collect();
        if !gone.is_empty() {
            lines.push(format!("Notice: obsolete, no effect: {}", gone.join(" ")));
        }
        lines
    }
}

/// `--name`, or `-n` for one letter.
pub(crate) fn dashed(name: &str) -> String {
    if name.len() == 1 { format!("-{name}") } else { format!("--{name}") }
}

/// Go's idea of a boolean.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Takes `args` apart by `table`.
pub(crate) fn parse(table: Table, args: &[String]) -> Result<Parsed, ArgsError> {
    let mut parsed = Parsed::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            parsed.rest.extend(args.cloned());
            break;
        }
        let dashes = arg.bytes().take_while(|b| *b == b'-').count();
        if !(1..=2).contains(&dashes) || arg.len() == dashes {
            parsed.rest.push(arg.clone());
            continue;
        }
        let body = &arg[dashes..];
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let flag = format!("{}{name}", &arg[..dashes]);
        let old = table.old.iter().find(|o| o.old == name);
        let (opt, prefix, kind) = match (table.find(name), old) {
            (Some(opt), _) => (opt, "", opt.kind),
            (None, Some(old)) => {
                let Some(opt) = table.find(old.name) else { return Err(ArgsError::Unknown(flag)) };
                (opt, old.prefix, old.kind)
            }
            (None, None) if name == "help" || (name == "h" && dashes == 1) => {
                parsed.help = true;
                continue;
            }
            (None, None) => return Err(ArgsError::Unknown(flag)),
        };
        let value = match (kind, inline) {
            (Kind::Flag, None) => "true".to_owned(),
            (Kind::Flag, Some(value)) => match parse_bool(&value) {
                Some(on) => on.to_string(),
                None => return Err(ArgsError::NotBool { flag, value }),
            },
            (_, Some(value)) => value,
            (_, None) => args.next().cloned().ok_or_else(|| ArgsError::NoValue(flag.clone()))?,
        };
        if kind == Kind::Number
            && let Err(e) = value.parse::<i64>()
        {
            use std::num::IntErrorKind::{NegOverflow, PosOverflow};
            let range = matches!(e.kind(), PosOverflow | NegOverflow);
            let why = if range { "value out of range" } else { "invalid syntax" };
            return Err(ArgsError::NotNumber { flag, value, why });
        }
        let value = match (kind, prefix) {
            (_, "") => value,
            // A flag that stands for a value: switched off it says nothing.
            (Kind::Flag, prefix) if value == "true" => prefix.to_owned(),
            (Kind::Flag, _) => continue,
            (_, prefix) => format!("{prefix}{value}"),
        };
        let modern = dashed(opt.name);
        if old.is_some() && opt.name != name {
            let new = if prefix.is_empty() { modern } else { format!("{modern} {value}") };
            parsed.warnings.push(Deprecated { old: &flag, new: &new }.to_string());
        } else if flag != modern && opt.effect != Effect::Gone {
            parsed.warnings.push(Deprecated { old: &flag, new: &modern }.to_string());
        }
        parsed.set(opt.name, value);
    }
    Ok(parsed)
}

struct Deprecated<'a> {
    old: &'a str,
    new: &'a str,
}

impl fmt::Display for Deprecated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Warning: {} is deprecated; please use {}", self.old, self.new)
    }
}

/// Lines of help for `table`, by group in order of appearance.
pub(crate) fn help(table: Table, width: usize) -> String {
    let mut groups: Vec<&str> = Vec::new();
    for opt in table.all() {
        if !groups.contains(&opt.group) {
            groups.push(opt.group);
        }
    }
    let mut text = String::new();
    for group in groups {
        text.push_str(&format!("\n{group}:\n"));
        for opt in table.all().filter(|o| o.group == group && o.effect != Effect::Gone) {
            let head = match opt.kind {
                Kind::Flag => dashed(opt.name),
                _ => format!("{} {}", dashed(opt.name), opt.value),
            };
            let tail = match opt.effect {
                Effect::Awaits(_) => " [not in this version yet]",
                _ => "",
            };
            text.push_str(&entry(&head, &format!("{}{tail}", opt.help), width));
        }
    }
    text
}

/// `  head   words...`, the words wrapped in their own column.
pub(crate) fn entry(head: &str, words: &str, width: usize) -> String {
    const COLUMN: usize = 34;
    let mut text = format!("  {head}");
    let mut column = text.chars().count();
    if column + 1 > COLUMN {
        text.push('\n');
        column = 0;
    }
    text.push_str(&" ".repeat(COLUMN - column));
    column = COLUMN;
    let mut first = true;
    for word in words.split(' ') {
        let len = word.chars().count();
        if !first && column + 1 + len > width.max(COLUMN + 20) {
            text.push_str(&format!("\n{}", " ".repeat(COLUMN)));
            column = COLUMN;
            first = true;
        }
        if !first {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += len;
        first = false;
    }
    text.push('\n');
    text
}
