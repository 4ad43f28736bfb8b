//! Values as Go's `fmt` prints them.

use super::value::Value;
use crate::report::VersionCheck;
use crate::{Timestamp, facts};

/// `%v`.
pub(super) fn value(v: &Value) -> String {
    match v {
        Value::Missing => "<no value>".to_owned(),
        Value::Nil | Value::Absent => "<nil>".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Float(x) => float(*x),
        Value::Text(s) => s.clone(),
        Value::Time(s) => s.parse::<Timestamp>().map_or_else(|_| s.clone(), Timestamp::go_text),
        Value::List(items, _) => format!("[{}]", joined(items)),
        Value::Map(map) => {
            let pairs: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", value(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        Value::Struct("VersionCheck", fields) => version_check(fields),
        Value::Struct(_, fields) => {
            let fields: Vec<_> = fields.iter().map(|(_, v)| value(v)).collect();
            format!("{{{}}}", fields.join(" "))
        }
    }
}

fn joined(items: &[Value]) -> String {
    items.iter().map(value).collect::<Vec<_>>().join(" ")
}

/// This type has its own `String` method in 2.8.1: the sentence of the status page.
fn version_check(fields: &[(&'static str, Value)]) -> String {
    let field = |name| fields.iter().find(|(k, _)| *k == name).map(|(_, v)| v);
    let text = |name| match field(name) {
        Some(Value::Text(s) | Value::Time(s)) => s.as_str(),
        _ => "",
    };
    facts::version_sentence(&VersionCheck {
        enabled: field("Enabled") == Some(&Value::Bool(true)),
        success: field("Success") == Some(&Value::Bool(true)),
        new_version: text("NewVersion").to_owned(),
        next_check_at: text("NextCheckAt").parse().unwrap_or_default(),
    })
}

/// Go's `%v` of a float is `%g`: shortest form, exponent from 1e21.
fn float(x: f64) -> String {
    if x != 0.0 && (x.abs() >= 1e21 || x.abs() < 1e-4) {
        let text = format!("{x:e}");
        return match text.split_once('e') {
            Some((mantissa, exponent)) => {
                let (sign, digits) = match exponent.strip_prefix('-') {
                    Some(digits) => ('-', digits),
                    None => ('+', exponent),
                };
                format!("{mantissa}e{sign}{digits:0>2}")
            }
            None => text,
        };
    }
    x.to_string()
}

/// `print`: blanks between operands when neither is a string.
pub(super) fn print(args: &[Value]) -> String {
    let mut out = String::new();
    for (i, arg) in args.iter().enumerate() {
        let text = |v: &Value| matches!(v, Value::Text(_));
        if i > 0 && !text(arg) && !text(&args[i - 1]) {
            out.push(' ');
        }
        out.push_str(&value(arg));
    }
    out
}

/// `println`: blanks between all operands and a newline.
pub(super) fn println(args: &[Value]) -> String {
    joined(args) + "\n"
}

#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Maximum field width: a template must not cause unbounded allocation.
const MAX_WIDTH: usize = 1000;

pub(super) fn printf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+# 0".contains(*c)) {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                _ => spec.zero = true,
            }
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Option<usize> {
            if chars.next_if_eq(&'*').is_some() {
                return match args.next() {
                    Some(Value::Int(n)) => usize::try_from(*n).ok().map(|n| n.min(MAX_WIDTH)),
                    _ => None,
                };
            }
            let mut n = None;
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                let digit = d.to_digit(10).unwrap_or(0) as usize;
                n = Some((n.unwrap_or(0) * 10 + digit).min(MAX_WIDTH));
            }
            n
        };
        spec.width = number(&mut chars);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars).unwrap_or(0));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match args.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(arg) => out.push_str(&formatted(&spec, verb, arg)),
            },
        }
    }
    let extra: Vec<_> = args.map(|v| format!("{}={}", type_name(v), value(v))).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

fn type_name(v: &Value) -> &'static str {
    match v {
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::Float(_) => "float64",
        Value::Text(_) => "string",
        Value::Time(_) => "time.Time",
        Value::List(..) => "[]interface {}",
        Value::Map(_) => "map[string]interface {}",
        Value::Struct(name, _) => name,
        Value::Missing | Value::Nil | Value::Absent => "<nil>",
    }
}

fn formatted(spec: &Spec, verb: char, v: &Value) -> String {
    // Verbs apply to the elements of lists.
    if let Value::List(items, _) = v
        && verb != 'v'
        && verb != 'T'
    {
        let items: Vec<_> = items.iter().map(|v| formatted(spec, verb, v)).collect();
        return format!("[{}]", items.join(" "));
    }
    let sign = |n: &i128| {
        if *n < 0 {
            "-"
        } else if spec.plus {
            "+"
        } else if spec.space {
            " "
        } else {
            ""
        }
    };
    let cut = |s: &str| match spec.precision {
        Some(p) => s.chars().take(p).collect(),
        None => s.to_owned(),
    };
    let (prefix, body) = match (verb, v) {
        ('v', Value::Int(n)) | ('d', Value::Int(n)) => (sign(n), n.unsigned_abs().to_string()),
        ('v', v) => ("", value(v)),
        ('T', v) => ("", type_name(v).to_owned()),
        ('t', Value::Bool(b)) => ("", b.to_string()),
        ('s', v @ (Value::Text(_) | Value::Time(_) | Value::Struct(..) | Value::Map(_))) => {
            ("", cut(&value(v)))
        }
        ('q', Value::Text(s)) => ("", quote(s)),
        ('x', Value::Int(n)) => {
            let body = format!("{:x}", n.unsigned_abs());
            (sign(n), if spec.sharp { format!("0x{body}") } else { body })
        }
        ('X', Value::Int(n)) => {
            let body = format!("{:X}", n.unsigned_abs());
            (sign(n), if spec.sharp { format!("0X{body}") } else { body })
        }
        ('x', Value::Text(s)) => ("", s.bytes().map(|b| format!("{b:02x}")).collect()),
        ('o', Value::Int(n)) => (sign(n), format!("{:o}", n.unsigned_abs())),
        ('b', Value::Int(n)) => (sign(n), format!("{:b}", n.unsigned_abs())),
        ('c', Value::Int(n)) => {
            let c = u32::try_from(*n).ok().and_then(char::from_u32);
            ("", c.unwrap_or('\u{fffd}').to_string())
        }
        ('f' | 'F', Value::Float(x)) => {
            let sign = if x.is_sign_negative() {
                "-"
            } else if spec.plus {
                "+"
            } else {
                ""
            };
            (sign, format!("{:.*}", spec.precision.unwrap_or(6), x.abs()))
        }
        ('g', Value::Float(x)) => ("", float(*x)),
        (verb, v) => return format!("%!{verb}({}={})", type_name(v), value(v)),
    };
    let len = prefix.chars().count() + body.chars().count();
    let fill = spec.width.unwrap_or(0).saturating_sub(len);
    if spec.minus {
        format!("{prefix}{body}{}", " ".repeat(fill))
    } else if spec.zero && !matches!(v, Value::Text(_)) {
        format!("{prefix}{}{body}", "0".repeat(fill))
    } else {
        format!("{}{prefix}{body}", " ".repeat(fill))
    }
}

fn quote(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
